"""The objective: margins by hand, every genome scored once, the model left as it was."""

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from models import tiny_llama, tiny_tokenizer
from sieved import banked, logits, mixed, uniform
from transformers import PreTrainedModel

import sieve
from sieve.data.choices import scoring_batches
from sieve.evaluation.evaluation import score
from sieve.factorized.modeling_layers import FactorizedLinear
from sieve.search import objective as module
from sieve.search.objective import Objective
from sieve.search.score import Score
from sieve.tasks.drop_test import score_test
from sieve.tasks.example import Example
from sieve.tasks.scores import Scores

EXAMPLES = [
    Example(f"{word} film, {i} of five stars:", (" good", " bad", " positive review"), i % 3)
    for i, word in enumerate(("a", "the", "no", "that", "one", "some", "my", "your", "this", "any"))
]
MODEL = tiny_llama()
BANK = banked(MODEL)
BATCHES = scoring_batches(EXAMPLES, tiny_tokenizer(), batch_tokens=64)


@pytest.fixture
def model() -> Iterator[PreTrainedModel]:
    """The dense model; fails the test if it is changed afterwards."""
    state, layers = copy.deepcopy(MODEL.state_dict()), dict(MODEL.named_modules())
    before = logits(MODEL)
    yield MODEL
    assert dict(MODEL.named_modules()) == layers
    assert not any(isinstance(layer, FactorizedLinear) for layer in layers.values())
    assert list(MODEL.state_dict()) == list(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in MODEL.state_dict().items())
    assert torch.equal(logits(MODEL), before)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The arguments of every call of `score`."""
    made: list[tuple[Any, ...]] = []

    def counted(*args: Any) -> Scores:
        made.append(args)
        return score(*args)

    monkeypatch.setattr(module, "score", counted)
    return made


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Score]:
    """Score one pruned genome, given which examples the dense and the pruned model get right."""

    def run(baseline: np.ndarray, pruned: np.ndarray, **options: Any) -> Score:
        answers = iter([baseline, pruned])

        def scripted(*_: Any) -> Scores:
            correct = next(answers)
            return Scores(correct.astype(np.int64), correct, np.zeros(len(correct)))

        monkeypatch.setattr(module, "score", scripted)
        return Objective(MODEL, BANK, BATCHES, **options).score(uniform(BANK, 0.6))

    return run


def pair(total: int, lost: int, won: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Whether the dense and the pruned model are right on `total` rows.

    `lost` rows are right only in the dense model, `won` rows only in the pruned one; of the other
    rows both models answer half correctly.
    """
    rest = total - lost - won
    counts = [lost, won, rest // 2, rest - rest // 2]
    return (
        np.repeat([True, False, True, False], counts),
        np.repeat([False, True, True, False], counts),
    )


# .07 * 100 and .29 * 100 are not 7 and 29 in floating point; 1 % of 150 rows is one and a half.
@pytest.mark.parametrize(
    ("total", "tolerance", "allowed"),
    [(50, 0.02, 1), (100, 0.07, 7), (100, 0.29, 29), (150, 0.01, 1), (10, 0.0, 0)],
)
def test_a_drop_of_exactly_the_tolerance_is_feasible_and_one_example_more_is_not(
    judge: Callable[..., Score], total: int, tolerance: float, allowed: int
) -> None:
    within = judge(*pair(total, allowed), tolerance=tolerance)
    beyond = judge(*pair(total, allowed + 1), tolerance=tolerance)
    assert within.feasible and within.margin >= 0
    assert not beyond.feasible and beyond.margin < 0
    assert within.margin == pytest.approx(tolerance - allowed / total, abs=1e-12)
    assert within.margin - beyond.margin == pytest.approx(1 / total)
    if math.isclose(tolerance * total, allowed):
        assert within.margin == 0


def test_the_margin_is_accuracy_minus_the_accuracy_required(
    judge: Callable[..., Score],
) -> None:
    baseline, pruned = pair(40, lost=3, won=5)
    found = judge(baseline, pruned, tolerance=0.1)
    assert found.accuracy == (5 + 16) / 40 == pruned.mean()
    # Two more right than dense, of 40: .525 - (.475 - .1).
    assert found.margin == pytest.approx(0.15)
    assert found.examples_used == 40


def test_the_margin_takes_the_point_estimate_or_with_a_confidence_the_upper_bound(
    judge: Callable[..., Score],
) -> None:
    baseline, pruned = pair(200, lost=10, won=10)
    assert judge(baseline, pruned, tolerance=0.02).margin == pytest.approx(0.02)
    confident = judge(baseline, pruned, tolerance=0.02, confidence=0.9)
    # 20 of 200 rows differ: a standard error of √20 / 200, 1.28 of which are .029.
    assert confident.margin == pytest.approx(0.02 - 1.28 * math.sqrt(20) / 200, abs=0.001)
    assert not confident.feasible
    assert confident.accuracy == pruned.mean()


def test_a_genome_is_feasible_exactly_when_the_test_rejects_a_drop_of_the_tolerance(
    judge: Callable[..., Score],
) -> None:
    for lost, won, confidence in itertools.product((2, 6, 14), (0, 2, 9), (0.6, 0.8, 0.9, 0.99)):
        score = judge(*pair(500, lost, won), tolerance=0.025, confidence=confidence)
        assert score.feasible == (score_test(lost, won, 500, 0.025) <= 1 - confidence)


def test_an_upper_bound_of_exactly_the_tolerance_is_feasible(judge: Callable[..., Score]) -> None:
    rows = pair(200, lost=6, won=2)
    bound = 0.02 - judge(*rows, tolerance=0.02, confidence=0.8).margin
    assert judge(*rows, tolerance=bound, confidence=0.8).margin == pytest.approx(0, abs=1e-15)
    assert judge(*rows, tolerance=math.nextafter(bound, 1), confidence=0.8).feasible
    assert not judge(*rows, tolerance=bound - 1e-9, confidence=0.8).feasible


def test_with_a_confidence_few_rows_without_a_difference_are_not_enough(
    judge: Callable[..., Score],
) -> None:
    score = judge(*pair(30, lost=0), tolerance=0.01, confidence=0.9)
    # No row of 30 is lost: the one-sided Clopper-Pearson bound is 1 - .1 ** (1 / 30).
    assert score.margin == pytest.approx(0.01 - (1 - 0.1 ** (1 / 30)))
    assert not score.feasible


def test_equal_genomes_are_scored_once(
    model: PreTrainedModel, calls: list[tuple[Any, ...]]
) -> None:
    objective = Objective(model, BANK, BATCHES)
    assert (len(calls), objective.examples_scored) == (1, 10)  # the baseline
    first = objective.score(mixed(BANK))
    assert (len(calls), objective.examples_scored) == (2, 20)
    assert objective.score(mixed(BANK)) is first
    assert (len(calls), objective.examples_scored) == (2, 20)
    objective.score(uniform(BANK, 0.3))
    assert (len(calls), objective.examples_scored) == (3, 30)
    assert list(objective.evaluated) == [mixed(BANK), uniform(BANK, 0.3)]


@pytest.mark.parametrize("confidence", [None, 0.9])
def test_the_dense_genome_costs_nothing_and_is_within_any_tolerance(
    model: PreTrainedModel, calls: list[tuple[Any, ...]], confidence: float | None
) -> None:
    objective = Objective(model, BANK, BATCHES, tolerance=0.0, confidence=confidence)
    dense = objective.score(uniform(BANK, 1.0))
    assert (len(calls), objective.examples_scored) == (1, 10)
    assert (dense.kept_fraction, dense.margin, dense.examples_used) == (1, 0, 10)
    assert dense.accuracy == objective.baseline.accuracy and dense.feasible


def test_the_score_is_that_of_the_factorized_model(model: PreTrainedModel) -> None:
    genomes = [mixed(BANK), *(uniform(BANK, level) for level in (0.6, 0.3, 0.0))]
    objective = Objective(model, BANK, BATCHES, tolerance=0.1)
    found = [objective.score(genome) for genome in genomes]
    for genome, ours in zip(genomes, found, strict=True):
        other = copy.deepcopy(model)
        sieve.apply(other, BANK, genome)
        correct = score(other, BATCHES).correct
        lost = objective.baseline.correct.sum() - correct.sum()
        assert ours.accuracy == correct.mean()
        assert ours.margin == pytest.approx(0.1 - lost / 10)
        assert ours.kept_fraction == BANK.kept_fraction(genome)
        assert ours.examples_used == len(EXAMPLES)
    assert len({ours.accuracy for ours in found} | {objective.baseline.accuracy}) > 1


def test_the_dense_and_the_pruned_model_are_scored_on_the_same_batches(
    model: PreTrainedModel, calls: list[tuple[Any, ...]]
) -> None:
    Objective(model, BANK, BATCHES).score(mixed(BANK))
    assert [call[1] for call in calls] == [BATCHES] * 2


def test_after_a_failure_the_model_is_dense_again_and_no_score_is_kept(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = Objective(model, BANK, BATCHES)

    def broken(pruned: PreTrainedModel, *_: Any) -> Scores:
        assert any(isinstance(layer, FactorizedLinear) for layer in pruned.modules())
        raise RuntimeError("out of memory")

    monkeypatch.setattr(module, "score", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        objective.score(mixed(BANK))
    assert objective.evaluated == {}


@pytest.mark.parametrize("level", [1.0, 0.3])
@pytest.mark.parametrize("stray", [{"bank": "another"}, {"names": ("a", "b")}])
def test_a_genome_of_another_bank_is_refused(
    model: PreTrainedModel, stray: dict[str, Any], level: float
) -> None:
    changed = stray | ({"indexes": (0, 0)} if "names" in stray else {})
    genome = dataclasses.replace(uniform(BANK, level), **changed)
    with pytest.raises(ValueError, match="belongs to bank"):
        Objective(model, BANK, BATCHES).score(genome)


def test_the_mean_of_the_rows_divergences_is_the_divergence(model: PreTrainedModel) -> None:
    objective = Objective(model, BANK, BATCHES)
    far = objective.divergences(mixed(BANK))
    assert far.shape == (10,) and (far >= 0).all()
    assert far.mean() == pytest.approx(objective.score(mixed(BANK)).divergence)


def test_stages_double_and_decisive_rows_come_first() -> None:
    assert (module.stage_ends(100, 32), module.stage_ends(20, 32)) == ([32, 64, 100], [20])
    correct, losses = np.array([True, False, True, True]), np.array([0.1, 0.9, 0.6, 0.3])
    order = module.hardest_first(Scores(np.zeros(4, np.int64), correct, losses))
    assert order.tolist() == [1, 2, 3, 0]
