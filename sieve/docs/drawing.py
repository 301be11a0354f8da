"""The look of the figures: SVG that takes its colors and its font from the page.

Figures are drawn in placeholder colors. `to_svg` replaces these with the custom properties of
`site.css`, so that the same file suits a light and a dark page.
"""

import io
import re
from typing import Any

import matplotlib
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

matplotlib.use("svg")  # write files, never look for a screen

NAMES = ("ink", "muted", "line", "accent", "amber", "green", "warning")
# Custom property of site.css -> its placeholder, a color that nothing else uses.
COLORS = {name: f"#0102{number:02x}" for number, name in enumerate(NAMES, start=3)}
INK, MUTED, LINE, ACCENT, AMBER, GREEN, WARNING = COLORS.values()
WIDTH = 4.6  # inches; small, so that the text is large enough on a phone
STYLE: dict[Any, object] = {
    "axes.edgecolor": MUTED,
    "axes.grid": True,
    "axes.labelcolor": MUTED,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "grid.color": LINE,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "sieve",
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
}


def new_figure(height: float = 2.9) -> tuple[Figure, Axes]:
    """An empty figure of `height` inches, and its panel."""
    figure, panel = plt.subplots(figsize=(WIDTH, height))
    return figure, panel


def to_svg(figure: Figure, name: str) -> str:
    """The figure as SVG for use inside a page; `name` is the prefix of all its ids."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\1{name}-", svg)
    svg = re.sub(r"<defs>\s*<style.*?</defs>\s*", "", svg, count=1, flags=re.DOTALL)
    svg = svg.replace("'DejaVu Sans'", "inherit")
    for color, placeholder in COLORS.items():
        svg = svg.replace(placeholder, f"var(--figure-{color})")
    return re.sub(r"\n\s*\n", "\n", svg)  # in Markdown an empty line would end the HTML block
