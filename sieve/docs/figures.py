"""Figures of the documentation, drawn anew whenever it is built.

python -m sieve.docs.figures FOLDER    # writes them there, to be looked at
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from sieve.docs import plots
from sieve.docs.drawing import styled, to_svg
from sieve.docs.subject import CALIBRATED, REFITTED, SCORED, Subject

MODEL = "The embedded model on `almanac_medicine`"
ONE = "One matrix of the embedded model, `gate` of layer 3"


@dataclass(frozen=True)
class Drawing:
    """A figure: what draws it, what stands below it, and what it shows to who cannot see it."""

    draw: Callable[[Subject], Figure]
    caption: str
    alt: str


FIGURES = {
    "answer": Drawing(
        plots.answer,
        f"{MODEL}: {SCORED} selection rows, moments of {CALIBRATED} calibration rows, no refit. "
        "Computed while this page was built.",
        "Accuracy against the kept fraction. The curve of Sieve stays near the dense model's "
        "accuracy down to a few percent; that of a plain SVD falls much earlier.",
    ),
    "splits": Drawing(
        plots.splits,
        "240 rows of one file, in their order, by the split that a hash of each prompt puts it in.",
        "A grid of squares in three colours: most are calibration, some selection, some test.",
    ),
    "spectrum": Drawing(
        plots.spectrum,
        f"{ONE}: the share that the directions beyond a rank hold, by what a projection looks at.",
        "Three falling curves. That of the weights alone falls slowest, that of what the answers "
        "care for fastest.",
    ),
    "errors": Drawing(
        plots.errors,
        f"{ONE}: error of its outputs by rank, on rows that were not calibrated on.",
        "Three falling curves of relative output error by rank; that of the output projection is "
        "the lowest.",
    ),
    "storage": Drawing(
        plots.storage,
        "What a rank costs in the two storage forms, and the rank at which each costs as much as "
        "the dense matrix.",
        "A straight line for plain storage, and a curve below it for pivoted storage that reaches "
        "the dense size at full rank.",
    ),
    "nested": Drawing(
        plots.nested,
        f"{ONE}: a corner of 40 × 40 weights at four ranks, cut from the same factors.",
        "Four panels of red and blue cells, from a few coarse stripes at rank 4 to full detail.",
    ),
    "levels": Drawing(
        plots.levels,
        f"{MODEL}: the level of every matrix in percent, water-filled to two budgets. 0: the "
        "matrix is gone but for its mean output.",
        "Two heat maps of layers by kinds of matrices. Levels differ widely, and at two percent "
        "many matrices are at 0.",
    ),
    "frontier": Drawing(
        plots.frontier,
        f"{MODEL}: the rise of the loss that the energies left out foretell, for one level in all "
        "matrices and for ranks that are water-filled.",
        "Two curves against the kept fraction; the water-filled one is lower everywhere.",
    ),
    "refit": Drawing(
        plots.refitting,
        f"{MODEL}: mean divergence on {SCORED} selection rows, the same ranks before and after "
        f"they are solved again on what the pruned model sees of {REFITTED} calibration rows.",
        "For two kept fractions two points each; the refitted one is nearer to the dense model.",
    ),
    "interval": Drawing(
        plots.interval,
        "Four invented outcomes with ε of two points. Green: within ε, and so is the whole "
        "interval. Amber: the point is, the interval is not. Red: beyond ε.",
        "Four intervals of a drop in accuracy against a dashed line at two points.",
    ),
}


def render(subject: Subject | None = None) -> dict[str, str]:
    """Every figure as SVG, by name."""
    subject = subject or Subject()
    with styled():
        return {name: to_svg(figure.draw(subject), name) for name, figure in FIGURES.items()}


def main() -> None:
    """Write every figure to a folder."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, svg in render().items():
        (folder / f"{name}.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
