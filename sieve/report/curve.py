"""Accuracy against size: every genome the search evaluated, the dense line, the tolerance line."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from sieve.report.genomes import LINES, genomes, is_feasible, is_whole, most_examples
from sieve.report.style import ACCENT, INK, NEUTRAL, WARNING, base_figure, empty_figure, label
from sieve.report.units import axis, is_relative, limit, metric_name, metric_value, scale
from sieve.report.values import count, look, measure, percent


def accuracy_curve(result: Mapping[str, Any]) -> go.Figure:
    """Accuracy on the selection split (percent) against kept prunable parameters (percent)."""
    curve = genomes(result)
    metric = label(metric_name(result))
    title = f"{metric.capitalize()} on the selection split against size"
    if not curve:
        return empty_figure(title, "The search evaluated no genome.")
    figure = base_figure(title, height=420)
    add_reference_lines(figure, result, [point["kept_fraction"] for point in curve])
    line = [point for point in curve if not point.get("refitted")]
    if look(result, "search.method") in LINES:
        figure.add_trace(_joining_line(line, scale(result)))
    full = most_examples(curve)
    for name, refitted, feasible, symbol, colour in (
        ("within the tolerance", False, True, "circle", ACCENT),
        ("beyond it", False, False, "triangle-down", WARNING),
        ("refitted, within", True, True, "diamond", ACCENT),
        ("refitted, beyond", True, False, "x", WARNING),
    ):
        group = [
            point
            for point in curve
            if (bool(point.get("refitted")), is_feasible(point)) == (refitted, feasible)
        ]
        if group:
            figure.add_trace(_markers(group, name, symbol, colour, full, scale(result)))
    chosen = [point for point in curve if point.get("chosen")]
    if chosen:
        figure.add_trace(chosen_ring(chosen, scale=scale(result)))
    figure.update_yaxes(title_text=f"{metric.capitalize()} on the<br>selection split{axis(result)}")
    if is_relative(result):  # Of a pruned model it may be many times that of the dense one.
        figure.update_yaxes(type="log", dtick="D2", tickformat="~g")
    size_axis(figure, [point["kept_fraction"] for point in curve])
    return figure


def add_reference_lines(
    figure: go.Figure, result: Mapping[str, Any], kept: Sequence[float]
) -> None:
    """The dense model's accuracy and the tolerance below it, over the sizes that were tried."""
    baseline = measure(result, "search.baseline_accuracy")
    tolerance = measure(result, "tolerance")
    if baseline is None:
        return
    ends = [100 * min(kept), 100 * max(*kept, 1.0)]
    lines = [("dense model", baseline, "solid", NEUTRAL)]
    if tolerance is not None:
        lines.append(("tolerance", limit(result, baseline, tolerance), "dash", WARNING))
    for name, height, dash, colour in lines:
        figure.add_trace(
            go.Scatter(
                x=ends,
                y=[scale(result) * height] * 2,
                mode="lines",
                name=f"{name}, {metric_value(result, height)}",
                line={"color": colour, "dash": dash, "width": 1.5},
                hoverinfo="skip",
            )
        )


def _joining_line(curve: Sequence[Mapping[str, Any]], scale: float) -> go.Scatter:
    return go.Scatter(
        x=[100 * point["kept_fraction"] for point in curve],
        y=[scale * point["accuracy"] for point in curve],
        mode="lines",
        line={"color": ACCENT, "width": 1},
        opacity=0.5,
        hoverinfo="skip",
        showlegend=False,
    )


def _markers(
    points: Sequence[Mapping[str, Any]], name: str, symbol: str, colour: str, full: float,
    scale: float,
) -> go.Scatter:  # fmt: skip
    """Evaluated points; open symbols where the search stopped before all `full` examples."""
    stopped = [not is_whole(point, full) for point in points]
    return go.Scatter(
        x=[100 * point["kept_fraction"] for point in points],
        y=[scale * point["accuracy"] for point in points],
        mode="markers",
        name=name + (" (open: stopped early)" if any(stopped) else ""),
        marker={
            "symbol": [f"{symbol}-open" if early else symbol for early in stopped],
            "color": colour,
            "size": 9,
            "line": {"width": 1.5, "color": colour},
        },
        text=[f"{count(point.get('examples_used'))} examples" for point in points],
        hovertemplate="%{x:.2f} % kept<br>%{y:.4g}<br>%{text}<extra></extra>",
    )


def chosen_ring(
    chosen: Sequence[Mapping[str, Any]], key: str = "accuracy", scale: float = 100
) -> go.Scatter:
    """A ring around the winner, at its size (percent) and `scale` times the number under `key`."""
    return go.Scatter(
        x=[100 * point["kept_fraction"] for point in chosen],
        y=[scale * point[key] for point in chosen],
        mode="markers",
        name=f"chosen, {percent(chosen[0]['kept_fraction'])} kept",
        marker={"symbol": "circle-open", "size": 19, "color": INK, "line": {"width": 2}},
        hoverinfo="skip",
    )


def size_axis(figure: go.Figure, kept: Sequence[float]) -> None:
    """Logarithmic when the search went far down (a zero cannot be drawn so), else from zero."""
    figure.update_xaxes(title_text="Prunable parameters kept, %")
    if 0 < min(kept) < 0.1:
        ticks = [m * 10.0**e for e in range(-3, 3) for m in (1, 2, 5)]
        shown = [t for t in ticks if 50 * min(kept) <= t <= 100]
        low, high = math.log10(90 * min(kept)), math.log10(110)
        figure.update_xaxes(
            type="log", tickvals=shown, ticktext=[f"{t:g}" for t in shown], range=[low, high]
        )
        figure.update_xaxes(title_text="Prunable parameters kept, %<br>(logarithmic)")
    else:
        figure.update_xaxes(range=[-2, 100 * max(*kept, 1.0) + 2])
