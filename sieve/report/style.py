"""The style of all figures: a palette that is safe for color-blind readers, and plain axes.

Palette: Okabe & Ito, "Color Universal Design" (2008), without yellow, which is too pale for print.
Lines also differ by dash and points by shape, so that no meaning depends on color alone.
"""

import math
from collections.abc import Sequence
from html import escape

import plotly.graph_objects as go

INK, MUTED, GRID = "#1b2733", "#5b6875", "#e3e8ed"
ACCENT, WARNING, NEUTRAL = "#0072b2", "#d55e00", "#8a949e"
PALETTE = (ACCENT, "#e69f00", "#009e73", "#cc79a7", WARNING, "#56b4e9", INK)
DASHES = ("solid", "dash", "dot", "dashdot")
FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
FEW_FOLD = 5  # between values that are closer than this, plotly places the ticks
MOST_DECADES = 6  # between the first and the last of several powers of ten
_PALE, _DEEP = (240, 246, 250), (4, 74, 120)


def base_figure(title: str, height: int) -> go.Figure:
    """A figure without data. `height` is in pixels; the width follows the container."""
    return go.Figure(
        layout={
            "template": {"layout": plain_layout()},
            "title": {"text": title, "x": 0, "xref": "paper", "font": {"size": 16}},
            "height": height,
            "margin_t": 48,
        }
    )


def plain_layout() -> go.Layout:
    """Fonts, axes, margins and legend of all figures, as the layout of a template."""
    axis = {
        "automargin": True,
        "gridcolor": GRID,
        "linecolor": MUTED,
        "showline": True,
        "tickfont": {"color": MUTED},
        "title": {"standoff": 10},
        "zeroline": False,
    }
    return go.Layout(
        font={"family": FONTS, "size": 13, "color": INK},
        colorway=PALETTE,
        paper_bgcolor="rgba(0,0,0,0)",  # the page's ground, light or dark
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 8, "r": 16, "t": 16, "b": 8},
        hoverlabel={"bgcolor": "white", "font": {"color": INK}, "align": "left"},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        xaxis=axis,
        yaxis=axis,
    )


def untitled(figure: go.Figure) -> go.Figure:
    """The figure without its title, for a page with headings."""
    headings = figure.layout.annotations  # headings above side-by-side maps
    return figure.update_layout(title=None, margin_t=56 if headings else 16)


def sequential_scale(steps: int = 32) -> list[tuple[float, str]]:
    """Pale to deep blue by the square root of 0..1, so that small kept fractions differ visibly."""
    scale = []
    for step in range(steps + 1):
        weight = step / steps
        channels = (round(a + (b - a) * weight) for a, b in zip(_PALE, _DEEP, strict=True))
        scale.append((weight**2, f"rgb({', '.join(map(str, channels))})"))
    return scale


def log_axis(values: Sequence[float]) -> dict[str, object]:
    """A logarithmic axis for these values, whose ticks are at most ten and so never overlap.

    Within two decades they are 1, 2 and 5 times powers of ten, beyond that powers of ten.
    """
    shown = [value for value in values if value > 0]
    if not shown or max(shown) < FEW_FOLD * min(shown):
        return {"type": "log", "nticks": 6, "tickformat": "~g"}
    low, high = math.floor(math.log10(min(shown))), math.ceil(math.log10(max(shown)))
    if high - low <= 2:
        ticks = [m * 10.0**e for e in range(low, high) for m in (1, 2, 5)] + [10.0**high]
        return {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
    exponents = range(low, high + 1, math.ceil((high - low) / MOST_DECADES))
    texts = [f"{10.0**e:g}" if -4 <= e <= 4 else f"10<sup>{e}</sup>" for e in exponents]
    return {"type": "log", "tickvals": [10.0**e for e in exponents], "ticktext": texts}


def label(text: str) -> str:
    """Text for a figure, escaped because plotly renders HTML in labels."""
    return escape(text, quote=False)
