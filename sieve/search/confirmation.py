"""Confirmation: score the winners of a search on rows that the search has not seen.

A search that scores hundreds of genomes on the same rows overfits them. So a few of its smallest
feasible genomes are scored again, and the smallest that stays feasible wins. The new rows decide
alone, or together with the search's rows where the search hardly fitted these. With a confidence,
candidates are tried from large to small until one fails: fixed-sequence testing keeps the error of
the test whatever the number of tries (Angelopoulos et al., arXiv:2110.01052, Sec. 2.3).
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from scipy.optimize import isotonic_regression

from sieve.bank.genome import Genome
from sieve.search.lines import Line, Scorer, bisect
from sieve.search.score import Score

RATIO, GROWTH = 1.03, 1.4  # size of the second candidate over the first; growth of log ratios
FEWEST = 4  # whole scores that a regression needs


@dataclass(frozen=True)
class Confirmed:
    """The winner, and every candidate with its score, in the order in which they were tried."""

    genome: Genome
    tried: dict[Genome, Score]


def candidates(scores: Mapping[Genome, Score], count: int) -> list[Genome]:
    """At most `count` feasible genomes to confirm, by rising size; the largest is always one.

    The ratio between neighboring sizes grows: twelve candidates span a factor of 18. Of genomes of
    about the same size, the one with the largest margin is taken. Genomes that `not_by_luck`
    rejects are left out. The largest genome is the only candidate if none is feasible: not even the
    dense model may be, if the pruned model reads a shorter prompt.
    """
    order = {genome: index for index, genome in enumerate(not_by_luck(scores))}
    if not order:
        return sorted(scores, key=lambda genome: scores[genome].kept_fraction)[-1:]
    groups: list[list[Genome]] = []
    limit = -math.inf
    for genome in sorted(order, key=lambda genome: scores[genome].kept_fraction):
        kept = scores[genome].kept_fraction
        if kept > limit:
            limit = kept * RATIO ** (GROWTH ** len(groups))
            groups.append([])
        groups[-1].append(genome)
    ladder = [min(group, key=lambda g: (-scores[g].margin, order[g])) for group in groups]
    if len(ladder) <= count:
        return ladder
    return [*ladder[: count - 1], ladder[-1]] if count > 1 else ladder[:1]


def not_by_luck(scores: Mapping[Genome, Score]) -> list[Genome]:
    """The feasible genomes whose divergence is at most `divergence_limit`.

    Among hundreds of genomes, some gain a row or two by chance. Divergence from the dense model is
    hardly a matter of chance, so it tells which margins to trust. A genome of unknown divergence
    stays.
    """
    limit = divergence_limit(scores.values())
    return [g for g, score in scores.items() if score.feasible and not score.divergence > limit]


def divergence_limit(scores: Iterable[Score]) -> float:
    """The divergence, in nats, above which the expected margin is negative.

    The margin is fitted as a falling function of the divergence (isotonic regression). The limit is
    infinite if a divergence is unknown or if there are too few scores.
    """
    scores = list(scores)
    # A genome that was dropped early has only bounds of its margin and divergence.
    whole = [score for score in scores if score.whole]
    if any(math.isnan(score.divergence) for score in scores) or len(whole) < FEWEST:
        return math.inf
    whole.sort(key=lambda score: score.divergence)
    fitted = isotonic_regression([score.margin for score in whole], increasing=False).x
    within = [score.divergence for score, y in zip(whole, fitted, strict=True) if y >= 0]
    return max(within, default=0.0)


def confirm(objective: Scorer, ladder: Sequence[Genome], from_largest: bool) -> Confirmed:
    """The smallest genome of a ladder, given from small to large, that stays feasible.

    The last genome of the ladder, usually the dense model, wins if none is feasible. With
    `from_largest`, genomes are tried from the largest down until one fails.
    """
    tried: dict[Genome, Score] = {}
    winner = ladder[-1]
    for genome in reversed(ladder) if from_largest else ladder:
        tried[genome] = score = objective.score(genome)
        if score.feasible:
            winner = genome
        if score.feasible != from_largest:
            break
    return Confirmed(winner, tried)


def narrow(
    objective: Scorer,
    result: Confirmed,
    line: Line,
    size: Callable[[Genome], float],
    floor: float = 1.0,
) -> Confirmed:
    """Bisect a line between the last refused candidate and the winner.

    Neighbors on a ladder differ more and more in size, so the winner may be larger than necessary.
    The result is unchanged if no candidate won.

    Args:
        size: gives the kept fraction of a genome.
        floor: the smallest size to try if the first candidate won.
    """
    scores = list(result.tried.values())
    if not scores or not scores[-1].feasible:
        return result
    low, high = [floor, *(score.kept_fraction for score in scores)][-2:]
    between = [g for g in map(line.genome, range(line.count)) if low < size(g) < high]
    ladder, tried = [result.genome, *between], dict(result.tried)

    def feasible(index: int) -> bool:
        tried[ladder[index]] = score = objective.score(ladder[index])
        return score.feasible

    return Confirmed(ladder[bisect(len(ladder), feasible)], tried)
