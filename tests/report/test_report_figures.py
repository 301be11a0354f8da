"""Figures hold what the result says, no more and no less."""

from typing import Any

import plotly.graph_objects as go
import pytest

from sieve.report import figures
from sieve.report.curve import accuracy_curve
from sieve.report.figures import spectrum
from sieve.report.heatmap import kept_heatmap, scale_end
from sieve.report.result import read
from sieve.report.style import log_axis

Result = dict[str, Any]


def named(figure: go.Figure, start: str) -> Any:
    return next(trace for trace in figure.data if (trace.name or "").startswith(start))


def test_all_three_figures_have_a_title_and_titled_axes(result: Result) -> None:
    made = figures(result)
    assert list(made) == ["accuracy_curve", "kept_heatmap", "spectrum"]
    for figure in made.values():
        assert figure.layout.title.text
        assert figure.layout.xaxis.title.text
    assert made["accuracy_curve"].layout.yaxis.title.text.endswith("%")


def test_the_curve_holds_exactly_the_evaluated_points(result: Result) -> None:
    figure = accuracy_curve(read(result))
    drawn = {
        (x, y)
        for trace in figure.data
        if trace.mode == "markers" and not trace.name.startswith("chosen")
        for x, y in zip(trace.x, trace.y, strict=True)
    }
    points = [point for point in result["search"]["curve"] if point["whole"]]
    early = {(x, y) for x, y in drawn if x == 5.0}  # see test_report_early.py
    assert len(early) == 1
    assert drawn - early == {(100 * p["kept_fraction"], 100 * p["accuracy"]) for p in points}


def test_the_line_of_a_curve_joins_only_genomes_scored_on_all_rows(result: Result) -> None:
    points = result["search"]["curve"]
    whole = [100 * point["kept_fraction"] for point in points if point["whole"]]
    [line] = [t for t in accuracy_curve(read(result)).data if t.mode == "lines" and not t.name]
    assert sorted(line.x) == sorted(whole) and len(whole) < len(points)


def test_the_curve_marks_the_chosen_point_and_the_infeasible_ones(result: Result) -> None:
    figure = accuracy_curve(read(result))
    chosen = named(figure, "chosen")
    assert (list(chosen.x), list(chosen.y)) == ([35.0], [80.0])
    assert chosen.name == "chosen, 35.0 % kept"
    assert min(named(figure, "within").y) == 80.0
    assert max(named(figure, "beyond").y) == pytest.approx(78.1)


def test_the_curve_draws_the_dense_and_the_tolerance_line_of_the_selection_split(
    result: Result,
) -> None:
    figure = accuracy_curve(read(result))
    assert set(named(figure, "dense model, 81.0 %").y) == {81.0}
    assert set(named(figure, "tolerance, 79.0 %").y) == {79.0}


def test_the_size_axis_is_logarithmic_for_small_genomes_unless_one_keeps_nothing(
    result: Result,
) -> None:
    assert accuracy_curve(read(result)).layout.xaxis.type == "log"
    result["search"]["curve"][-1]["kept_fraction"] = 0.0
    assert accuracy_curve(read(result)).layout.xaxis.type != "log"


def test_genomes_of_a_line_search_are_joined_and_others_have_a_front(result: Result) -> None:
    assert any(
        trace.mode == "lines" and not trace.name for trace in accuracy_curve(read(result)).data
    )
    result["search"]["method"] = "genetic"
    assert named(accuracy_curve(read(result)), "Pareto front").line.shape == "hv"


def test_a_curve_of_one_point_is_drawn(result: Result) -> None:
    result["search"]["curve"] = result["search"]["curve"][:1]
    assert list(named(accuracy_curve(read(result)), "within").x) == [100.0]


def test_the_heat_map_places_a_matrix_at_its_layer_and_kind(result: Result) -> None:
    result["matrices"][0]["layer"], result["matrices"][0]["kind"] = 4, "expert"
    result["matrices"][0]["kept_fraction"] = 0.125
    heatmap = kept_heatmap(read(result)).data[0]
    assert heatmap.z[heatmap.y.index("4")][heatmap.x.index("expert")] == pytest.approx(12.5)
    assert heatmap.z[heatmap.y.index("0")][heatmap.x.index("q")] is None
    assert heatmap.z[heatmap.y.index("1")][heatmap.x.index("q")] == pytest.approx(34.4)


@pytest.mark.parametrize(
    ("largest", "end"),
    [(0.0, 100), (0.3, 0.3), (0.32, 0.4), (7.9, 8), (9, 10), (23.0, 25), (61, 80), (97, 100)],
)
def test_the_color_scale_ends_at_a_round_number_above_the_data(
    result: Result, largest: float, end: float
) -> None:
    assert scale_end(largest) == pytest.approx(end)
    for matrix in result["matrices"]:
        matrix["kept_fraction"] = largest / 100
    heatmap = kept_heatmap(read(result)).data[0]
    assert heatmap.zmax == pytest.approx(end) and heatmap.zmin == 0
    assert heatmap.colorbar.ticktext[-1] == f"{end:g} % kept"


