"""Rows on which a model computes NaN or infinity are counted, count as wrong, and are told of."""

import logging
import math
from collections.abc import Sequence
from functools import wraps

import numpy as np
import pytest
import torch
from models import tiny_llama, tiny_tokenizer
from transformers import PreTrainedModel
from written import choices, texts, writer

import sieve
from sieve.data.generation import writing_batches
from sieve.data.scored import ScoredBatch
from sieve.evaluation.evaluation import check_finite, score, warn_not_finite
from sieve.tasks import Example
from sieve.tasks.scores import Scores

PROMPTS = [f"film {number}" for number in range(6)]
BROKEN = "question"  # the word whose embedding is NaN
ROWS = [
    Example(f"{prompt}{' ' + BROKEN if index in (1, 4) else ''} is", (" good", " bad"), 0)
    for index, prompt in enumerate(PROMPTS)
]


def broken_model() -> PreTrainedModel:
    """A model that computes NaN for rows 1 and 4."""
    model = tiny_llama()
    [token] = tiny_tokenizer()(f" {BROKEN}").input_ids
    model.get_input_embeddings().weight[token] = math.nan
    return model


def written(rows: Sequence[Example]) -> Sequence[ScoredBatch]:
    rows = [Example(row.prompt, (" good",), 0, references=("good",)) for row in rows]
    return writing_batches(rows, writer(max_new_tokens=3), batch_tokens=64)


@pytest.mark.parametrize("batches", [choices, texts, written])
def test_rows_that_are_not_finite_are_counted_for_every_kind_of_task(batches) -> None:
    scores = score(broken_model(), batches(ROWS))
    assert np.flatnonzero(~np.isfinite(scores.losses)).tolist() == [1, 4]
    assert scores.not_finite == 2
    assert score(tiny_llama(), batches(ROWS)).not_finite == 0
    with pytest.raises(ValueError, match=r"not finite \(NaN or infinity\) on 2 of 6 rows.*float32"):
        check_finite(scores)


def test_a_row_with_one_choice_that_is_not_finite_is_wrong_and_counted() -> None:
    model = tiny_llama()
    inner = model.forward
    longer = [Example(row.prompt, (" good", " bad movie"), 0) for row in ROWS]
    [batch] = sieve.scoring_batches(longer, tiny_tokenizer())
    last = batch.positions[batch.slots[2, 1, 1]]  # where the third row predicts " movie"

    @wraps(inner)
    def broken(*args: object, **kwargs: object) -> object:
        output = inner(*args, **kwargs)
        output.logits.flatten(0, 1)[last] = math.nan
        return output

    model.forward = broken
    with torch.no_grad():
        outcome = batch.outcome(model)
    assert outcome.predicted[2] == -1 and outcome.values[2] == 0
    assert outcome.losses.isnan().tolist() == [index == 2 for index in range(6)]


def test_a_pruned_model_that_is_not_finite_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    losses = np.array([1.0, math.nan, 2.0])
    with caplog.at_level(logging.WARNING, "sieve"):
        warn_not_finite(Scores(np.zeros(3), np.ones(3), np.ones(3)), "The pruned model")
        assert not caplog.records
        warn_not_finite(Scores(np.zeros(3), np.ones(3), losses), "The pruned model")
    assert "The pruned model gives scores that are not finite" in caplog.text
    assert "on 1 of 3 rows" in caplog.text
