"""Numbers with intervals, and which fresh ones contradict the committed."""

from typing import Any

import numpy as np
import pytest

from experiments import figures


def test_a_share_of_rows_has_its_wilson_interval() -> None:
    found = figures.share(0.9, 100)
    z, p, n = 1.959964, 0.9, 100
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert found == {
        "value": 0.9,
        "low": pytest.approx(middle - half, abs=1e-4),
        "high": pytest.approx(middle + half, abs=1e-4),
    }


def test_an_interval_holds_its_number() -> None:
    assert figures.number(0.5, 0.6, 0.4) == {"value": 0.5, "low": 0.5, "high": 0.5}


def test_the_mean_of_independent_numbers_is_surer_than_each() -> None:
    one = figures.number(0.1, 0.0, 0.2)
    found = figures.mean([one] * 4)
    assert found == {"value": 0.1, "low": 0.05, "high": 0.15}


def test_a_geometric_mean_of_equal_ratios_is_that_ratio() -> None:
    assert figures.geometric([2.0] * 5) == {"value": 2.0, "low": 2.0, "high": 2.0}
    assert figures.geometric([1.0, 4.0])["value"] == 2.0


def result(margins: dict[float, float], rows: int, **search: Any) -> dict[str, Any]:
    """A run whose search scored these sizes, with these margins, on so many rows."""
    points = [
        {"kept_fraction": size, "margin": margin, "examples_used": rows}
        for size, margin in margins.items()
    ]
    return {
        "kept_fraction": {"prunable": 0.2},
        "tolerance": 0.02,
        "examples": 400,
        "drop": {"point": 0.01, "low": 0.0, "high": 0.02},
        "search": {"method": "waterfill", "confirmation": None, "curve": points} | search,
    }


def test_sizes_that_another_draw_could_have_chosen_are_within_the_interval() -> None:
    margins = {0.9: 0.02, 0.4: 0.01, 0.2: 0.001, 0.1: -0.02, 0.05: -0.4}
    assert figures.kept(result(margins, rows=300)) == {"value": 0.2, "low": 0.1, "high": 0.4}


def test_a_genome_that_lost_nothing_is_not_taken_for_one_that_might_be_refused() -> None:
    assert figures.kept(result({0.9: 0.02, 0.2: 0.02}, rows=300))["high"] == 0.2


def test_more_rows_leave_less_to_chance() -> None:
    margins = {0.4: 0.01, 0.2: 0.001, 0.1: -0.02}
    found = figures.kept(result(margins, rows=30_000))
    assert found == {"value": 0.2, "low": 0.2, "high": 0.2}


def test_numbers_of_the_same_rows_are_no_surer_together() -> None:
    one = figures.number(0.1, 0.0, 0.2)
    assert figures.pooled([one] * 4) == one


def tree(value: float) -> dict[str, Any]:
    return {"a": {"b": [figures.number(value, value - 0.1, value + 0.1)]}, "text": "x"}


def test_a_fresh_number_is_held_to_the_committed_interval() -> None:
    assert figures.outside(tree(0.5), tree(0.58)) == (1, [], 0)
    count, lines, missing = figures.outside(tree(0.5), tree(0.61))
    assert (count, missing) == (1, 0)
    assert lines == ["a.b.0: committed 0.5 (0.4 to 0.6), found 0.61"]


def test_a_number_that_was_not_measured_again_contradicts_nothing() -> None:
    assert figures.outside(tree(0.5), {}) == (1, [], 1)
