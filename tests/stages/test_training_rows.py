"""Trained sizes are judged on calibration rows, which the dense model may know."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sieve.stages import training as module
from sieve.stages.training import Training
from sieve.tasks.scores import Scores


def right(count: int) -> Scores:
    values = np.arange(200) < count
    return Scores(values.astype(int), values, np.zeros(200))


@pytest.mark.parametrize(("known", "tolerance"), [(180, 0.22), (141, 0.02), (120, 0.02)])
def test_what_the_dense_model_does_better_on_rows_that_it_knows_is_no_drop(
    monkeypatch: pytest.MonkeyPatch, known: int, tolerance: float
) -> None:
    objective = SimpleNamespace(baseline=right(known), tolerance=0.02, confidence=None)
    monkeypatch.setattr(module, "objective_on", lambda *_: objective)
    training = object.__new__(Training)
    training.run, training.bank = SimpleNamespace(leads=True), None
    training.__dict__ |= {"rows": SimpleNamespace(reserved=[])}
    training.__dict__ |= {"fresh": SimpleNamespace(baseline=right(140))}
    assert training.objective.tolerance == pytest.approx(tolerance)
    assert training.head_start == pytest.approx(tolerance - 0.02)


def test_rows_held_out_for_checks_stay_out_of_mixed_in_tasks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left_out: list[Any] = []
    monkeypatch.setattr(module, "mixed_tasks", lambda *given: left_out.extend(given[2]))
    monkeypatch.setattr(module, "paired_calibration_batches", lambda *_: [])
    monkeypatch.setattr(module, "unlabelled_pairs", lambda *_: [])
    monkeypatch.setattr(module, "batch_tokens", lambda _: 1)
    monkeypatch.setattr(module, "replace", lambda task, **_: task)
    training = object.__new__(Training)
    training.settings = SimpleNamespace(tokens=1)
    data = SimpleNamespace()
    run = SimpleNamespace(config=None, task=SimpleNamespace(splits={}), data=data, dense_data=data)
    run.data_of = lambda task, tokens, mix: mix()
    training.run = run
    training.__dict__["rows"] = SimpleNamespace(rest=["trained on"], reserved=["held out"])
    assert training.batches == [] and left_out == ["held out"]
