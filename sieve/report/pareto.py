"""Pareto fronts of a search: size against accuracy, and size against divergence.

A genome is on the front when no other genome is both smaller and better. Genomes that were dropped
early have their own symbol, as their values are bounds.
"""

from collections.abc import Sequence

import plotly.graph_objects as go

from sieve.report.curve import add_reference_lines, chosen_ring, size_axis
from sieve.report.genomes import (
    genomes,
    is_feasible,
    is_whole,
    most_examples,
    pareto_front,
    sizes,
    value,
)
from sieve.report.result import EvaluatedGenome, Result
from sieve.report.style import ACCENT, INK, NEUTRAL, WARNING, base_figure, label
from sieve.report.units import axis, metric_name, scale
from sieve.report.values import count


def accuracy_front(result: Result) -> go.Figure | None:
    """Accuracy on the rows of the search (percent) against kept prunable parameters (percent)."""
    points = genomes(result)
    metric = label(metric_name(result)).capitalize()
    title = f"{metric} on the selection split against size: the Pareto front"
    if not points:
        return None
    figure = base_figure(title, height=460)
    add_reference_lines(figure, result, sizes(points))
    _add_genomes(figure, points, "accuracy", scale(result), ("triangle-down-open", "at most"))
    _add_front(figure, points, "accuracy", scale(result), not result.relative)
    figure.update_yaxes(title_text=f"{metric} on the<br>selection split{axis(result)}")
    size_axis(figure, sizes(points))
    return figure


def divergence_front(result: Result) -> go.Figure | None:
    """Divergence from the dense model's answers (nats, log) against kept parameters (percent)."""
    title = "Divergence from the dense model's answers against size"
    # The dense model has divergence 0, which a logarithmic axis cannot show.
    points = [point for point in genomes(result, "divergence") if (point.divergence or 0) > 0]
    if not points:
        return None
    figure = base_figure(title, height=460)
    _add_genomes(figure, points, "divergence", 1, ("triangle-up-open", "at least"))
    _add_front(figure, points, "divergence", 1)
    figure.update_yaxes(
        title_text="Divergence, nats<br>(logarithmic)", type="log", dtick="D2", tickformat="~g"
    )
    size_axis(figure, sizes(points))
    return figure


def _add_genomes(
    figure: go.Figure,
    points: Sequence[EvaluatedGenome],
    key: str,
    scale: float,
    bound: tuple[str, str],
) -> None:
    """All genomes as faint marks, by group.

    Args:
        bound: for genomes that were dropped early, a symbol and "at most" or "at least".
    """
    full, (symbol, side) = most_examples(points), bound
    groups: dict[str, list[EvaluatedGenome]] = {}
    for point in points:
        groups.setdefault(_group(point, full), []).append(point)
    for name, shown, shape, color, opacity in (
        ("within", "within the tolerance", "circle", ACCENT, 0.35),
        ("beyond", "beyond it", "x-thin-open", WARNING, 0.5),
        ("dropped", f"dropped early: {key} {side}", symbol, NEUTRAL, 0.5),
        ("refitted", "refitted, on more rows", "diamond-open", ACCENT, 0.7),
    ):
        if name in groups:
            marker = {"symbol": shape, "color": color, "size": 7, "line": {"color": color}}
            trace = _scatter(groups[name], key, scale, shown)
            figure.add_trace(trace.update(mode="markers", marker=marker, opacity=opacity))


def _group(point: EvaluatedGenome, full: float) -> str:
    if point.refitted:
        return "refitted"
    if not is_whole(point, full):
        return "dropped"
    return "within" if is_feasible(point) else "beyond"


def _add_front(
    figure: go.Figure,
    points: Sequence[EvaluatedGenome],
    key: str,
    scale: float,
    larger: bool = False,
) -> None:
    """The Pareto front as a line of steps, and a ring around the chosen genome."""
    best = pareto_front(points, key, larger_is_better=larger)
    if best:
        line = _scatter(best, key, scale, "Pareto front: none is smaller and better")
        # Steps, because between two sizes the smaller genome is the best known.
        line.update(mode="lines+markers", line={"color": INK, "width": 1.5, "shape": "hv"})
        figure.add_trace(line.update(marker={"color": INK, "size": 5}))
    if chosen := [point for point in points if point.chosen]:
        figure.add_trace(chosen_ring(chosen, key, scale))


def _scatter(points: Sequence[EvaluatedGenome], key: str, scale: float, name: str) -> go.Scatter:
    shown = "%{y:.3g} nats"
    if key == "accuracy":
        shown = "%{y:.1f} %" if scale == 100 else "%{y:.2f}"
    return go.Scatter(
        x=sizes(points),
        y=[scale * (value(point, key) or 0) for point in points],
        name=name,
        text=[f"{count(point.examples_used)} rows" for point in points],
        hovertemplate=f"%{{x:.2f}} % kept<br>{shown}<br>%{{text}}<extra></extra>",
    )
