"""Winners are scored on unseen rows in the order that keeps the promise."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from models import tiny_llama
from sieved import banked

from sieve.bank.genome import Genome
from sieve.search.confirmation import candidates, confirm, divergence_limit, narrow, not_by_luck
from sieve.search.lines import uniform_line
from sieve.search.score import Score
from sieve.stages import selecting as stage
from sieve.tasks.metrics import ACCURACY

BANK = banked(tiny_llama())
LINE = uniform_line(BANK)
GENOMES = [LINE.genome(i) for i in range(LINE.count)]


class Unseen:
    """Rows that find feasible what keeps at least so much."""

    def __init__(self, feasible: Any) -> None:
        self.feasible, self.seen = feasible, []

    def score(self, genome: Genome) -> Score:
        kept = BANK.kept_fraction(genome)
        self.seen.append(kept)
        return Score(kept, 0.9, 0.01 if self.feasible(kept) else -0.01, 10)


def scores(**margins: float) -> dict[Genome, Score]:
    return {
        genome: Score(BANK.kept_fraction(genome), 0.9, margins.get(f"g{i}", 0.01), 10)
        for i, genome in enumerate(GENOMES)
    }


def test_candidates_are_feasible_apart_in_size_and_end_with_the_dense_model() -> None:
    found = scores(g20=-0.1)
    ladder = candidates(found, 12)
    sizes = [BANK.kept_fraction(genome) for genome in ladder]
    assert 6 < len(ladder) <= 12 and sizes == sorted(sizes)
    assert sizes[0] == min(s.kept_fraction for s in found.values()) and sizes[-1] == 1
    for step, (a, b) in enumerate(zip(sizes, sizes[1:], strict=False)):
        assert b > a * 1.03 ** (1.4**step) or b == 1
    assert GENOMES[20] not in candidates(found, len(found))


def test_the_largest_genome_is_the_candidate_if_none_is_feasible() -> None:
    found = scores(**{f"g{i}": -0.1 for i in range(len(GENOMES))})
    ladder = candidates(found, 12)
    assert ladder == [GENOMES[0]] and candidates({}, 12) == []
    assert confirm(Unseen(lambda kept: False), ladder, from_largest=False).genome == GENOMES[0]


def test_of_genomes_of_one_size_the_safest_stands_for_all() -> None:
    same = Score(0.5, 0.9, 0.001, 10)
    found = {
        GENOMES[3]: same,
        GENOMES[4]: Score(0.505, 0.9, 0.02, 10),
        GENOMES[0]: Score(1, 1, 1, 10),
    }
    assert candidates(found, 5) == [GENOMES[4], GENOMES[0]]


def test_the_smallest_candidate_that_unseen_rows_accept_wins() -> None:
    ladder = candidates(scores(), 40)
    unseen = Unseen(lambda kept: kept > 0.3)
    chosen = confirm(unseen, ladder, from_largest=False).genome
    assert BANK.kept_fraction(chosen) == min(k for k in map(BANK.kept_fraction, ladder) if k > 0.3)
    assert unseen.seen == sorted(unseen.seen)


def test_with_a_confidence_candidates_are_tried_from_large_to_small_until_one_fails() -> None:
    ladder = candidates(scores(), 40)
    unseen = Unseen(lambda kept: kept > 0.6 or kept < 0.2)
    chosen = confirm(unseen, ladder, from_largest=True).genome
    assert BANK.kept_fraction(chosen) == min(k for k in map(BANK.kept_fraction, ladder) if k > 0.6)
    assert unseen.seen == sorted(unseen.seen, reverse=True) and min(unseen.seen) > 0.2


@pytest.mark.parametrize("from_largest", [False, True])
def test_the_largest_candidate_wins_if_none_is_feasible(from_largest: bool) -> None:
    chosen = confirm(Unseen(lambda kept: False), candidates(scores(), 8), from_largest).genome
    assert BANK.kept_fraction(chosen) == 1


def far_and_feasible() -> dict[Genome, Score]:
    """Margins fall as divergence grows, but GENOMES[7] is feasible by luck."""
    margins = [0.02, 0.015, 0.01, 0.004, -0.003, -0.01, -0.02, 0.003, -0.04]
    return {
        genome: Score(BANK.kept_fraction(genome), 0.9, margin, 10, divergence=0.01 * (i + 1))
        for i, (genome, margin) in enumerate(zip(GENOMES, margins, strict=False))
    }


def test_a_genome_that_is_feasible_by_luck_is_no_candidate() -> None:
    found = far_and_feasible()
    assert found[GENOMES[7]].feasible
    assert not_by_luck(found) == GENOMES[:4] and candidates(found, 12) == GENOMES[3::-1]
    assert divergence_limit(found.values()) == pytest.approx(0.04)


def test_genomes_dropped_early_do_not_change_the_divergence_limit() -> None:
    found = far_and_feasible()
    part = Score(0.2, 1.0, 0.02, 3, divergence=0.3, whole=False)
    assert not part.feasible
    with_part = found | {GENOMES[20]: part}
    assert divergence_limit(with_part.values()) == divergence_limit(found.values())
    assert not_by_luck(with_part) == not_by_luck(found)


def test_without_divergences_or_with_few_genomes_there_is_no_divergence_limit() -> None:
    found = list(far_and_feasible().values())
    assert divergence_limit(found[:3]) == math.inf
    assert divergence_limit([*found, Score(0.5, 0.9, 0.01, 10)]) == math.inf


@pytest.mark.parametrize("limit", [0.0, 0.03, 0.15, 0.31, 0.5, 0.76, 1.0])
def test_narrowing_finds_the_smallest_feasible_genome_between_two_candidates(limit: float) -> None:
    unseen = Unseen(lambda kept: kept >= limit)
    sizes = [BANK.kept_fraction(genome) for genome in GENOMES]
    ladder = [GENOMES[i] for i in (len(GENOMES) - 1, len(GENOMES) // 2, 0)]
    result = narrow(unseen, confirm(unseen, ladder, False), LINE, BANK.kept_fraction)
    wanted = min(size for size in sizes if size >= limit)
    assert BANK.kept_fraction(result.genome) == wanted
    assert len(result.tried) <= 3 + math.log2(len(GENOMES)) + 1
    assert [score.kept_fraction for score in result.tried.values()] == unseen.seen


def test_narrowing_tries_nothing_if_no_candidate_won() -> None:
    unseen = Unseen(lambda kept: False)
    before = confirm(unseen, [GENOMES[-1], GENOMES[3]], False)
    assert narrow(unseen, before, LINE, BANK.kept_fraction) == before and len(unseen.seen) == 2


@pytest.mark.parametrize("limit", [0.0, 0.03, 0.2, 0.6])
def test_narrowing_goes_down_to_the_floor_if_the_first_candidate_won(limit: float) -> None:
    unseen = Unseen(lambda kept: kept >= limit)
    sizes = [BANK.kept_fraction(genome) for genome in GENOMES]
    before = confirm(unseen, [GENOMES[2], GENOMES[0]], False)
    result = narrow(unseen, before, LINE, BANK.kept_fraction, floor=sizes[20])
    wanted = min(size for size in sizes if size > sizes[20] and size >= limit)
    assert BANK.kept_fraction(result.genome) == wanted
    assert narrow(unseen, before, LINE, BANK.kept_fraction) == before


class Rows:
    """An objective of ten rows; genomes that keep at least `limit` are feasible."""

    def __init__(self, limit: float) -> None:
        self.limit, self.evaluated, self.examples_scored = limit, dict[Genome, Score](), 10
        self.baseline = SimpleNamespace(
            values=np.ones(10), accuracy=1.0, metric=ACCURACY, total_weight=10.0
        )

    def score(self, genome: Genome, max_divergence: float = math.inf) -> Score:
        if genome not in self.evaluated:
            kept = BANK.kept_fraction(genome)
            self.evaluated[genome] = Score(kept, 0.9, 0.01 if kept >= self.limit else -0.05, 10)
            self.examples_scored += 10
        return self.evaluated[genome]


def test_a_winner_between_two_candidates_is_a_point_of_the_record(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen, unseen = Rows(0.0), Rows(0.37)
    found = {GENOMES[i]: seen.score(GENOMES[i]) for i in (0, len(GENOMES) // 2, -1)}
    for name, value in (
        ("confirmation_rows", ["row"]),
        ("overfits", False),
        ("search_objective", seen),
        ("confirmation_objective", unseen),
    ):
        monkeypatch.setattr(stage, name, lambda *_, value=value: value)
    monkeypatch.setattr(stage.JointObjective, "baseline", seen.baseline)
    run: Any = SimpleNamespace(
        config=SimpleNamespace(search=SimpleNamespace(candidates=12), confidence=None)
    )
    before = seen.examples_scored
    genome, record = stage.confirmed(run, BANK, found, GENOMES[-1], LINE)
    assert genome not in (GENOMES[0], GENOMES[len(GENOMES) // 2], GENOMES[-1])
    [chosen] = [p for p in stage.points(BANK, found, genome, "uniform") if p["chosen"]]
    assert record is not None and record["kept"] == chosen["kept_fraction"] < 0.5
    assert record["examples"] == unseen.examples_scored + seen.examples_scored - before
    assert seen.examples_scored > before
