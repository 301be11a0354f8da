"""The bottleneck map: how far each matrix alone can be pruned, the rest dense."""

from typing import Any

from sieve.progress import track
from sieve.search import Scorer
from sieve.space import GenomeSpace


def find_bottlenecks(space: GenomeSpace, objective: Scorer) -> list[dict[str, Any]]:
    """For each gene the least level that it alone can have before the margin is negative.

    By bisection over its alleles, the others dense: a row per gene with its name, that level, the
    kept fraction of the matrix there, and how many genomes that took.
    """
    top = [len(held) - 1 for held in space.alleles]
    rows = []
    for gene, matrix in track(list(enumerate(space.bank.genes)), "Bottlenecks"):
        refused, accepted, tried = -1, top[gene], 0
        while accepted - refused > 1:
            middle = (accepted + refused) // 2
            genome = space.genome([*top[:gene], middle, *top[gene + 1 :]])
            tried += 1
            if objective.score(genome).feasible:
                accepted = middle
            else:
                refused = middle
        sizing, rank = space.bank.sizing, space.alleles[gene][accepted]
        rows.append(
            {
                "name": matrix.name,
                "level": sizing.level(matrix, rank),
                "kept_fraction": sizing.kept(matrix, rank) / matrix.size,
                "evaluations": tried,
            }
        )
    return rows
