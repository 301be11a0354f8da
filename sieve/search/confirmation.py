"""Confirmation: winners of a search tried on rows that it has not seen.

A search that scored hundreds of genomes on the same rows has fitted them. Its smallest feasible
genomes are therefore scored once more elsewhere, a few of them, and the smallest that is feasible
there too is the winner: on the new rows alone, or, where the old ones had little say, on all of
them together, as a few hundred rows alone are as uncertain as the tolerance is small. With a
guarantee they are tried from large to small and the first that fails ends it: fixed-sequence
testing, which keeps the error of the interval whatever the number of tries (Angelopoulos et al.,
arXiv:2110.01052, Sec. 2.3).
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scipy.optimize import isotonic_regression

from sieve.bank.genome import Genome
from sieve.search.lines import Line, Scorer
from sieve.search.objective import Score

NEAR, GROWTH = 1.03, 1.4  # ratio of the first candidate's size to the next, how its log grows
FEW = 4  # genomes: too few to tell luck


@dataclass(frozen=True)
class Confirmed:
    """The winner, and what the rows said of each candidate that was tried, in that order."""

    genome: Genome
    genomes: list[Genome]
    tried: list[dict[str, Any]]


def candidates(found: Mapping[Genome, Score], count: int) -> list[Genome]:
    """At most `count` feasible genomes, the smallest first, then larger ones, the dense model last.

    Each refusal says more, so the steps up grow: twelve candidates reach 18 times the first. Of
    genomes of about the same size the one with the largest margin stands for all. Those that are
    feasible by luck are left out: see `steady`.
    """
    feasible = sorted(
        (found[genome].kept_fraction, -found[genome].margin, index, genome)
        for index, genome in enumerate(steady(found))
    )
    ladder: list[Genome] = []
    limit = 0.0
    group: list[tuple[float, float, int, Genome]] = []
    for entry in feasible:
        if entry[0] > limit and group:
            ladder.append(min(group, key=lambda e: e[1:3])[3])
            group = []
        if not group:
            limit = entry[0] * NEAR ** (GROWTH ** len(ladder))
        group.append(entry)
    if group:
        ladder.append(min(group, key=lambda e: e[1:3])[3])
    if len(ladder) <= count:
        return ladder
    return [*ladder[: count - 1], ladder[-1]] if count > 1 else ladder[:1]


def steady(found: Mapping[Genome, Score]) -> list[Genome]:
    """Feasible genomes that others as far from the dense model, on the mean, are too.

    Of hundreds of genomes some gain a row or two by chance. How far a genome is from the dense
    model's answers is hardly a matter of chance, and margins fall with it: so the margins of all
    genomes are fitted by a falling function of their divergences (isotonic regression), and that
    must not be negative either. Where a divergence is unknown, all that are feasible.
    """
    feasible = [genome for genome, score in found.items() if score.feasible]
    limit = divergence_limit(found.values())
    return [genome for genome in feasible if not found[genome].divergence > limit]


def divergence_limit(scores: Iterable[Score]) -> float:
    """How far from the dense model genomes may be before their margins are negative on the mean.

    A divergence in nats; infinite where divergences are unknown, or too few to tell.
    """
    scores = list(scores)
    # Those that were refused on a part of the rows have a margin at best, of a distance unknown.
    whole = [score for score in scores if score.whole]
    if any(math.isnan(score.divergence) for score in scores) or len(whole) < FEW:
        return math.inf
    whole.sort(key=lambda score: score.divergence)
    fitted = isotonic_regression([s.margin for s in whole], increasing=False).x
    return max((s.divergence for s, y in zip(whole, fitted, strict=True) if y >= 0), default=0.0)


def confirm(objective: Scorer, ladder: Sequence[Genome], guarantee: bool) -> Confirmed:
    """The smallest of some genomes, in order of size, that unseen rows find feasible too.

    The largest, the dense model as a rule, is taken where none is. guarantee: try them from the
    largest down, and stop at the first that fails.
    """
    tried: list[dict[str, Any]] = []
    genomes: list[Genome] = []
    chosen = ladder[-1]
    for genome in reversed(ladder) if guarantee else ladder:
        score = objective.score(genome)
        genomes.append(genome)
        tried.append(asdict(score) | {"feasible": score.feasible})
        if score.feasible:
            chosen = genome
        if score.feasible != guarantee:
            break
    return Confirmed(chosen, genomes, tried)


def narrow(
    objective: Scorer,
    result: Confirmed,
    line: Line,
    size: Callable[[Genome], float],
    floor: float = 1.0,
) -> Confirmed:
    """The same after bisection on a line between the last that was refused and the winner.

    The steps up a ladder grow, so that the winner may be much larger than need be; where the first
    candidate won, `floor` stands for what was refused, the smallest size that may do. size: the
    kept fraction of a genome. Nothing changes where none won.
    """
    if not result.tried or not result.tried[-1]["feasible"]:
        return result
    low, high = ([floor] + [row["kept_fraction"] for row in result.tried])[-2:]
    between = [g for g in map(line.genome, range(line.count)) if low < size(g) < high]
    chosen, genomes, tried = result.genome, list(result.genomes), list(result.tried)
    accepted, refused = -1, len(between)
    while refused - accepted > 1:
        middle = (accepted + refused) // 2
        score = objective.score(between[middle])
        genomes.append(between[middle])
        tried.append(asdict(score) | {"feasible": score.feasible})
        if score.feasible:
            chosen, accepted = between[middle], middle
        else:
            refused = middle
    return Confirmed(chosen, genomes, tried)
