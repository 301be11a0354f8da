"""Whole runs whose selection rows can, or cannot, certify a pruned model."""

from pathlib import Path

import pytest
from runs import finished, make_world, run_sieve

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "that takes at least 149 selection rows"),
        (
            ["dry_run=true"],
            "at least 149 selection rows; set confidence=null to run without this promise",
        ),
        (["search=genetic"], "20 of 50 selection rows (search.confirmation=0.4) are too few"),
    ],
)
def test_a_certificate_that_cannot_be_had_ends_a_run_before_calibration(
    world: Path, overrides: list[str], message: str
) -> None:
    folder = [f"hydra.sweep.dir={world / 'sweep'}"] if overrides == ["search=genetic"] else []
    settings = ("confidence=.9", "task.max_rows.selection=50", *overrides, *folder)
    done = run_sieve(world, world / "run", *settings, cache="none")
    assert done.status == 1
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not list((world / "none").glob("*/moments*"))


@pytest.mark.slow
def test_a_run_and_a_dry_run_say_what_their_rows_certify(world: Path) -> None:
    sentence = "With 60 selection rows and a pruned model that differs from the dense model on"
    settings = (
        "confidence=.9",
        "tolerance=.1",
        "search.rows=60",
        "speed.enabled=false",
        "export=none",
    )
    done = run_sieve(world, world / "run", *settings)
    assert done.status == 0, done.stderr
    assert (done.stdout + done.stderr).count(sentence) == 1
    assert sentence in " ".join(
        run_sieve(world, world / "dry", *settings, "dry_run=true").stdout.split()
    )
    assert sentence not in run_sieve(world, world / "fit", *settings, "until=fit").stderr


@pytest.mark.slow
def test_the_finished_model_is_tested_on_all_selection_rows(world: Path) -> None:
    settings = ("confidence=.9", "tolerance=.3", "speed.enabled=false", "quantization=int8")
    result = finished(world, "int8", *settings)
    certificate, rows = result["certificate"], result["data"]["rows"]["selection"]
    assert result["kept_fraction"]["prunable"] < 1 and certificate["rows"] == rows
    assert certificate["drop"] < certificate["upper"]
    assert certificate["certified"] is (certificate["upper"] <= 0.3)


@pytest.mark.slow
def test_the_dense_model_loses_nothing_against_itself(world: Path) -> None:
    dense = ("search=uniform", "search.levels=[1]", "confidence=.9", "tolerance=.1")
    result = finished(world, "dense", *dense, "curve=[1]", "speed.enabled=false")
    nothing = {"point": 0.0, "low": None, "high": None, "mcnemar_p": None}
    assert result["drop"] == nothing | {"upper": None} and result["certificate"] is None
    assert result["curve"][0]["drop"] == nothing
    assert result["pruned"]["accuracy"] == result["baseline"]["accuracy"]
    card = (world / "dense" / "export" / "README.md").read_text("utf-8")
    assert "interval" not in card and "confidence" not in card.partition("## How it was made")[0]
