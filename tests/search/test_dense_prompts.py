"""An objective whose dense model reads other prompts than the pruned model."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from models import tiny_llama, tiny_tokenizer
from sieved import banked, uniform
from transformers import PreTrainedModel

from sieve.data.batches import as_inputs
from sieve.data.choices import choice_logprobs, scoring_batches
from sieve.evaluation.evaluation import score
from sieve.search.objective import Objective
from sieve.tasks.example import Example

EXAMPLES = [
    Example(f"{word} film, {i} of five stars:", (" good", " bad", " positive review"), i % 3)
    for i, word in enumerate(("a", "the", "no", "that", "one", "some", "my", "your", "this", "any"))
]
model = tiny_llama()
BANK = banked(model)
SHOTS = "a good film: good\na bad film: bad\n"
BATCHES = scoring_batches(EXAMPLES, tiny_tokenizer(), batch_tokens=64)


def test_the_dense_model_may_read_other_prompts() -> None:
    longer = [
        dataclasses.replace(example, prompt=SHOTS * (i % 3) + example.prompt)
        for i, example in enumerate(EXAMPLES)
    ]
    tokenizer = tiny_tokenizer(model_max_length=512)
    dense_batches = scoring_batches(longer, tokenizer, batch_tokens=128)
    assert [b.examples.tolist() for b in dense_batches] != [b.examples.tolist() for b in BATCHES]
    both = Objective(model, BANK, BATCHES, tolerance=1.0, dense_batches=dense_batches)
    assert both.baseline.losses.tolist() == score(model, dense_batches).losses.tolist()
    genome = uniform(BANK, 0.6)
    same = Objective(model, BANK, BATCHES, tolerance=1.0)
    assert both.score(genome).accuracy == same.score(genome).accuracy

    def choices(model: PreTrainedModel, batches: Any) -> torch.Tensor:
        rows = torch.full((len(EXAMPLES), 3), math.nan)
        for batch in batches:
            output = model(**as_inputs(batch)).logits[:, -batch.keep :]
            rows[batch.examples] = choice_logprobs(output, batch)
        return rows.log_softmax(1)

    p = choices(model, dense_batches)
    with both.switch.to(genome):
        q = choices(model, BATCHES)
    expected = (p.exp() * (p - q)).sum(1)
    assert both.divergences(genome) == pytest.approx(expected.numpy(), abs=1e-5)


def test_without_its_long_prompt_the_dense_model_may_lose_accuracy() -> None:
    right = score(model, BATCHES).predicted
    examples = [dataclasses.replace(e, answer=int(a)) for e, a in zip(EXAMPLES, right, strict=True)]
    wrong = [dataclasses.replace(e, answer=(e.answer + 1) % 3) for e in examples]
    good, bad = (
        scoring_batches(rows, tiny_tokenizer(), batch_tokens=64) for rows in (examples, wrong)
    )
    objective = Objective(model, BANK, bad, tolerance=0.02, dense_batches=good)
    dense = objective.score(uniform(BANK, 1.0))
    assert objective.baseline.accuracy == 1 and dense.accuracy == 0 and not dense.feasible
