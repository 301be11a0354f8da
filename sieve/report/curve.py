"""Accuracy against size: every evaluated genome, the dense model and the tolerance."""

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from sieve.report.genomes import (
    LINES,
    genomes,
    is_feasible,
    is_whole,
    kept,
    most_examples,
    sizes,
    value,
)
from sieve.report.result import EvaluatedGenome, Result
from sieve.report.style import ACCENT, INK, NEUTRAL, WARNING, base_figure, label
from sieve.report.units import axis, limit, metric_name, metric_value, scale
from sieve.report.values import count, percent


def accuracy_curve(result: Result) -> go.Figure | None:
    """Accuracy on the selection split (percent) against kept prunable parameters (percent)."""
    curve = genomes(result)
    metric = label(metric_name(result))
    title = f"{metric.capitalize()} on the selection split against size"
    if not curve:
        return None
    figure = base_figure(title, height=420)
    add_reference_lines(figure, result, sizes(curve))
    line = [point for point in curve if not point.refitted]
    if result.search.method in LINES:
        figure.add_trace(_joining_line(line, scale(result)))
    everything = most_examples(curve)
    for name, refitted, feasible, symbol, color in (
        ("within the tolerance", False, True, "circle", ACCENT),
        ("beyond it", False, False, "triangle-down", WARNING),
        ("refitted, within", True, True, "diamond", ACCENT),
        ("refitted, beyond", True, False, "x", WARNING),
    ):
        group = [
            point for point in curve if (point.refitted, is_feasible(point)) == (refitted, feasible)
        ]
        if group:
            figure.add_trace(_markers(group, name, symbol, color, everything, scale(result)))
    chosen = [point for point in curve if point.chosen]
    if chosen:
        figure.add_trace(chosen_ring(chosen, scale=scale(result)))
    figure.update_yaxes(title_text=f"{metric.capitalize()} on the<br>selection split{axis(result)}")
    if result.relative:  # A pruned model's perplexity can be many times the dense model's.
        figure.update_yaxes(type="log", dtick="D2", tickformat="~g")
    size_axis(figure, sizes(curve))
    return figure


def add_reference_lines(figure: go.Figure, result: Result, percents: Sequence[float]) -> None:
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
                line={"color": color, "dash": dash, "width": 1.5},
                hoverinfo="skip",
            )
        )


def _joining_line(curve: Sequence[EvaluatedGenome], scale: float) -> go.Scatter:
    return go.Scatter(
        x=sizes(curve),
        y=[scale * (value(point, "accuracy") or 0) for point in curve],
        mode="lines",
        line={"color": ACCENT, "width": 1},
        opacity=0.5,
        hoverinfo="skip",
        showlegend=False,
    )


def _markers(
    points: Sequence[EvaluatedGenome],
    name: str,
    symbol: str,
    color: str,
    everything: float,
    scale: float,
) -> go.Scatter:
    """Evaluated genomes; symbols are open if they were scored on fewer rows than `everything`."""
    stopped = [not is_whole(point, everything) for point in points]
    return go.Scatter(
        x=sizes(points),
        y=[scale * (value(point, "accuracy") or 0) for point in points],
        mode="markers",
        name=name + (" (open: stopped early)" if any(stopped) else ""),
        marker={
            "symbol": [f"{symbol}-open" if early else symbol for early in stopped],
            "color": color,
            "size": 9,
            "line": {"width": 1.5, "color": color},
        },
        text=[f"{count(point.examples_used)} examples" for point in points],
        hovertemplate="%{x:.2f} % kept<br>%{y:.4g}<br>%{text}<extra></extra>",
    )


def chosen_ring(
    chosen: Sequence[EvaluatedGenome], key: str = "accuracy", scale: float = 100
) -> go.Scatter:
    """A ring around the chosen genome, at `scale` times its value of `key`."""
    return go.Scatter(
        x=sizes(chosen),
        y=[scale * (value(point, key) or 0) for point in chosen],
        mode="markers",
        name=f"chosen, {percent(kept(chosen[0]))} kept",
        marker={"symbol": "circle-open", "size": 19, "color": INK, "line": {"width": 2}},
        hoverinfo="skip",
    )


def size_axis(figure: go.Figure, percents: Sequence[float]) -> None:
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
