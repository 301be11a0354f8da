"""Ways of one question take the same time, and sizes are compared task by task."""

from typing import Any

import pytest

from experiments import trained_search

USUAL = {"seconds": 60.0, "cpu_seconds": 30.0, "refit_seconds": 12.0, "refit_tries": 3}


def record(task: str, way: str, kept: float, seed: int = 0) -> dict[str, Any]:
    return {"task": task, "way": way, "seed": seed, "kept": kept}


def test_training_after_the_search_has_the_minutes_of_training_inside_it() -> None:
    overrides = trained_search.equal_time("after", {"in the loop": {"recover_seconds": 90.0}})
    assert overrides == ["recovery.minutes=1.500"]


def test_water_filling_refits_for_as_long_as_the_genetic_search_takes_more() -> None:
    # A refit takes 4 of 60 seconds, so 2 of 30 seconds of the processor; 40 are to spare.
    others = {"sure": USUAL, "genetic": {"cpu_seconds": 70.0}}
    assert trained_search.equal_time("water-filled", others) == ["projection.refit_tries=23"]


def test_a_way_whose_rival_has_not_run_is_refused() -> None:
    with pytest.raises(ValueError, match="'genetic', which has not run"):
        trained_search.equal_time("water-filled", {"sure": USUAL})


def test_sizes_are_compared_on_tasks_and_seeds_that_both_ways_have() -> None:
    records = [
        record("a", "ours", 0.01),
        record("a", "theirs", 0.04),
        record("a", "ours", 0.02, seed=1),
        record("a", "theirs", 0.02, seed=1),
        record("b", "ours", 0.02),
    ]
    ratios = trained_search.size_ratios(records, "ours", "theirs")
    assert ratios == {"a": pytest.approx(0.5)}
