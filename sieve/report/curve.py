"""Accuracy and divergence against size: every evaluated genome, the best ones, the tolerance.

The genomes of a search along a line are joined. Any other search has a Pareto front: no genome is
both smaller and better than one on it. The accuracy of a genome that was decided early is not
drawn, only its size; its divergence is a lower bound and has a symbol of its own.
"""

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from sieve.report.early import add_early
from sieve.report.genomes import (
    genomes,
    is_line,
    kept,
    pareto_front,
    sizes,
    value,
)
from sieve.report.result import EvaluatedGenome, Result
from sieve.report.style import ACCENT, INK, NEUTRAL, WARNING, base_figure, label, log_axis
from sieve.report.units import axis, limit, metric_name, metric_value, scale
from sieve.report.values import count, percent

FEW = 40  # marks that hide one another so rarely that they need not be see-through


def accuracy_curve(result: Result) -> go.Figure | None:
    """Accuracy on the selection split (percent) against kept prunable parameters (percent)."""
    metric = label(metric_name(result)).capitalize()
    points = genomes(result)
    if not points:
        return None
    figure = base_figure(f"{metric} on the selection split against size", height=460)
    _add_reference_lines(figure, result, sizes(points))
    early = [point for point in points if point.whole is False and not point.chosen]
    _add_genomes(figure, result, [p for p in points if p not in early], "accuracy")
    _label_sizes(figure, sizes(points))
    figure.update_yaxes(title_text=f"{metric} on the<br>selection split{axis(result)}")
    if result.relative:  # A pruned model's perplexity can be many times the dense model's.
        shown = [point.accuracy or 0 for point in points if point not in early]
        figure.update_yaxes(log_axis(shown))
    add_early(figure, result, early, [y for trace in figure.data for y in trace.y])
    return figure


def trained_sizes(result: Result) -> go.Figure | None:
    """Accuracy (percent) against kept parameters (percent), before and after a short training."""
    search = result.recovery and result.recovery.search
    if not search or not search.attempts:
        return None
    metric = label(metric_name(result)).capitalize()
    figure = base_figure(f"{metric} before and after training against size", height=420)
    tried = sorted(search.attempts, key=lambda attempt: -(attempt.kept_fraction or 0))
    percents = [100 * (attempt.kept_fraction or 0) for attempt in tried]
    for name, values, color in (
        ("pruned", [attempt.accuracy_before for attempt in tried], NEUTRAL),
        ("trained", [attempt.accuracy for attempt in tried], ACCENT),
    ):
        heights = [scale(result) * (value or 0) for value in values]
        trace = go.Scatter(x=percents, y=heights, mode="lines+markers", name=name)
        figure.add_trace(trace.update(line={"color": color, "width": 1.5}))
    figure.update_yaxes(title_text=f"{metric} on<br>held-out rows{axis(result)}")
    _label_sizes(figure, percents)
    return figure


def divergence_front(result: Result) -> go.Figure | None:
    """Divergence from the dense model's answers (nats, log) against kept parameters (percent)."""
    # The dense model has divergence 0, which a logarithmic axis cannot show.
    points = [point for point in genomes(result, "divergence") if (point.divergence or 0) > 0]
    if not points or is_line(result):
        return None
    figure = base_figure("Divergence from the dense model's answers against size", height=460)
    _add_genomes(figure, result, points, "divergence")
    _label_sizes(figure, sizes(points))
    figure.update_yaxes(log_axis([point.divergence or 0 for point in points]))
    figure.update_yaxes(title_text="Divergence, nats<br>(logarithmic)")
    return figure


def _add_reference_lines(figure: go.Figure, result: Result, percents: Sequence[float]) -> None:
    """The dense model's accuracy and the limit of the tolerance, over the sizes in percent."""
    baseline, tolerance = result.search.baseline_accuracy, result.tolerance
    if baseline is None:
        return
    ends = [min(percents), max(*percents, 100.0)]
    lines = [("dense model", baseline, "solid", NEUTRAL)]
    if tolerance is not None:
        lines.append(("tolerance", limit(result, baseline, tolerance), "dash", WARNING))
    for name, height, dash, color in lines:
        figure.add_trace(
            go.Scatter(
                x=ends,
                y=[scale(result) * height] * 2,
                mode="lines",
                name=f"{name}, {metric_value(result, height)}",
                line={"color": color, "dash": dash, "width": 2},
                hoverinfo="skip",
            )
        )


