"""The objective on rows in stages: genomes are dropped early only where all rows would agree."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from models import tiny_llama
from scipy.special import ndtri
from sieved import banked, uniform

from sieve.search import objective as module
from sieve.search.objective import Objective, refusing_confidence
from sieve.tasks.scores import Scores

MODEL = tiny_llama()
BANK = banked(MODEL)
SHARES = (0.125, 0.25, 0.5)  # of the rows, after each stage


def scripted(
    monkeypatch: pytest.MonkeyPatch,
    rows: dict[str, np.ndarray],
    ends: list[int],
    judge: str = "margin",
    confidence: float | None = None,
) -> Any:
    """An objective in stages with scripted models.

    `rows` has the keys "dense" and "pruned" (which rows are right) and "far" (divergences).
    """

    def scored(_: Any, stage: Any, *__: Any) -> Scores:
        first, last = stage[0].span
        correct = rows["pruned" if switched[0] else "dense"][first:last]
        nothing = np.zeros(len(correct))
        far = rows.get("far", np.zeros(100))[first:last] if switched[0] else nothing
        return Scores(correct.astype(np.int64), correct, nothing, far)

    switched = [False]
    monkeypatch.setattr(module, "score", scored)
    stages = [[SimpleNamespace(span=(a, b))] for a, b in zip([0, *ends], ends, strict=False)]
    batches: Any = stages
    objective = Objective(MODEL, BANK, batches, 0.1, confidence, judge)
    switched[0] = True
    return objective


def test_stages_drop_only_genomes_that_all_rows_would_refuse(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    random, stopped = np.random.default_rng(0), 0
    for _ in range(60):
        dense = np.arange(100) >= 10  # rows that pruning may win come first
        rows = {"dense": dense, "pruned": dense ^ (random.random(100) < random.uniform(0, 0.4))}
        whole = scripted(monkeypatch, rows, [100]).score(uniform(BANK, 0.6))
        staged = scripted(monkeypatch, rows, [40, 80, 100]).score(uniform(BANK, 0.6))
        assert staged.feasible == whole.feasible
        assert staged.margin >= whole.margin and staged.accuracy >= whole.accuracy
        if staged.examples_used == 100:
            assert staged == whole
        else:
            stopped += 1
            assert not staged.feasible and staged.examples_used in (40, 80)
    assert stopped > 5


@pytest.mark.slow
def test_with_a_confidence_a_genome_far_beyond_the_tolerance_ends_after_few_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    random, genome, used = np.random.default_rng(0), uniform(BANK, 0.6), list[int]()
    for lost in np.repeat([0.02, 0.1, 0.35], 40):
        rows = {"dense": np.ones(400, bool), "pruned": random.random(400) >= lost}
        whole = scripted(monkeypatch, rows, [400], confidence=0.9).score(genome)
        score = scripted(monkeypatch, rows, [50, 100, 200, 400], confidence=0.9).score(genome)
        used.append(score.examples_used)
        assert score == whole if score.whole else not (whole.feasible or score.feasible)
    small, boundary, large = np.split(np.array(used), 3)
    # A genome whose drop is ε passes on all rows in one of ten draws.
    assert (small == 400).all() and 0.5 < (boundary == 400).mean() < 0.9 and (large <= 100).all()


@pytest.mark.parametrize("confidence", [0.8, 0.9, 0.95])
def test_few_genomes_that_all_rows_find_feasible_are_refused_on_the_first_ones(
    confidence: float,
) -> None:
    drawn = np.random.default_rng(0).normal(size=(50_000, 8)).cumsum(1) / np.sqrt(8)
    for beyond, refused_at_least in ((0.0, 0.15), (-1.0, 0), (-1.5, 0), (-2.0, 0)):
        # The drop minus ε on the first rows, over its standard error on all rows.
        estimates = {share: drawn[:, int(8 * share) - 1] / share + beyond for share in SHARES}
        refused = np.zeros(len(drawn), bool)
        for share, estimate in estimates.items():
            refused |= estimate * np.sqrt(share) > ndtri(refusing_confidence(share, confidence))
        feasible = drawn[:, -1] + beyond <= -ndtri(confidence)
        assert (feasible & refused).mean() < 0.01 and refused.mean() >= refused_at_least


def test_a_provisional_score_ends_after_few_rows_and_all_rows_decide_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    random, genome, used = np.random.default_rng(0), uniform(BANK, 0.6), list[int]()
    for lost in np.repeat([0.002, 0.1], 20):
        rows = {"dense": np.ones(400, bool), "pruned": random.random(400) >= lost}
        whole = scripted(monkeypatch, rows, [400], confidence=0.9).score(genome)
        objective = scripted(monkeypatch, rows, [50, 100, 200, 400], confidence=0.9)
        objective.provisional = True
        first = objective.score(genome)
        used.append(first.examples_used)
        assert first == objective.score(genome)
        assert first.whole or (not first.feasible and first.margin >= 0) or not whole.feasible
        objective.provisional = False
        score = objective.score(genome)
        assert score == whole if score.whole else score == first and not whole.feasible
    small, boundary = np.split(np.array(used), 2)
    assert (small <= 100).all() and (boundary == 400).mean() > 0.5


def test_genomes_beyond_the_divergence_limit_are_dropped_early(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    random, dropped, genome = np.random.default_rng(0), 0, uniform(BANK, 0.6)
    for _ in range(60):
        right = random.random(100) < random.uniform(0.7, 1)
        far = np.sort(random.exponential(0.1, 100))[::-1]
        rows = {"dense": np.ones(100, bool), "pruned": right, "far": far}
        whole = scripted(monkeypatch, rows, [100]).score(genome)
        objective = scripted(monkeypatch, rows, [20, 50, 100], "divergence")
        staged = objective.score(genome, 0.09)
        if staged.whole:
            assert staged == whole and staged.divergence == pytest.approx(far.mean())
        else:
            dropped += 1
            assert 0.09 < staged.divergence <= whole.divergence and not staged.feasible
            assert staged.examples_used in (20, 50)
            assert objective.score(genome, 0.05) is staged  # It exceeds this limit too.
            assert objective.score(genome) == whole  # Without a limit all rows are scored.
            assert objective.score(genome, 0.09) == whole
    assert 5 < dropped < 55
