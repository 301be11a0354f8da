"""How a search is logged: as tables and series of one run, each row in metrics.jsonl as well."""

from pathlib import Path
from typing import Any

import pytest
from logged import GENERATIONS, metrics
from report.results import full_result, genetic_result

from sieve.config import LoggerConfig
from sieve.stages.report import log_result
from sieve.tracking.logger import RunLogger

QUIET = LoggerConfig(wandb=False)


class Mirror:
    """Stands in for a run of W&B and keeps what it is given."""

    def __init__(self) -> None:
        self.history: list[dict[str, Any]] = []
        self.defined: dict[str, Any] = {}

    def log(self, values: dict[str, Any]) -> None:
        self.history.append(values)

    def define_metric(self, name: str, **options: Any) -> None:
        self.defined[name] = options

    @property
    def summary(self) -> dict[str, Any]:
        return {}

    def finish(self, exit_code: int) -> None:
        pass


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Mirror:
    import wandb

    runs = [Mirror()]
    monkeypatch.setattr(wandb, "init", lambda **_: runs.pop())  # A second run is an error.
    return runs[0]


def test_a_series_is_drawn_over_a_step_of_its_own(tmp_path: Path, mirror: Mirror) -> None:
    logger = RunLogger(tmp_path, LoggerConfig(mode="offline"), {}, "title")
    logger.log_metrics({"fit/seconds": 1.0})
    logger.log_series("generations", GENERATIONS, step="generation")
    logger.close()
    assert mirror.defined["generations/*"] == {"step_metric": "generations/generation"}
    assert mirror.history[1:] == [
        {
            "generations/generation": 1,
            "generations/median": 0.4,
            "generations/memo": 0,
            "generations/seconds": 2.5,
        },
        {
            "generations/generation": 2,
            "generations/best": 0.125,
            "generations/median": 0.25,
            "generations/memo": 3,
            "generations/seconds": 1.5,
        },
    ]


def test_a_series_of_nothing_defines_nothing(tmp_path: Path, mirror: Mirror) -> None:
    logger = RunLogger(tmp_path, LoggerConfig(mode="offline"), {}, "title")
    logger.log_series("generations", [], step="generation")
    logger.close()
    assert (mirror.defined, mirror.history, metrics(tmp_path)) == ({}, [], [])


def test_a_series_has_a_line_per_row_with_its_step(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path, QUIET, {}, "title")
    logger.log_series("generations", GENERATIONS, step="generation")
    logger.close()
    assert [line["step"] for line in metrics(tmp_path)] == [1, 2]
    assert [line["generations/best"] for line in metrics(tmp_path)] == [None, 0.125]


def test_the_place_of_a_row_stands_for_a_step_that_is_a_fraction(
    tmp_path: Path, mirror: Mirror
) -> None:
    rows = [{"kept_fraction": 0.1, "accuracy": 0.5}, {"kept_fraction": 0.4, "accuracy": 0.7}]
    logger = RunLogger(tmp_path, LoggerConfig(mode="offline"), {}, "title")
    logger.log_series("search", rows, step="kept_fraction")
    logger.close()
    assert mirror.defined["search/*"] == {"step_metric": "search/kept_fraction"}
    assert [line["step"] for line in metrics(tmp_path)] == [0, 1]
    assert [line["search/kept_fraction"] for line in metrics(tmp_path)] == [0.1, 0.4]


def test_a_table_is_one_entry_with_all_columns_and_a_line_per_row(
    tmp_path: Path, mirror: Mirror
) -> None:
    rows = [{"kept": 0.5, "margin": float("nan")}, {"kept": 0.25, "margin": 0.0, "refitted": True}]
    logger = RunLogger(tmp_path, LoggerConfig(mode="offline"), {}, "title")
    logger.log_table("genomes", rows)
    logger.close()
    (entry,) = mirror.history
    assert entry["tables/genomes"].columns == ["kept", "margin", "refitted"]
    assert entry["tables/genomes"].data == [[0.5, None, None], [0.25, 0.0, True]]
    assert metrics(tmp_path) == [
        {"step": 0, "genomes/kept": 0.5, "genomes/margin": None},
        {"step": 1, "genomes/kept": 0.25, "genomes/margin": 0.0, "genomes/refitted": True},
    ]


def test_a_genetic_search_is_one_run_with_tables_series_and_figures(
    tmp_path: Path, mirror: Mirror
) -> None:
    logger = RunLogger(tmp_path, LoggerConfig(mode="offline"), {}, "title")
    result = genetic_result()
    log_result(logger, result)
    logger.close()
    logged = {key: value for entry in mirror.history for key, value in entry.items()}
    genomes = logged["tables/genomes"]
    assert {"kept_fraction", "accuracy", "margin", "divergence", "feasible", "chosen"} <= set(
        genomes.columns
    )
    assert len(genomes.data) == len(result["search"]["curve"])
    bottlenecks = dict(zip(*_first(logged["tables/bottlenecks"]), strict=True))
    assert (bottlenecks["kept_fraction"], bottlenecks["kept_high"]) == (0.1, 0.9)
    assert {"figures/accuracy_curve", "figures/divergence_front", "figures/bottlenecks"} <= set(
        logged
    )
    steps = [e["generations/generation"] for e in mirror.history if "generations/memo" in e]
    assert steps == [1, 2]
    lines = metrics(tmp_path)
    for name, count in (("genomes", 7), ("generations", 2), ("bottlenecks", 42), ("matrices", 42)):
        assert sum(any(key.startswith(f"{name}/") for key in line) for line in lines) == count


def test_a_search_along_a_line_logs_its_genomes_and_no_generations(
    tmp_path: Path, mirror: Mirror
) -> None:
    logger = RunLogger(tmp_path, LoggerConfig(mode="offline"), {}, "title")
    log_result(logger, full_result())
    logger.close()
    logged = {key for entry in mirror.history for key in entry}
    assert "tables/genomes" in logged and "tables/bottlenecks" not in logged
    assert not mirror.defined


def _first(table: Any) -> tuple[list[str], list[Any]]:
    return table.columns, table.data[0]
