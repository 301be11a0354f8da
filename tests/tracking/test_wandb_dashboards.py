"""Dashboards hold against what runs really send: every key that they use is one of a run's own.

Two runs are logged offline and read back: layers of the embedded model on a data set of Almanac,
with recovery and the other sets beside it; and a genetic search.
"""

import json
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from logged import Page, page
from models import save_first_layers
from runs import Done, execute, make_world, run_sieve
from specs import missing, used

from sieve.conversion import CONF, register_resolvers, to_config
from sieve.tracking import dashboards

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
STUDIES = dashboards.CONTENT["reports"]
ALMANAC = tuple(
    f"almanac_{domain}{form}"
    for domain in ("geography", "medicine", "reading", "reviews")
    for form in ("", "_alternate")
)
SMALL = (
    *(f"task.max_rows.{role}=20" for role in ("calibration", "selection", "test")),
    *(f"also.{name}.max_rows.test=12" for name in ALMANAC),
    *"calibration.tokens=1000 projection.refit=false".split(),
    *"speed.repeats=1 speed.prompt_tokens=8 speed.new_tokens=2".split(),
)
LINE = (
    "+experiment=generalization",
    "hydra.mode=RUN",
    *SMALL,
    "logger.mode=offline",
    "logger.artifact=true",
    "logger.tags=[mine]",
    "recovery=full",
    "confidence=null",
    "search.recover=false",
    "recovery.steps=2",
    "recovery.check_every=1",
    "recovery.tokens=500",
    "curve=[.5,.1]",
)
GENETIC = (
    *"search=genetic hydra.sweeper.population=4 hydra.sweeper.generations=2".split(),
    *"search.bottlenecks=true search.rounds=1 projection.refit_tries=1 tolerance=.1".split(),
    *"logger.wandb=true logger.mode=offline logger.group=bottlenecks".split(),
)


@dataclass
class Runs:
    """The W&B pages of a line search and of a genetic search, and their folder."""

    line: Page
    genetic: Page
    root: Path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = make_world(tmp_path_factory.mktemp("world"))
    where = (f"hydra.run.dir={root / 'line'}", f"paths.cache_dir={root / 'cache'}")
    save_first_layers(root / "embedded", 2)
    check(execute(root, [*LINE, f"model.path={root / 'embedded'}", *where]))
    check(run_sieve(root, root / "unused", *GENETIC, f"hydra.sweep.dir={root / 'genetic'}"))
    return Runs(page(root / "line"), page(root / "genetic" / "result"), root)


def check(done: Done) -> None:
    assert done.status == 0, done.stderr


@pytest.fixture(scope="module")
def specs() -> dict[str, Any]:
    return {name: dashboards.spec(one) for name, one in dashboards.build("me", "pans").items()}


def test_runs_log_every_key_that_a_dashboard_uses(runs: Runs, specs: dict[str, Any]) -> None:
    for name, spec in specs.items():
        keys = set(used(spec))
        assert len(keys) > 10 and "media" in {place for place, _ in keys}, name
        assert missing(spec, [runs.line, runs.genetic]) == set(), name


@pytest.mark.parametrize("place", ["chart", "axis", "bars", "media", "table", "group", "column"])
def test_a_misspelled_key_is_detected_in_every_kind_of_place(
    runs: Runs, specs: dict[str, Any], place: str
) -> None:
    """Check that the test above can fail."""
    keys = {
        "chart": "search/accuracy",
        "axis": "search/kept_fraction",
        "bars": "report/stage_seconds",
        "media": "figures/kept_heatmap",
        "table": "tables/genomes",
        "group": "task.value.name",
        "column": "report/drop_low",
    }
    text = json.dumps(specs["workspace-2"])
    assert keys[place] in text
    misspelled = json.loads(text.replace(keys[place], keys[place] + "x"))
    assert missing(misspelled, [runs.line, runs.genetic])


def test_a_renamed_metric_is_detected(runs: Runs, specs: dict[str, Any]) -> None:
    renamed = Page(**vars(runs.line) | {"history": dict(runs.line.history)})
    renamed.history["report/kept"] = renamed.history.pop(dashboards.KEPT)
    renamed.summary = {k: v for k, v in renamed.summary.items() if k != dashboards.KEPT}
    for spec in specs.values():
        assert ("summary", dashboards.KEPT) in missing(spec, [renamed])


def test_every_panel_kind_is_one_whose_keys_are_checked(specs: dict[str, Any]) -> None:
    kinds = set(re.findall(r'"viewType": "([^"]+)"', json.dumps(specs)))
    assert kinds <= {
        "Scatter Plot",
        "Run History Line Plot",
        "Bar Chart",
        "Media Browser",
        "Parallel Coordinates Plot",
        "Weave",
        "runs",
    }


def test_the_groups_of_a_report_are_the_groups_of_its_commands(
    specs: dict[str, Any],
) -> None:
    for name, study in STUDIES.items():
        text = json.dumps(specs[f"report-{name}"]["spec"])
        asked = re.findall(r'"section": "run", "name": "group"}, "op": "=", "value": "(\w+)"', text)
        assert set(asked) == set(study["groups"]), name
        assert set(study["groups"]) == {
            group for c in study["commands"] for group in groups_of(c)
        }, name


def groups_of(command: str) -> set[str]:
    """The groups of all runs of a command, including sweeps."""
    given = shlex.split(command.partition("python -m sieve.run ")[2])
    groups = set()
    for raw in composed(given):
        config = to_config(raw)
        named = re.search(r"experiment=(\w+)", command)
        assert named is not None
        groups.add(config.logger.group or named[1])
    return groups


