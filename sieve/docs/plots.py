"""The figures of the documentation: small computations with Sieve's own functions.

A function draws one figure. Its docstring is the text that a screen reader reads out.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from sieve.docs.drawing import ACCENT, AMBER, GREEN, MUTED, STYLE, WARNING, new_figure, to_svg
from sieve.docs.subject import CALIBRATED, SCORED, Subject
from sieve.projections import get_projection
from sieve.search.lines import uniform_genome
from sieve.search.waterfill import estimated_rise, waterfill
from sieve.tasks.scores import paired_drop

MODEL = "The embedded model on `almanac_medicine`"
MATRIX = "The matrix `gate` of layer 3 of the embedded model"
PERCENT = FuncFormatter(lambda value, _: f"{100 * value:g} %")
DASHED = (0, (4, 3))


def answer(subject: Subject) -> Figure:
    """Accuracy against the kept fraction. Sieve's curve stays near the dense model's accuracy down
    to a few percent; the curve of a plain SVD falls much earlier.
    """
    figure, panel = new_figure(3.0)
    frontier, objective = waterfill(subject.bank), subject.objective
    genomes = [frontier.genome(frontier.steps_to(p)) for p in (0.5, 0.2, 0.08, 0.04, 0.02, 0.012)]
    levels = (1.0, 0.8, 0.6, 0.4, 0.3, 0.2, 0.1)
    bank = subject.plain_bank
    uniform = [uniform_genome(bank, levels, index) for index in range(1, len(levels))]
    for label, scorer, candidates, color, marker in (
        ("one level for all matrices, plain SVD", objective.on(bank), uniform, AMBER, "s"),
        ("Sieve", objective, genomes, ACCENT, "o"),
    ):
        scores = [scorer.score(genome) for genome in candidates]
        kept = [1.0, *(score.kept_fraction for score in scores)]
        accuracies = [objective.baseline.accuracy, *(score.accuracy for score in scores)]
        panel.plot(kept, accuracies, color=color, marker=marker, label=label)
    limit = objective.baseline.accuracy - objective.tolerance
    panel.axhline(limit, color=MUTED, linewidth=0.8, linestyle=DASHED)
    panel.annotate("within ε", (1.0, limit), (0, -12), textcoords="offset points", color=MUTED)
    panel.set(ylabel="accuracy", ylim=(0, 1.08))
    _kept_axis(panel)
    panel.yaxis.set_major_formatter(PERCENT)
    panel.legend(loc="lower left")
    return figure


def spectrum(subject: Subject) -> Figure:
    """Three falling curves by rank. The one of the weights alone falls slowest, the one of the
    directions that matter for the answers falls fastest.
    """
    figure, panel = new_figure()
    moment = subject.moments.of(subject.matrix)
    for name, label, color in (
        ("svd", "of the weights (svd)", AMBER),
        ("output", "of the outputs on the task's tokens (output)", GREEN),
        ("loss_aware", "of what changes the answers (loss_aware)", ACCENT),
    ):
        energy = get_projection(name)(subject.weight, moment).energy.double().numpy()
        beyond = 1 - np.cumsum(energy) / energy.sum()
        panel.plot(np.arange(1, len(beyond)), beyond[:-1], color=color, label=label)
    panel.set(yscale="log", ylim=(1e-5, 60), xlabel="rank", ylabel="share beyond the rank")
    panel.legend(loc="upper right", fontsize=8.5, borderaxespad=0)
    return figure


def frontier(subject: Subject) -> Figure:
    """Two curves against the kept fraction. The water-filled one is lower everywhere."""
    figure, panel = new_figure(2.7)
    bank, filled = subject.bank, waterfill(subject.bank)
    grid = (1.0, *np.geomspace(0.9, 0.01, 30).round(4).tolist())
    uniform = [uniform_genome(bank, grid, index) for index in range(1, len(grid))]
    kept = [bank.kept_fraction(genome) for genome in uniform]
    panel.plot(kept, [estimated_rise(bank, g) for g in uniform], color=AMBER, label="one level")
    panel.plot(filled.kept[1:] / bank.size, filled.loss[1:], color=ACCENT, label="water-filled")
    panel.set(yscale="log", ylim=(1e-4, None), ylabel="estimated rise of the loss")
    _kept_axis(panel)
    panel.set_xlim(1, 0.01)
    panel.legend(loc="upper left")
    return figure


def interval(_: Subject) -> Figure:
    """Four intervals of a drop in accuracy against a dashed line at two points."""
    figure, panel = new_figure(2.4)
    cases = ((1500, 15, 3), (1500, 34, 10), (200, 3, 1), (1500, 60, 9))
    for y, (rows, lost, won) in enumerate(cases):
        dense, pruned = np.ones(rows), np.ones(rows)
        pruned[:lost], dense[lost : lost + won] = 0, 0
        drop = paired_drop(dense, pruned)
        assert drop.low is not None and drop.high is not None
        color = GREEN if drop.high <= 0.02 else AMBER if drop.point <= 0.02 else WARNING
        panel.plot([drop.low, drop.high], [y, y], color=color, linewidth=2.4)
        panel.plot([drop.point], [y], color=color, marker="o", markersize=6)
        panel.text(-0.058, y, f"{rows:,} rows", va="center")
    panel.axvline(0.02, color=MUTED, linewidth=1, linestyle=DASHED)
    panel.text(0.0205, -0.62, "ε", va="center", color=MUTED)
    panel.axvline(0, color=MUTED, linewidth=0.6)
    panel.set(xlim=(-0.06, 0.06), ylim=(3.6, -0.9), yticks=[], xlabel="drop in accuracy, points")
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))
    panel.set_xticks([-0.02, 0, 0.02, 0.04, 0.06])
    panel.grid(False)
    panel.spines[:].set_visible(False)
    panel.tick_params(length=0)
    return figure


def _kept_axis(panel: Axes) -> None:
    """The kept fraction on a logarithmic axis, the dense model at the left."""
    panel.set(xscale="log", xlabel="kept of the prunable parameters")
    panel.invert_xaxis()
    panel.xaxis.set_major_formatter(PERCENT)
    panel.xaxis.set_minor_formatter(NullFormatter())


# Figure -> its caption.
FIGURES: dict[Callable[[Subject], Figure], str] = {
    answer: f"{MODEL}: {SCORED} selection rows, moments of {CALIBRATED} calibration rows, no "
    "refit. Computed while this page was built.",
    spectrum: f"{MATRIX}: the share of energy in the directions beyond a rank, for three "
    "projections.",
    frontier: f"{MODEL}: the rise of the loss that the discarded energies predict, for one level "
    "in all matrices and for water-filled ranks.",
    interval: "Four invented outcomes with ε of two points. Green: the whole interval is within "
    "ε. Amber: the point is within ε, the interval is not. Red: the point is beyond ε.",
}


@cache
def render() -> dict[str, tuple[str, str, str]]:
    """Name of a figure -> its SVG, what a screen reader says, and its caption."""
    subject = Subject()
    with plt.rc_context(STYLE):
        return {
            draw.__name__: (
                to_svg(draw(subject), draw.__name__),
                " ".join(str(draw.__doc__).split()),
                caption,
            )
            for draw, caption in FIGURES.items()
        }