def test_layers_are_ordered_by_number_and_kinds_as_in_a_block() -> None:
    def matrix(layer: int | None, kind: str | None) -> dict[str, Any]:
        return {"layer": layer, "kind": kind, "kept_fraction": 0.5}

    pairs = ((10, "down"), (2, "q"), (None, None), (0, "strange"))
    heatmap = kept_heatmap(read({"matrices": [matrix(*pair) for pair in pairs]})).data[0]
    assert heatmap.y == ("0", "2", "10", "none")
    assert heatmap.x == ("q", "down", "other", "strange")
    assert heatmap.z[3][2] == 50.0


def test_matrices_in_one_cell_show_their_mean_weighted_by_parameters() -> None:
    shared = {"layer": 0, "kind": "expert", "d_in": 10}
    matrices = [
        {**shared, "d_out": 30, "kept_fraction": 0.2},
        {**shared, "d_out": 10, "kept_fraction": 1.0},
    ]
    heatmap = kept_heatmap(read({"matrices": matrices})).data[0]
    assert heatmap.z[0][0] == pytest.approx(40.0)


def test_cells_show_numbers_while_there_is_room(result: Result) -> None:
    heatmap = kept_heatmap(read(result)).data[0]
    assert heatmap.text[0][0] == "34"
    assert heatmap.texttemplate and heatmap.showscale
    result["matrices"] = [dict(result["matrices"][0], layer=layer) for layer in range(80)]
    heatmap = kept_heatmap(read(result)).data[0]
    assert not heatmap.texttemplate and heatmap.showscale


@pytest.mark.parametrize(
    ("kept", "text"), [(0.0, "0"), (0.004, "0.4"), (0.0994, "9.9"), (0.0996, "10"), (1.0, "100")]
)
def test_small_numbers_of_a_cell_have_one_decimal(result: Result, kept: float, text: str) -> None:
    result["matrices"] = [dict(result["matrices"][0], kept_fraction=kept)]
    assert kept_heatmap(read(result)).data[0].text[0][0] == text


def test_the_spectrum_has_a_line_per_kind_without_the_zero_at_full_rank(result: Result) -> None:
    result["spectrum"] = {"q": {"rank_fraction": [0.0, 0.5, 1.0], "energy_left": [1.0, 0.25, 0.0]}}
    figure = spectrum(read(result))
    (line,) = figure.data
    assert (list(line.x), list(line.y)) == ([0.0, 50.0], [100.0, 25.0])
    assert figure.layout.yaxis.type == "log"


@pytest.mark.parametrize("make", [accuracy_curve, kept_heatmap, spectrum])
def test_a_figure_of_nothing_is_none(make: Any) -> None:
    assert make(read({})) is None


def test_figures_with_nothing_to_show_are_left_out(result: Result) -> None:
    result["spectrum"] = {}
    assert "spectrum" not in figures(result)
    assert figures({}) == {}


@pytest.mark.parametrize("decades", [1, 2, 3, 6, 7, 13])
def test_a_logarithmic_axis_has_few_ticks_that_enclose_the_values(decades: int) -> None:
    values = [10.0**-decades * 1.5, 0.9]
    axis = log_axis([0.0, *values])
    ticks, texts = axis["tickvals"], axis["ticktext"]
    assert 3 <= len(ticks) == len(texts) == len(set(texts)) <= 8
    assert min(ticks) <= values[0] and max(ticks) >= 0.1
    assert not any("000" in text.replace("0.000", "", 1) for text in texts)


def test_values_that_are_near_one_another_leave_the_ticks_to_plotly() -> None:
    assert "tickvals" not in log_axis([20.0, 25.0]) and "tickvals" not in log_axis([])


def test_names_are_escaped_in_figures(result: Result) -> None:
    result["matrices"][0]["kind"] = '<a href="https://example.org">'
    assert not any("<" in kind for kind in kept_heatmap(read(result)).data[0].x)


def test_refitted_genomes_have_their_own_symbols(result: Result) -> None:
    curve = result["search"]["curve"]
    for point in curve:
        point["chosen"] = False
    curve.append(
        curve[-1]
        | {"kept_fraction": 0.04, "refitted": True, "feasible": True, "chosen": True, "whole": True}
    )
    figure = accuracy_curve(read(result))
    (refitted,) = (trace for trace in figure.data if (trace.name or "").startswith("refitted"))
    assert list(refitted.x) == [4.0]
    assert "chosen, 4.0" in next(t.name for t in figure.data if "chosen" in (t.name or ""))