def composed(given: list[str]) -> list[Any]:
    """The settings of a command: every `source` of its sweep, and the first value of all else."""
    register_resolvers()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        first = [re.sub(r"=([^\[,]+),.*", r"=\1", one) for one in given]
        first += ["+sweep.job=prepare"] if "adaptive" in first[0] else []
        raw = compose("config", first, return_hydra_config=True)
        params = getattr(raw.hydra.sweeper, "params", None) or {}
        swept = dict(params) | dict(one.split("=", 1) for one in given)
        sources = swept["source"].split(",") if "source" in swept else []
        return [compose("config", [*first, f"source={one}"]) for one in sources] or [
            compose("config", first)
        ]


def test_a_page_has_title_tags_kind_and_group(runs: Runs) -> None:
    run = runs.line.run
    assert run.run_group == "generalization"  # of the experiment
    assert runs.genetic.run.run_group == "bottlenecks"  # as asked for
    title = "almanac_geography-embedded-loss_aware-waterfill-full-seed0"
    assert run.display_name == title and run.job_type == "recover"
    tags = ["almanac_geography", "embedded", "waterfill", "loss_aware", "full", "mine"]
    assert list(run.tags) == tags
    assert runs.genetic.run.job_type == "search"
    assert list(runs.genetic.run.tags)[:3] == ["data", "model", "genetic"]
    assert runs.line.settings["model.name"] == "embedded"


def test_the_summary_of_a_page_has_the_figures_of_the_result(runs: Runs) -> None:
    for one, folder in ((runs.line, "line"), (runs.genetic, "genetic/result")):
        result = json.loads((runs.root / folder / "result.json").read_text())
        for path in (
            "kept_fraction.prunable",
            "drop.point",
            "search.evaluations",
            "task",
            "model",
            "seconds.search",
            "bytes.pruned",
            "command",
            "search.method",
        ):
            value = result
            for part in path.split("."):
                value = value[part]
            assert one.summary[path] == value
        assert not any("kept_high" in key or "layers" in key for key in one.summary)
        rows = one.history
        assert rows["report/kept_fraction"] == [result["kept_fraction"]["prunable"]]
        assert rows["report/drop"] == [result["drop"]["point"]]
        total = sum(v for k, v in result["seconds"].items() if k != "report")
        assert rows["report/stage_seconds"] == [pytest.approx(total)]


def test_each_series_of_a_page_has_its_own_step(runs: Runs) -> None:
    steps = {
        "search/*": "search/kept_fraction",
        "recovery/*": "recovery/step",
        "generations/*": "generations/generation",
        "curve/*": "curve/kept_fraction",
    }
    assert {k: v for k, v in (runs.line.steps | runs.genetic.steps).items() if "*" in k} == steps
    assert runs.line.history["recovery/step"] == [0, 1, 2]
    assert runs.genetic.history["generations/generation"] == [1, 2]
    for one in (runs.line, runs.genetic):
        kept = one.history["search/kept_fraction"]
        assert kept == sorted(kept) and len(kept) == len(one.history["search/accuracy"])
    front = runs.genetic.history["search/accuracy"]
    assert front == sorted(set(front))  # No genome is worse than a smaller one.


def test_a_page_has_interactive_figures_and_tables(runs: Runs) -> None:
    of = {
        name: {k.split("/")[1] for k, kind in one.media.items() if kind == name}
        for one in (runs.line,)
        for name in ("plotly-file", "table-file")
    }
    assert of["plotly-file"] == {"accuracy_curve", "kept_heatmap", "spectrum"}
    assert of["table-file"] == {"tests", "matrices", "genomes"}
    more = set(runs.genetic.media) - set(runs.line.media)
    assert {"figures/generations", "figures/bottlenecks", "tables/bottlenecks"} <= more
    [path] = runs.line.folder.glob("files/media/plotly/figures/kept_heatmap_*.plotly.json")
    figure = json.loads(path.read_text())
    assert figure["data"][0]["type"] == "heatmap" and "bdata" not in path.read_text()
    [path] = runs.line.folder.glob("files/media/table/tables/tests_*.table.json")
    table = json.loads(path.read_text())
    named = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert named[0]["tested_on"] == named[0]["sieved_on"] == "almanac_geography"
    assert {row["tested_on"] for row in named} == set(ALMANAC)


def test_the_export_is_an_artifact_only_on_request(runs: Runs) -> None:
    [(name, files)] = runs.line.artifacts.items()
    assert name == "almanac_geography-embedded"
    assert {"export/model.safetensors", "export/config.json", "result.json"} <= set(files)
    assert runs.genetic.artifacts == {}


def test_a_report_states_its_claim_and_commands(specs: dict[str, Any]) -> None:
    for name, study in STUDIES.items():
        report = specs[f"report-{name}"]
        text = json.dumps(report["spec"], ensure_ascii=False)
        assert report["displayName"] == f"Sieve: {study['title']}"
        assert json.dumps(study["claim"], ensure_ascii=False)[1:-1] in text
        assert all(json.dumps(one)[1:-1] in text for one in study["commands"])
        assert "panel-grid" in text and "config:task.value.name" in text


def test_the_import_gives_no_warning_and_uses_no_network() -> None:
    program = """if True:
        import socket
        def refuse(*_):
            raise AssertionError("the network was used")
        socket.socket.connect = refuse
        import sieve.tracking.dashboards
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    own = {p for p in (ROOT / "sieve").rglob("*.py") if "wandb_workspaces" in p.read_text("utf-8")}
    assert own == {Path(dashboards.__file__)}
