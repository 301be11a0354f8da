"""Reference searches on a problem whose answer is known."""

import dataclasses
import math

import pytest
from models import tiny_llama
from sieved import banked

from sieve.bank.genome import Genome
from sieve.search.bottlenecks import LEVELS, find_bottlenecks
from sieve.search.lines import neighbors, uniform_line
from sieve.search.reference import Budget, search_evopress, search_random
from sieve.search.score import Score
from sieve.search.space import make_space

BANK = banked(tiny_llama(), "loss_aware", storage="pivoted")
SPACE = make_space(BANK, None)
FEASIBLE = 8  # place of a feasible genome on the uniform line
FLOORS = [i % 5 for i in range(len(SPACE.alleles))]  # the least feasible position of each gene


class Floors:
    """Feasible where no gene that its genome needs lies below its floor."""

    def __init__(self) -> None:
        self.scored: list[Genome] = []

    def score(self, genome: Genome, max_divergence: float = math.inf) -> Score:
        self.scored.append(genome)
        unneeded = BANK.unneeded(genome)
        positions = zip(BANK.names, SPACE.positions(genome), FLOORS, strict=True)
        below = sum(max(0, floor - at) for name, at, floor in positions if name not in unneeded)
        far = 0.001 * below
        part = far > max_divergence
        return Score(
            BANK.kept_fraction(genome),
            0.9,
            0.01 - 0.011 * below,
            5 if part else 10,
            divergence=far,
            whole=not part,
        )


@pytest.mark.parametrize("find", [search_random, search_evopress])
def test_a_search_ends_feasible_no_larger_than_its_seeds_and_the_same_each_time(find) -> None:
    line = uniform_line(BANK)
    seeds = neighbors(line, FEASIBLE, 2, 2)
    results = []
    for _ in range(2):
        scorer = Floors()
        results.append(find(SPACE, scorer, seeds, Budget(120), seed=7))
        assert len(scorer.scored) <= 120 + len(seeds) + 1
    assert results[0] == results[1]
    score = Floors().score(results[0])
    best = min(s.kept_fraction for s in map(Floors().score, seeds) if s.feasible)
    assert score.feasible and score.kept_fraction <= best


@pytest.mark.parametrize("find", [search_random, search_evopress])
def test_the_dense_model_is_the_result_if_not_even_it_is_feasible(find) -> None:
    class Never(Floors):
        def score(self, genome: Genome, max_divergence: float = math.inf) -> Score:
            return dataclasses.replace(super().score(genome), margin=-1.0)

    found = find(SPACE, Never(), neighbors(uniform_line(BANK), FEASIBLE, 2, 2), Budget(20), seed=7)
    assert BANK.kept_fraction(found) == 1


@pytest.mark.parametrize("judge", ["margin", "divergence"])
def test_evopress_gets_below_its_seeds(judge: str) -> None:
    line = uniform_line(BANK)
    budget = Budget(400, rows=1e6)
    found = search_evopress(SPACE, Floors(), neighbors(line, FEASIBLE, 2, 2), budget, judge=judge)
    spent = 1e6 - budget.rows
    assert spent == 4000 if judge == "margin" else spent < 3500  # Far siblings are dropped early.
    best = min(
        s.kept_fraction for s in map(Floors().score, neighbors(line, FEASIBLE, 2, 2)) if s.feasible
    )
    assert BANK.kept_fraction(found) < 0.9 * best


@pytest.mark.parametrize("find", [search_random, search_evopress])
def test_a_search_stops_when_its_rows_are_spent(find) -> None:
    scorer, seeds = Floors(), neighbors(uniform_line(BANK), FEASIBLE, 2, 2)
    find(SPACE, scorer, seeds, Budget(rows=95))  # ten each
    assert len(scorer.scored) == 10 + len(seeds) + 1


def test_a_bottleneck_is_the_least_level_at_or_above_the_floor_of_its_matrix() -> None:
    rows = find_bottlenecks(BANK, Floors())
    for row, held, floor in zip(rows, SPACE.alleles, FLOORS, strict=True):
        matrix = next(m for m in BANK.genes if m.name == row["name"])
        ranks = [BANK.sizing.rank(matrix, level) for level in LEVELS]
        fits = [lv for lv, r in zip(LEVELS, ranks, strict=True) if r is None or r >= held[floor]]
        assert BANK.sizing.rank(matrix, row["level"]) == BANK.sizing.rank(matrix, fits[0])
        assert row["evaluations"] == 1 if fits[0] == 0 else 1 < row["evaluations"] <= 4


class Remembering(Floors):
    """Gives the same score again for the same genome."""

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[Genome, Score] = {}

    def score(self, genome: Genome, max_divergence: float = math.inf) -> Score:
        return self.known.setdefault(genome, super().score(genome, max_divergence))


def test_what_was_scored_before_costs_an_evaluation_and_no_rows() -> None:
    budget, scorer = Budget(5, 100), Remembering()
    genome = uniform_line(BANK).genome(3)
    for _ in range(3):
        budget.score(scorer, genome)
    assert (budget.evaluations, budget.rows) == (2, 90)
