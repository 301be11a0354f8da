"""How figures of the experiments look."""

from matplotlib import pyplot


def plain() -> None:
    """Text as text, few lines, the same file from the same numbers."""
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
