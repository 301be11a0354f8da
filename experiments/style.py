"""The style of the figures."""

from matplotlib import pyplot


def plain() -> None:
    """Set text as text, few lines, and reproducible files."""
    pyplot.rcParams.update(
        {
            "font.size": 8,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "svg.hashsalt": "sieve",
            "font.family": "sans-serif",
            "svg.fonttype": "none",
            "figure.facecolor": "white",
        }
    )
