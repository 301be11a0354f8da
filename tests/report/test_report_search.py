"""A genetic search on the page, in figures and in words: fronts, maps, and what was spent."""

import re
from typing import Any

import plotly.graph_objects as go
import pytest
from report.results import genetic_result

from sieve.report import figures
from sieve.report.curve import accuracy_curve, divergence_front
from sieve.report.evolution import bottleneck_map, generations
from sieve.report.genomes import front, genome_rows
from sieve.report.page import render_page
from sieve.report.result import read
from sieve.report.spent import confirmation, spent

Result = dict[str, Any]


@pytest.fixture
def result() -> Result:
    return genetic_result()


@pytest.fixture(autouse=True)
def small_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sieve.report.page.get_plotlyjs", lambda: "/* plotly.js */")


def named(figure: go.Figure, start: str) -> Any:
    return next(trace for trace in figure.data if (trace.name or "").startswith(start))


def words(page: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", page).replace("&nbsp;", " ").split())


def test_a_genetic_search_has_a_figure_of_accuracy_and_one_of_divergence(result: Result) -> None:
    assert list(figures(result)) == [
        "accuracy_curve",
        "divergence_front",
        "generations",
        "kept_heatmap",
        "bottlenecks",
        "spectrum",
    ]


@pytest.mark.parametrize("method", ["uniform", "waterfill"])
def test_a_search_along_a_line_has_its_curve_and_no_front(result: Result, method: str) -> None:
    result["search"]["method"] = method
    made = figures(result)
    assert "accuracy_curve" in made and "divergence_front" not in made
    assert not any("front" in trace.name for trace in made["accuracy_curve"].data)


def test_the_front_contains_the_genomes_that_no_other_beats(result: Result) -> None:
    line = named(accuracy_curve(read(result)), "Pareto front")
    assert (list(line.x), list(line.y)) == ([10.0, 20.0, 35.0, 100.0], [60.0, 79.0, 80.5, 81.0])
    line = named(divergence_front(read(result)), "Pareto front")
    assert (list(line.x), list(line.y)) == ([10.0, 20.0, 35.0], [0.9, 0.05, 0.01])


def test_fronts_are_drawn_as_steps(result: Result) -> None:
    for figure in (accuracy_curve(read(result)), divergence_front(read(result))):
        assert named(figure, "Pareto front").line.shape == "hv"


def test_of_equally_accurate_genomes_the_smallest_is_on_the_front() -> None:
    points = [{"kept_fraction": k, "accuracy": a} for k, a in ((0.3, 0.8), (0.2, 0.8), (0.2, 0.7))]
    assert front(points, "accuracy", larger_is_better=True) == [points[1]]


def test_genomes_dropped_early_are_groups_of_their_own(result: Result) -> None:
    figure = accuracy_curve(read(result))
    early = [trace for trace in figure.data if "early" in (trace.name or "")]
    assert sorted(x for trace in early for x in trace.x) == [5.0, 30.0]
    assert list(named(figure, "within").x) == [20.0, 35.0, 50.0, 100.0]
    assert list(named(figure, "beyond").x) == [10.0]
    figure = divergence_front(read(result))
    assert list(named(figure, "decided early: divergence at least").x) == [5.0, 30.0]


def test_refitted_genomes_are_not_on_the_front(result: Result) -> None:
    curve = result["search"]["curve"]
    curve.append(curve[2] | {"kept_fraction": 0.01, "refitted": True, "examples_used": 872})
    curve[2]["chosen"] = False
    for figure in (accuracy_curve(read(result)), divergence_front(read(result))):
        assert 1.0 not in named(figure, "Pareto front").x
        assert list(named(figure, "refitted").x) == [1.0]
        assert list(named(figure, "chosen, 1.0 %").x) == [1.0]


def test_the_winner_and_the_tolerance_are_marked(result: Result) -> None:
    figure = accuracy_curve(read(result))
    assert list(named(figure, "chosen, 35.0 % kept").y) == [80.5]
    assert set(named(figure, "tolerance, 79.0 %").y) == {79.0}
    assert list(named(divergence_front(read(result)), "chosen, 35.0 % kept").y) == [0.01]


def test_without_divergences_there_is_no_divergence_figure(result: Result) -> None:
    for point in result["search"]["curve"]:
        point["divergence"] = None
    assert "divergence_front" not in figures(result)
    assert divergence_front(read(result)) is accuracy_curve(read({})) is None


def test_generations_show_the_best_and_the_spread(result: Result) -> None:
    figure = generations(read(result))
    assert list(named(figure, "smallest").y) == [None, 20.0]
    assert list(named(figure, "median").y) == [40.0, 40.0]
    low, high = ([t.y[0] for t in figure.data if t.fill == f] for f in ("tonexty", None))
    assert (low[0], high[0]) == (30.0, 60.0)


def test_both_bottleneck_maps_have_the_same_layers_and_kinds(result: Result) -> None:
    alone, high = bottleneck_map(read(result)).data
    assert alone.x == high.x == ("q", "k", "v", "o", "gate", "up", "down")
    assert alone.y == high.y == ("0", "1", "2", "3", "4", "5")
    assert (alone.z[0][6], alone.z[1][6]) == (70.0, pytest.approx(10.0))
    assert (high.z[0][0], high.z[0][6]) == (90.0, 30.0)
    assert (alone.xaxis, high.xaxis) == ("x", "x2")
    assert [trace.showscale for trace in (alone, high)] == [True, False]


def test_a_removable_matrix_needs_nothing_although_its_bias_stays(
    result: Result,
) -> None:
    result["search"]["bottlenecks"][0] |= {"level": 0.0, "kept_fraction": 0.004}
    assert bottleneck_map(read(result)).data[0].z[0][0] == 0.0


def test_a_missing_bottleneck_map_is_left_out(result: Result) -> None:
    result["search"]["bottlenecks"] = None
    (high,) = bottleneck_map(read(result)).data
    assert high.z[0][0] == 90.0
    result["search"]["kept_high"] = {}
    assert "bottlenecks" not in figures(result)


def test_matrices_with_a_shared_factor_have_their_own_column(result: Result) -> None:
    name = "model.layers.2.self_attn.q_proj+k_proj+v_proj"
    result["search"]["bottlenecks"].append({"name": name, "kept_fraction": 0.25})
    alone = bottleneck_map(read(result)).data[0]
    assert alone.x == ("q", "k", "v", "q+k+v", "o", "gate", "up", "down")
    assert alone.z[2][3] == 25.0 and alone.z[1][3] is None


def test_the_cost_of_the_search_is_one_sentence(result: Result) -> None:
    assert spent(read(result)) == (
        "The search evaluated 7 genomes and scored 2,000 rows in 2 generations; 2 of them "
        "decided early; 1 came up again at no cost; the bottleneck map evaluated 126 genomes more."
    )
    assert spent(read({"search": {"evaluations": 1}})) == "The search evaluated 1 genome."
    assert spent(read({})) == ""
    refitted = {"kept_fraction": 0.1, "refitted": True, "whole": False}
    result["search"]["curve"].append(refitted)
    assert "; 2 of them decided early" in spent(read(result))


def test_the_confirmation_is_reported_in_two_sentences(result: Result) -> None:
    assert confirmation(read(result)) == (
        "Within the tolerance on 348 rows that the search had not used: 1 of 2 candidates. The "
        "chosen one keeps 35.0 %; the rows of the search alone would have given 20.0 %."
    )
    result["search"]["confirmation"] = None
    assert confirmation(read(result)) == ""


@pytest.mark.parametrize(
    ("feasible", "phrase"),
    [
        ((True,), "not used: 1 of 1 candidate. The chosen one keeps"),
        ((False, False), "not used: 0 of 2 candidates. The largest was chosen"),
    ],
)
def test_the_confirmation_says_whether_any_candidate_was_feasible(
    result: Result, feasible: tuple[bool, ...], phrase: str
) -> None:
    result["search"]["confirmation"]["tried"] = [{"feasible": x} for x in feasible]
    assert phrase in confirmation(read(result))


def test_the_page_lists_every_candidate_and_generation(result: Result) -> None:
    page = words(render_page(result))
    assert spent(read(result)) in page and confirmation(read(result)) in page
    assert "1 20.00 % 78.8 % −0.4 no 2 35.00 % 79.8 % 0.6 yes" in page
    assert "2 20.00 % 40.00 % 30.00 % to 60.00 % 2 2 1 12.5 s" in page
    assert "1 – 40.00 % 30.00 % to 60.00 % 2 3 0 12.5 s" in page


def test_figures_with_headings_have_a_top_margin(result: Result) -> None:
    assert "must keep, %" in bottleneck_map(read(result)).layout.annotations[0].text
    figure = render_page(result).partition('id="figure-bottlenecks"')[2].partition("</figure>")[0]
    assert '"t":56' in figure.replace(" ", "")


def test_a_line_search_without_confirmation_has_no_search_section(
    result: Result,
) -> None:
    assert "How the search went" in render_page(result)
    result["search"] |= {"method": "uniform", "generations": [], "confirmation": None}
    assert "How the search went" not in render_page(result)


@pytest.mark.parametrize(
    "key", "baseline_accuracy confirmation generations kept_high bottlenecks curve method".split()
)
def test_any_part_of_the_record_may_be_missing(result: Result, key: str) -> None:
    result["search"][key] = None
    assert "None" not in words(render_page(result))


def test_levels_of_a_genome_become_columns_of_its_row() -> None:
    points = [{"kept_fraction": 0.5, "levels": {"a.q_proj": 0.25}}, {"kept_fraction": 1.0}]
    assert genome_rows(points) == [
        {"kept_fraction": 0.5, "level/a.q_proj": 0.25},
        {"kept_fraction": 1.0},
    ]
