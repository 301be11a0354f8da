"""Genomes that were decided early are drawn with their size and outcome, not with a bound."""

from typing import Any

import plotly.graph_objects as go
import pytest

from sieve.report.captions import accuracy_caption
from sieve.report.curve import accuracy_curve
from sieve.report.result import read

Result = dict[str, Any]


@pytest.fixture
def decided(result: Result) -> Result:
    """A search along a line with two genomes that were decided early, whose bounds are high."""
    early = {"whole": False, "feasible": False, "chosen": False, "examples_used": 64}
    result["search"]["curve"] = [point for point in result["search"]["curve"] if point["whole"]]
    result["search"]["curve"] += [
        early | {"kept_fraction": 0.6, "accuracy": 0.99, "margin": 0.2},
        early | {"kept_fraction": 0.02, "accuracy": 0.95, "margin": -0.01},
    ]
    return result


def named(figure: go.Figure, name: str) -> Any:
    return next(trace for trace in figure.data if trace.name == name)


def test_bounds_do_not_stretch_the_axis_of_accuracies(decided: Result) -> None:
    low, high = accuracy_curve(read(decided)).layout.yaxis.range
    assert 68 < low < 70 < 81.1 < high < 83  # The accuracies are from 70 to 81.1 %.


def test_marks_are_at_the_edge_of_their_side_of_the_tolerance(decided: Result) -> None:
    figure = accuracy_curve(read(decided))
    low, high = figure.layout.yaxis.range
    within = named(figure, "within it, decided early")
    beyond = named(figure, "beyond it, decided early")
    assert list(within.x) == [60.0] and list(beyond.x) == [2.0]
    assert 81.1 < within.y[0] < high and low < beyond.y[0] < 70
    assert within.marker.symbol == "triangle-up-open"
    assert beyond.marker.symbol == "triangle-down-open"
    assert "%{y" not in within.hovertemplate and within.text == ("64 rows",)


def test_the_axis_of_sizes_shows_every_mark(decided: Result) -> None:
    low, high = accuracy_curve(read(decided)).layout.xaxis.range  # logarithms
    assert 10**low < 2.0 and 10**high > 100


def test_a_perplexity_beyond_the_tolerance_is_at_the_upper_edge(decided: Result) -> None:
    decided["relative"] = True
    for point in decided["search"]["curve"]:
        point["accuracy"] *= 100
    figure = accuracy_curve(read(decided))
    low, high = figure.layout.yaxis.range  # logarithms
    beyond = named(figure, "beyond it, decided early")
    assert 81.1 < beyond.y[0] < 10**high and beyond.marker.symbol == "triangle-up-open"
    assert 10**low < named(figure, "within it, decided early").y[0] < 0.81


def test_a_search_by_divergence_leaves_the_side_of_a_genome_open(decided: Result) -> None:
    decided["search"]["method"] = "genetic"
    figure = accuracy_curve(read(decided))
    assert list(named(figure, "discarded early").x) == [60.0]
    assert list(named(figure, "beyond it, decided early").x) == [2.0]
    assert "A grey triangle is a genome that was discarded" in accuracy_caption(read(decided))


def test_without_early_decisions_plotly_chooses_the_axis(decided: Result) -> None:
    del decided["search"]["curve"][-2:]
    assert accuracy_curve(read(decided)).layout.yaxis.range is None
    assert "triangle" not in accuracy_caption(read(decided))


def test_the_caption_explains_the_triangles(decided: Result) -> None:
    caption = accuracy_caption(read(decided))
    assert "ended when it was decided on which side" in caption
    assert "grey" not in caption
    decided["confidence"] = 0.9
    assert "ended when it was almost surely decided on" in accuracy_caption(read(decided))


def test_the_caption_says_why_a_point_above_the_line_is_beyond_the_tolerance(
    decided: Result,
) -> None:
    reason = (
        "A genome can be beyond the tolerance although its point is on the good side of the line, "
        "because the upper bound of its drop at 90 % confidence must be within the tolerance."
    )
    decided["confidence"] = 0.9
    assert reason not in accuracy_caption(read(decided))
    chosen = next(p for p in decided["search"]["curve"] if p["chosen"])  # 80 %, the line is 79 %
    chosen["feasible"] = False
    assert reason in accuracy_caption(read(decided))
    decided["confidence"] = None
    assert "upper bound" not in accuracy_caption(read(decided))
