"""Genomes that were decided early: marks at the edges of the figure of the accuracies.

The accuracy that is stored for them counts every row that was not scored as right. This bound can
be far above the truth, so a mark shows the size of a genome and the outcome, and no accuracy.
"""

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from sieve.report.genomes import is_line, sizes
from sieve.report.result import EvaluatedGenome, Result
from sieve.report.style import ACCENT, NEUTRAL, WARNING
from sieve.report.values import count

WITHIN, BEYOND, LEFT = "within it, decided early", "beyond it, decided early", "discarded early"
_PAD = 0.08  # of the range of the accuracies, from their edge to the marks


def outcome(result: Result, point: EvaluatedGenome) -> str:
    """On which side of the tolerance a genome is that was decided early, if that was decided.

    A search by divergence discards genomes whose margin is still open.
    """
    if point.margin is None:
        return LEFT
    if point.margin < 0:
        return BEYOND
    return WITHIN if is_line(result) else LEFT


def add_early(
    figure: go.Figure,
    result: Result,
    points: Sequence[EvaluatedGenome],
    heights: Sequence[float],
) -> None:
    """Add the marks, and the range of the axis of accuracies that leaves them room.

    Args:
        points: the genomes that were decided early.
        heights: all values that the axis must show, as they are drawn.
    """
    log = result.relative
    shown = [math.log10(height) if log else height for height in heights if height > 0 or not log]
    if not points or not shown:
        return
    pad = _PAD * (max(shown) - min(shown)) or (0.01 if log else 1.0)
    bottom, top = min(shown) - pad, max(shown) + pad
    better, worse = (bottom, top) if result.relative else (top, bottom)
    for name, edge, color in (
        (WITHIN, better, ACCENT),
        (BEYOND, worse, WARNING),
        (LEFT, worse, NEUTRAL),
    ):
        group = [point for point in points if outcome(result, point) == name]
        if group:
            height = 10**edge if log else edge
            symbol = "triangle-up-open" if edge == top else "triangle-down-open"
            figure.add_trace(_marks(group, name, height, symbol, color))
    figure.update_yaxes(range=[bottom - pad / 2, top + pad / 2])


def _marks(
    points: Sequence[EvaluatedGenome], name: str, height: float, symbol: str, color: str
) -> go.Scatter:
    marker = {"symbol": symbol, "color": color, "size": 9, "line": {"color": color, "width": 1.5}}
    return go.Scatter(
        x=sizes(points),
        y=[height] * len(points),
        mode="markers",
        name=name,
        marker=marker,
        text=[f"{count(point.examples_used)} rows" for point in points],
        hovertemplate=f"%{{x:.2f}} % kept<br>{name}, after %{{text}}<extra></extra>",
    )
