"""The style of the figures, and small reproducible SVG files."""

import re
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot

matplotlib.use("svg")  # Write figures to files; do not open a display.
FONT = "'DejaVu Sans', sans-serif"
STYLE = {
    "font.size": 8,
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "sieve",
    "svg.fonttype": "none",
    "figure.facecolor": "white",
}


def panels(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    """A figure and its panels in the style of all figures."""
    pyplot.rcParams.update(STYLE)
    size = (width * columns, height * rows)
    return pyplot.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)


def save(figure: Any, path: Path) -> None:
    """Write an SVG without what a browser can do without: a smaller file of the same look."""
    figure.savefig(path, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    pyplot.close(figure)
    text = re.sub(r"<!--.*?-->", "", path.read_text(), flags=re.DOTALL)
    text = re.sub(r"(\d\.\d\d)\d+", r"\1", text)
    text = re.sub(r' transform="rotate\(-0 [^)]*\)"', "", text)
    text = text.replace(f"; font-family: {FONT}", "").replace(
        "<svg ", f'<svg font-family="{FONT}" ', 1
    )
    path.write_text(re.sub(r"\s*\n\s*", "\n", text))
