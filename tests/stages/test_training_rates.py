"""The rate of a training follows earlier ones; fewer rows judge by a weaker bound."""

from types import SimpleNamespace
from typing import Any

import pytest

from sieve.stages import training as module
from sieve.stages.training import Training, confidence_on_fewer
from sieve.tasks.drop_test import upper_of_counts


@pytest.mark.parametrize(
    ("kept", "rate"), [(0.02, 1e-3), (0.05, 5e-4), (0.1, 5e-4), (0.2, 2.5e-4), (0.9, 2.5e-4)]
)
def test_a_training_begins_at_the_lowest_rate_of_the_smaller_genomes(
    kept: float, rate: float
) -> None:
    training: Any = object.__new__(Training)
    training.settings = SimpleNamespace(learning_rate=1e-3)
    training.rates = [(0.05, 5e-4), (0.2, 2.5e-4), (0.03, 1e-3)]
    assert training._rate(kept, None) == rate


def test_a_genome_that_is_pruned_from_a_trained_one_goes_on_at_its_rate() -> None:
    training: Any = object.__new__(Training)
    training.settings = SimpleNamespace(learning_rate=1e-3)
    training.rates = [(0.01, 1e-3), (0.2, 1.25e-4)]
    parent: Any = SimpleNamespace(record={"rate": 1.25e-4})
    assert training._rate(0.1, parent) == 1.25e-4


def test_a_quarter_of_the_rows_gives_the_bound_that_all_rows_give() -> None:
    weaker = confidence_on_fewer(0.9, 1_000, 4_000)
    assert 0.5 < weaker < 0.9
    whole = upper_of_counts(200, 160, 4_000, 0.9)
    assert upper_of_counts(50, 40, 1_000, weaker) == pytest.approx(whole, abs=5e-4)
    assert upper_of_counts(50, 40, 1_000, 0.9) > whole + 5e-3


def test_more_rows_judge_by_no_stronger_bound() -> None:
    assert confidence_on_fewer(0.9, 4_000, 1_000) == pytest.approx(0.9)


def test_held_out_rows_judge_as_the_fresh_rows_would(monkeypatch: pytest.MonkeyPatch) -> None:
    baselines = [SimpleNamespace(values=range(count)) for count in (500, 2_000)]
    objective = SimpleNamespace(baseline=baselines[0], tolerance=0.02, confidence=0.9)
    monkeypatch.setattr(module, "objective_on", lambda *_: objective)
    monkeypatch.setattr(module, "head_start", lambda *_: 0.0)
    training: Any = object.__new__(Training)
    training.run, training.bank = SimpleNamespace(leads=True), None
    training.__dict__ |= {"rows": SimpleNamespace(reserved=[])}
    training.__dict__ |= {"fresh": SimpleNamespace(baseline=baselines[1])}
    assert training.objective.confidence == confidence_on_fewer(0.9, 500, 2_000) < 0.9
