"""The figures of the documentation: small computations with Sieve's own functions.

A function draws one figure. Its docstring is the text that a screen reader reads out.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, NullFormatter

from sieve.bank.genome import STORAGES, Genome
from sieve.docs.drawing import (
    ACCENT,
    AMBER,
    GREEN,
    GROUND,
    INK,
    MUTED,
    STYLE,
    WARNING,
    hide_frame,
    new_figure,
    to_svg,
)
from sieve.docs.subject import CALIBRATED, REFITTED, SCORED, Subject
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
    figure, (panel,) = new_figure(3.0)
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
    figure, (panel,) = new_figure()
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


def storage(subject: Subject) -> Figure:
    """A straight line for plain storage. Below it, a curve for pivoted storage that reaches the
    dense size at full rank.
    """
    figure, (panel,) = new_figure(2.7)
    d_out, d_in = subject.matrix.d_out, subject.matrix.d_in
    ranks = np.arange(0, d_in + 1)
    for name, color, offset in (("plain", AMBER, (-4, 5)), ("pivoted", ACCENT, (-4, -24))):
        cost = np.array([STORAGES[name].cost(d_out, d_in, int(r)) for r in ranks]) / (d_out * d_in)
        panel.plot(ranks, cost, color=color, label=name)
        rank = STORAGES[name].largest_rank(d_out, d_in, d_out * d_in)
        panel.plot([rank], [1], color=color, marker="o")
        panel.annotate(
            f"rank {rank}", (rank, 1), offset, textcoords="offset points", ha="right", color=color
        )
    panel.axhline(1, color=MUTED, linewidth=0.8, linestyle=DASHED)
    panel.set(xlabel=f"rank of a matrix {d_out} × {d_in}", ylabel="of the dense parameters")
    panel.yaxis.set_major_formatter(PERCENT)
    panel.legend(loc="lower right")
    return figure


def levels(subject: Subject) -> Figure:
    """Two heat maps of layers by kinds of matrices. Levels differ widely, and at two percent many
    matrices are at 0.
    """
    figure, panels = new_figure(3.1, columns=2)
    frontier = waterfill(subject.bank)
    for panel, kept in zip(panels, (0.2, 0.02), strict=True):
        _heat_map(panel, frontier.genome(frontier.steps_to(kept)), subject)
        panel.set_title(f"{100 * kept:g} % kept in all")
    panels[0].set_ylabel("layer")
    panels[1].set_yticks([])
    return figure


def _heat_map(panel: Axes, genome: Genome, subject: Subject) -> None:
    matrices = subject.bank.matrices
    kinds = list(dict.fromkeys(matrix.kind for matrix in matrices))
    layers = 1 + max(matrix.layer or 0 for matrix in matrices)
    for matrix in matrices:
        level, x, y = genome.levels[matrix.name], kinds.index(matrix.kind), matrix.layer or 0
        shade = min(1.0, level) ** 0.5
        panel.add_patch(
            Rectangle((x + 0.04, y + 0.04), 0.92, 0.92, facecolor=ACCENT, alpha=0.06 + 0.94 * shade)
        )
        text = f"{100 * level:.0f}" if level >= 0.1 or not level else f"{100 * level:.1f}"
        color = GROUND if shade > 0.6 else INK
        panel.text(x + 0.5, y + 0.54, text, ha="center", va="center", fontsize=7.5, color=color)
    panel.set(xlim=(0, len(kinds)), ylim=(layers, 0))
    panel.set_xticks(np.arange(len(kinds)) + 0.5, kinds, fontsize=8, rotation=35)
    panel.set_yticks(np.arange(layers) + 0.5, [str(layer) for layer in range(layers)], fontsize=8)
    hide_frame(panel)


def frontier(subject: Subject) -> Figure:
    """Two curves against the kept fraction. The water-filled one is lower everywhere."""
    figure, (panel,) = new_figure(2.7)
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


def refit(subject: Subject) -> Figure:
    """Two points for each of two kept fractions. The refitted point is nearer to the dense
    model.
    """
    figure, (panel,) = new_figure(1.9)
    line = waterfill(subject.bank)
    fractions = (0.02, 0.015)
    for y, fraction in enumerate(fractions):
        genome = line.genome(line.steps_to(fraction))
        before = subject.objective.score(genome).divergence
        after = subject.refitted_divergence(genome)
        panel.plot([before, after], [y, y], color=MUTED, linewidth=1, zorder=1)
        panel.scatter(before, y, color=AMBER, zorder=2, label="" if y else "fitted once")
        panel.scatter(after, y, color=ACCENT, zorder=2, label="" if y else "refitted")
    panel.set(xlim=(0, None), xlabel="divergence from the dense model's answers, nats")
    panel.set_yticks(
        range(len(fractions)), [f"{100 * fraction:g} % kept" for fraction in fractions]
    )
    panel.set_ylim(len(fractions) - 0.4, -0.6)
    panel.grid(axis="y", visible=False)
    panel.legend(loc="upper right", ncols=2, bbox_to_anchor=(1, 1.18), borderaxespad=0)
    return figure


def interval(_: Subject) -> Figure:
    """Four intervals of a drop in accuracy against a dashed line at two points."""
    figure, (panel,) = new_figure(2.4)
    cases = ((1500, 15, 3), (1500, 34, 10), (200, 3, 1), (1500, 60, 9))
    for y, (rows, lost, won) in enumerate(cases):
        dense, pruned = np.ones(rows), np.ones(rows)
        pruned[:lost], dense[lost : lost + won] = 0, 0
        drop = paired_drop(dense, pruned)
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
    hide_frame(panel)
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
    storage: "What a rank costs in each storage form. The dots mark the rank at which the factors "
    "cost as much as the dense matrix.",
    levels: f"{MODEL}: the level of every matrix in percent, water-filled to two budgets. At level "
    "0 only the mean output of the matrix stays.",
    frontier: f"{MODEL}: the rise of the loss that the discarded energies predict, for one level "
    "in all matrices and for water-filled ranks.",
    refit: f"{MODEL}: mean divergence on {SCORED} selection rows, before and after the same ranks "
    f"are solved again on what the pruned model sees of {REFITTED} calibration rows.",
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