def _add_genomes(
    figure: go.Figure, result: Result, points: Sequence[EvaluatedGenome], key: str
) -> None:
    """All genomes by group, the best ones, and a ring around the chosen one."""
    larger_is_better = key == "accuracy" and not result.relative
    groups: dict[str, list[EvaluatedGenome]] = {}
    for point in points:
        groups.setdefault(_group(point), []).append(point)
    for group, suffix, shape, color in (
        ("within the tolerance", "", "circle", ACCENT),
        ("beyond it", "", "x-thin-open", WARNING),
        ("decided early", ": divergence at least", "triangle-up-open", NEUTRAL),
        ("refitted, within the tolerance", "", "diamond-open", ACCENT),
        ("refitted, beyond it", "", "diamond-open", WARNING),
    ):
        if group in groups:
            trace = _scatter(result, groups[group], key, group + suffix)
            marker = {"symbol": shape, "color": color, "size": 9}
            marker["line"] = {"color": color, "width": 2 if "open" in shape else 0}
            opacity = 1.0 if len(groups[group]) <= FEW else 0.75
            figure.add_trace(trace.update(mode="markers", marker=marker, opacity=opacity))
    if is_line(result):
        scored = [point for point in points if not point.refitted and point.whole is not False]
        line = _scatter(result, scored, key, "")
        line.update(mode="lines", line={"color": ACCENT, "width": 1.5})
        figure.add_trace(line.update(hoverinfo="skip", showlegend=False))
    elif best := pareto_front(points, key, larger_is_better):
        line = _scatter(result, best, key, "Pareto front: none is smaller and better")
        # Steps, because between two sizes the smaller genome is the best known.
        line.update(mode="lines+markers", line={"color": INK, "width": 1.5, "shape": "hv"})
        figure.add_trace(line.update(marker={"color": INK, "size": 5}))
    if chosen := [point for point in points if point.chosen]:
        ring = _scatter(result, chosen, key, f"chosen, {percent(kept(chosen[0]))} kept")
        marker = {"symbol": "circle-open", "size": 19, "color": INK, "line": {"width": 2}}
        figure.add_trace(ring.update(mode="markers", marker=marker, hoverinfo="skip"))


def _group(point: EvaluatedGenome) -> str:
    if point.whole is False:
        return "decided early"
    within = "within the tolerance" if point.feasible else "beyond it"
    return f"refitted, {within}" if point.refitted else within


def _scatter(result: Result, points: Sequence[EvaluatedGenome], key: str, name: str) -> go.Scatter:
    factor, shown = 1.0, "%{y:.3g} nats"
    if key == "accuracy":
        factor, shown = scale(result), "%{y:.2f}" if result.relative else "%{y:.1f} %"
    return go.Scatter(
        x=sizes(points),
        y=[factor * (value(point, key) or 0) for point in points],
        name=name,
        text=[f"{count(point.examples_used)} rows" for point in points],
        hovertemplate=f"%{{x:.2f}} % kept<br>{shown}<br>%{{text}}<extra></extra>",
    )


def _label_sizes(figure: go.Figure, percents: Sequence[float]) -> None:
    """Logarithmic if the smallest genome keeps less than 10 % (but not 0), else linear."""
    smallest = min(percents)
    figure.update_xaxes(title_text="Prunable parameters kept, %")
    if 0 < smallest < 10:
        ticks = [m * 10.0**e for e in range(-3, 3) for m in (1, 2, 5)]
        shown = [t for t in ticks if smallest / 2 <= t <= 100]
        low, high = math.log10(0.9 * smallest), math.log10(110)
        figure.update_xaxes(
            type="log", tickvals=shown, ticktext=[f"{t:g}" for t in shown], range=[low, high]
        )
        figure.update_xaxes(title_text="Prunable parameters kept, %<br>(logarithmic)")
    else:
        figure.update_xaxes(range=[-2, max(*percents, 100.0) + 2])
