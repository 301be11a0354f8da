"""What the figures of the documentation draw: small computations with Sieve's own functions."""

import numpy as np
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
    PINK,
    WARNING,
    axes,
    without_frame,
)
from sieve.docs.subject import Subject, relative_errors
from sieve.projections import get_projection
from sieve.search.lines import uniform_genome
from sieve.search.waterfill import estimated_rise, waterfill
from sieve.tasks import Example
from sieve.tasks.scores import paired_drop
from sieve.tasks.splits import carve

PERCENT = FuncFormatter(lambda value, _: f"{100 * value:g} %")


def answer(subject: Subject) -> Figure:
    """Accuracy against the kept fraction: one level for all by SVD, and Sieve's defaults."""
    figure, (one,) = axes(3.0)
    frontier, objective = waterfill(subject.bank), subject.objective
    genomes = [frontier.genome(frontier.within(p)) for p in (0.5, 0.2, 0.08, 0.04, 0.02, 0.012)]
    levels = (1.0, 0.8, 0.6, 0.4, 0.3, 0.2, 0.1)
    bank = subject.plain_bank
    uniform = [uniform_genome(bank, levels, place) for place in range(1, len(levels))]
    for label, scorer, tried, colour, marker in (
        ("one level for all, SVD of the weights", objective.on(bank), uniform, AMBER, "s"),
        ("Sieve", objective, genomes, ACCENT, "o"),
    ):
        scores = [scorer.score(genome) for genome in tried]
        kept = [1.0, *(score.kept_fraction for score in scores)]
        values = [objective.baseline.accuracy, *(score.accuracy for score in scores)]
        one.plot(kept, values, color=colour, marker=marker, label=label)
    least = objective.baseline.accuracy - objective.tolerance
    one.axhline(least, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
    one.annotate("within ε", (1.0, least), (0, -12), textcoords="offset points", color=MUTED)
    one.set(xscale="log", xlabel="kept of the prunable parameters", ylabel="accuracy")
    one.set_ylim(0, 1.08)
    one.invert_xaxis()
    one.xaxis.set_major_formatter(PERCENT)
    one.xaxis.set_minor_formatter(NullFormatter())
    one.yaxis.set_major_formatter(PERCENT)
    one.legend(loc="lower left")
    return figure


def splits(_: Subject) -> Figure:
    """Which of 240 rows stand in which split when all three come from one file."""
    rows = [Example(f"row {number}", (" no", " yes"), number % 2) for number in range(240)]
    parts, carved = carve({"calibration": rows})
    role = {example.prompt: name for name, examples in parts.items() for example in examples}
    figure, (one,) = axes(1.9)
    colours = {"calibration": ACCENT, "selection": AMBER, "test": GREEN}
    for number, row in enumerate(rows):
        down, along = divmod(number, 30)
        one.add_patch(Rectangle((along, -down), 0.8, 0.8, color=colours[role[row.prompt]]))
    for place, (name, colour) in enumerate(colours.items()):
        one.add_patch(Rectangle((10 * place, -9.6), 0.8, 0.8, color=colour))
        one.text(10 * place + 1.3, -9.2, f"{name}: {len(parts[name])}", va="center")
    assert set(carved) == {"test", "selection"}
    one.set(xlim=(-0.2, 30), ylim=(-9.8, 1), xticks=[], yticks=[])
    without_frame(one)
    return figure


def spectrum(subject: Subject) -> Figure:
    """How much of one matrix is left beyond a rank, by what three projections look at."""
    figure, (one,) = axes(2.9)
    moment = subject.moments.of(subject.matrix)
    for name, label, colour in (
        ("svd", "the weights alone (svd)", AMBER),
        ("output", "what the task's tokens make of them (output)", GREEN),
        ("loss_aware", "what its answers care for (loss_aware)", ACCENT),
    ):
        energy = get_projection(name)(subject.weight, moment).energy.double().numpy()
        left = 1 - np.cumsum(energy) / energy.sum()
        one.plot(np.arange(1, len(left)), left[:-1], color=colour, label=label)
    one.set(yscale="log", ylim=(1e-5, 60), xlabel="rank", ylabel="share beyond the rank")
    one.legend(loc="upper right", fontsize=8.5, borderaxespad=0)
    return figure


def errors(subject: Subject) -> Figure:
    """Output error of one matrix by rank, on rows that no projection has seen."""
    figure, (one,) = axes(2.9)
    given, held_out = subject.seen(0), subject.seen(1000)
    for name, colour in (("svd", AMBER), ("input_pca", PINK), ("output", ACCENT)):
        solved = get_projection(name)(subject.weight, given)
        error = relative_errors(
            subject.weight, solved.u.double(), solved.v.double(), held_out.input_second()
        )
        one.plot(np.arange(len(error)), error, color=colour, label=name)
    one.set(yscale="log", ylim=(1e-4, 1.3), xlim=(0, 255), xlabel="rank")
    one.set_ylabel("relative output error")
    one.legend(loc="lower left")
    return figure


def storage(subject: Subject) -> Figure:
    """Numbers stored at a rank, in both storage forms."""
    figure, (one,) = axes(2.7)
    d_out, d_in = subject.matrix.d_out, subject.matrix.d_in
    ranks = np.arange(0, d_in + 1)
    for name, colour in (("plain", AMBER), ("pivoted", ACCENT)):
        cost = np.array([STORAGES[name].cost(d_out, d_in, int(r)) for r in ranks]) / (d_out * d_in)
        one.plot(ranks, cost, color=colour, label=name)
        even = STORAGES[name].largest_rank(d_out, d_in, d_out * d_in)
        one.plot([even], [1], color=colour, marker="o")
        one.annotate(
            f"rank {even}",
            (even, 1),
            (-4, 5 if name == "plain" else -24),
            textcoords="offset points",
            ha="right",
            color=colour,
        )
    one.axhline(1, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
    one.set(xlabel=f"rank of a matrix {d_out} × {d_in}", ylabel="of the dense parameters")
    one.yaxis.set_major_formatter(PERCENT)
    one.legend(loc="lower right")
    return figure


def nested(subject: Subject) -> Figure:
    """A corner of one matrix at four ranks, all cut from the same factors."""
    ranks = (4, 16, 64, subject.matrix.d_in)
    solved = get_projection("output")(subject.weight, subject.moments.of(subject.matrix))
    figure, panels = axes(1.75, columns=4)
    corner = subject.weight[:40, :40].abs().max().item()
    for one, rank in zip(panels, ranks, strict=True):
        product = (solved.u[:, :rank] @ solved.v[:rank]).numpy()
        one.imshow(product[:40, :40], cmap="RdBu", vmin=-corner / 2, vmax=corner / 2)
        one.set(xticks=[], yticks=[], title=f"rank {rank}")
        without_frame(one)
    return figure


def levels(subject: Subject) -> Figure:
    """The level of every matrix at two budgets of the water-filled frontier."""
    figure, panels = axes(3.1, columns=2)
    frontier = waterfill(subject.bank)
    for one, kept in zip(panels, (0.2, 0.02), strict=True):
        _heat(one, frontier.genome(frontier.within(kept)), subject)
        one.set_title(f"{100 * kept:g} % kept in all")
    panels[0].set_ylabel("layer")
    panels[1].set_yticks([])
    return figure


def _heat(one: Axes, genome: Genome, subject: Subject) -> None:
    kinds = list(dict.fromkeys(matrix.kind for matrix in subject.bank.matrices))
    layers = 1 + max(matrix.layer or 0 for matrix in subject.bank.matrices)
    for matrix in subject.bank.matrices:
        level, along, down = genome.levels[matrix.name], kinds.index(matrix.kind), matrix.layer or 0
        shade = min(1.0, level) ** 0.5
        place = (along + 0.04, down + 0.04)
        one.add_patch(Rectangle(place, 0.92, 0.92, facecolor=ACCENT, alpha=0.06 + 0.94 * shade))
        text = f"{100 * level:.0f}" if level >= 0.1 else f"{100 * level:.1f}".lstrip("0")
        colour = GROUND if shade > 0.6 else INK
        one.text(
            along + 0.5, down + 0.54, text if level else "0", ha="center", va="center",
            fontsize=7.5, color=colour,
        )  # fmt: skip
    one.set(xlim=(0, len(kinds)), ylim=(layers, 0))
    one.set_xticks(np.arange(len(kinds)) + 0.5, kinds, fontsize=8, rotation=35)
    one.set_yticks(np.arange(layers) + 0.5, [str(layer) for layer in range(layers)], fontsize=8)
    without_frame(one)


def frontier(subject: Subject) -> Figure:
    """The loss that energies foretell at every size, with one level for all and water-filled."""
    figure, (one,) = axes(2.7)
    bank, filled = subject.bank, waterfill(subject.bank)
    grid = (1.0, *np.geomspace(0.9, 0.01, 30).round(4).tolist())
    uniform = [uniform_genome(bank, grid, place) for place in range(1, len(grid))]
    kept = [bank.kept_fraction(genome) for genome in uniform]
    one.plot(kept, [estimated_rise(bank, g) for g in uniform], color=AMBER, label="one level")
    steps = slice(1, None)
    one.plot(filled.kept[steps] / bank.size, filled.loss[steps], color=ACCENT, label="water-filled")
    one.set(xscale="log", yscale="log", xlim=(1, 0.01), ylim=(1e-4, None))
    one.set(xlabel="kept of the prunable parameters", ylabel="estimated rise of the loss")
    one.xaxis.set_major_formatter(PERCENT)
    one.xaxis.set_minor_formatter(NullFormatter())
    one.legend(loc="upper left")
    return figure


def refitting(subject: Subject) -> Figure:
    """How far a pruned model is from the dense one, before and after its ranks are refitted."""
    figure, (one,) = axes(1.9)
    line = waterfill(subject.bank)
    kept = (0.02, 0.015)
    for place, fraction in enumerate(kept):
        genome = line.genome(line.within(fraction))
        before, after = subject.objective.score(genome).divergence, subject.refitted(genome)
        one.plot([before, after], [place, place], color=MUTED, linewidth=1, zorder=1)
        one.scatter(before, place, color=AMBER, zorder=2, label="" if place else "fitted once")
        one.scatter(after, place, color=ACCENT, zorder=2, label="" if place else "refitted")
    one.set(xlim=(0, None), xlabel="divergence from the dense model's answers, nats")
    one.set_yticks(range(len(kept)), [f"{100 * fraction:g} % kept" for fraction in kept])
    one.set_ylim(len(kept) - 0.4, -0.6)
    one.grid(axis="y", visible=False)
    one.legend(loc="upper right", ncols=2, bbox_to_anchor=(1, 1.18), borderaxespad=0)
    return figure


def interval(_: Subject) -> Figure:
    """Four invented outcomes on test rows against a tolerance of two points."""
    figure, (one,) = axes(2.4)
    cases = (  # rows, lost, won
        ("1,500 rows", 1500, 15, 3), ("1,500 rows", 1500, 34, 10),
        ("200 rows", 200, 3, 1), ("1,500 rows", 1500, 60, 9),
    )  # fmt: skip
    for place, (label, rows, lost, won) in enumerate(cases):
        dense, pruned = np.ones(rows), np.ones(rows)
        pruned[:lost], dense[lost : lost + won] = 0, 0
        drop = paired_drop(dense, pruned)
        colour = GREEN if drop.high <= 0.02 else AMBER if drop.point <= 0.02 else WARNING
        one.plot([drop.low, drop.high], [place, place], color=colour, linewidth=2.4)
        one.plot([drop.point], [place], color=colour, marker="o", markersize=6)
        one.text(-0.058, place, label, va="center")
    one.axvline(0.02, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    one.text(0.0205, -0.62, "ε", va="center", color=MUTED)
    one.axvline(0, color=MUTED, linewidth=0.6)
    one.set(xlim=(-0.06, 0.06), ylim=(3.6, -0.9), yticks=[], xlabel="drop in accuracy, points")
    one.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))
    one.set_xticks([-0.02, 0, 0.02, 0.04, 0.06])
    without_frame(one)
    return figure
