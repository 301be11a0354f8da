"""How figures of the documentation look: SVG that takes its colours and its font from the page.

Drawn in placeholder colours, which are then replaced by the custom properties of `site.css`, so
that one file is read on light and on dark ground.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

matplotlib.use("svg")  # Figures are files; no screen is looked for.

# Placeholders: name of the custom property -> a colour that nothing else has.
COLOURS = {
    name: f"#0102{number:02x}"
    for number, name in enumerate(
        ("ink", "muted", "line", "accent", "amber", "green", "pink", "warning", "ground"), start=3
    )
}
INK, MUTED, LINE, ACCENT, AMBER, GREEN, PINK, WARNING, GROUND = COLOURS.values()
WIDTH = 4.6  # inches; small, so that text is large enough on a telephone
STYLE: Any = {
    "axes.edgecolor": MUTED,
    "axes.grid": True,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "figure.constrained_layout.use": True,
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "sieve",
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
}


@contextmanager
def styled() -> Iterator[None]:
    """The look of the site, for as long as something is drawn."""
    with plt.rc_context(STYLE):
        yield


def axes(height: float = 2.9, columns: int = 1, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """An empty figure, `height` in inches, and its axes in reading order."""
    figure, grid = plt.subplots(rows, columns, figsize=(WIDTH, height), squeeze=False)
    return figure, list(grid.flat)


def without_frame(one: Axes) -> None:
    """Leave an axes' frame, grid and ticks out."""
    one.grid(False)
    one.spines[:].set_visible(False)
    one.tick_params(length=0)


def to_svg(figure: Figure, name: str) -> str:
    """The figure as SVG to stand within a page: no size, own ids, the page's colours and font."""
    held = io.StringIO()
    figure.savefig(held, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    svg = held.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r'xlink:href="#([^"]+)"', rf'xlink:href="#{name}-\1"', svg)
    svg = re.sub(r"<defs>\s*<style.*?</defs>\s*", "", svg, count=1, flags=re.DOTALL)
    svg = svg.replace("'DejaVu Sans'", "inherit")
    for colour, value in COLOURS.items():
        svg = svg.replace(value, f"var(--figure-{colour})")
    return re.sub(r"\n\s*\n", "\n", svg)  # An empty line would end the HTML block of Markdown.
