"""The line of a stage: its number, and the time left where the forecast is good for something."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from runs import make_world, run_sieve

from sieve.stages.forecast import forecast as seconds_by_stage
from sieve.stages.outline import Outline, about

NAMES = ("calibrate", "fit", "search")
FORECAST = {"calibrate": 300.0, "fit": 60.0, "search": 360.0}


def test_a_stage_has_its_number_and_the_time_of_all_that_are_left() -> None:
    outline = Outline(NAMES, lambda: FORECAST)
    assert outline.line("calibrate", False) == "stage 1 of 3: calibrate, about 12 minutes left"
    assert outline.line("fit", True) == "stage 2 of 3: fit, from the cache"
    assert outline.line("search", False) == "stage 3 of 3: search, about 6 minutes left"
    assert outline.line("answers", False) == "answers"
    assert outline.line("answers", True) == "answers: from the cache"


def test_finished_stages_correct_the_forecast() -> None:
    outline = Outline(NAMES, lambda: FORECAST)
    outline.finish("calibrate", 2 * 300 + 5)  # Twice as slow, with the 5 s of the prior.
    assert outline.line("fit", False) == "stage 2 of 3: fit, about 14 minutes left"
    outline.finish("search", 5000)  # The forecast is of no use.
    assert outline.line("fit", False) == "stage 2 of 3: fit"


def test_without_a_forecast_there_is_no_time() -> None:
    def broken() -> dict[str, float]:
        raise KeyError("tflops")

    for forecast in (lambda: None, lambda: {}, broken):
        assert Outline(NAMES, forecast).line("fit", False) == "stage 2 of 3: fit"


def test_a_sharded_model_has_no_forecast_since_ranks_would_wait_for_each_other() -> None:
    run: Any = SimpleNamespace(
        config=SimpleNamespace(search=SimpleNamespace(method="waterfill")),
        backbone=None,  # must not be looked into
        sharded=True,
    )
    assert seconds_by_stage(run) is None


def test_a_run_from_the_cache_makes_no_forecast() -> None:
    outline = Outline(NAMES, lambda: pytest.fail("a forecast takes time"))
    assert [outline.line(name, True) for name in NAMES][2] == "stage 3 of 3: search, from the cache"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (3, "less than a minute left"),
        (50, "about 1 minute left"),
        (715, "about 12 minutes left"),
        (3600 * 2.2, "about 2 hours left"),
    ],
)
def test_a_time_is_whole_minutes_or_hours(seconds: float, text: str) -> None:
    assert about(seconds) == text


@pytest.mark.slow
def test_every_numbered_stage_of_a_run_is_said_once_and_in_order(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    settings = ["tolerance=0.9", "speed.enabled=false", "curve=[.5]"]
    done = run_sieve(world, tmp_path / "run", *settings)
    assert done.status == 0, done.stderr
    said = done.stderr.splitlines()
    lines = [line for line in said if line.startswith("stage ")]
    names = "calibrate fit search curve refit evaluate rivals export report".split()
    assert [line.split(",")[0] for line in lines] == [
        f"stage {number} of {len(names)}: {name}" for number, name in enumerate(names, 1)
    ]
    assert all(line.endswith(", less than a minute left") for line in lines[:3])
    [dense] = [line for line in said if line.startswith("  dense ")]
    assert dense.endswith("tolerance 0.9000")
    assert said.index(dense) < min(said.index(line) for line in said if "margin" in line)
    again = run_sieve(world, tmp_path / "again", *settings).stderr.splitlines()
    assert f"stage 1 of {len(names)}: calibrate, from the cache" in again
