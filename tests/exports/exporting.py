"""Pruned models to export, and greedy generation with them."""

from collections.abc import Sequence
from typing import Any

import torch
from sieved import LEVELS, banked, mixed
from transformers import PreTrainedModel

import sieve


def pruned(
    model: PreTrainedModel,
    projection: str = "output",
    levels: Sequence[float] = LEVELS,
    **options: object,
) -> PreTrainedModel:
    """The model, pruned in place to mixed levels with a bank of the given options."""
    bank = banked(model, projection, **options)
    sieve.apply(model, bank, mixed(bank, levels))
    return model


def greedy(
    model: PreTrainedModel,
    ids: torch.Tensor,
    mask: torch.Tensor | None = None,
    use_cache: bool = True,
) -> torch.Tensor:
    """The next twelve tokens, all different: tiny tied models repeat the token they read last."""
    written = model.generate(
        ids,
        attention_mask=torch.ones_like(ids) if mask is None else mask,
        max_new_tokens=12,
        do_sample=False,
        use_cache=use_cache,
        no_repeat_ngram_size=1,
        suppress_tokens=[0, 1, 2],
    )
    return written[:, ids.shape[1] :]


@torch.no_grad()
def likeliest(model: PreTrainedModel, ids: torch.Tensor, count: int) -> torch.Tensor:
    """The prompts (rows, length) and the likeliest `count` tokens after them, without a cache."""
    for _ in range(count):
        ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    return ids


@torch.no_grad()
def check_answers(model: PreTrainedModel, prompts: torch.Tensor, answers: dict[str, Any]) -> None:
    """An engine wrote the model's own tokens, and gave the prompts its log-probabilities.

    Args:
        prompts: (rows, length).
        answers: "tokens" (rows, count), and "logprobs" (rows, length - 1) of the prompts.
    """
    ids = likeliest(model, prompts, len(answers["tokens"][0]))
    assert answers["tokens"] == ids[:, prompts.shape[1] :].tolist()
    logprobs = model(prompts).logits.log_softmax(-1)[:, :-1]
    expected = logprobs.gather(2, prompts[:, 1:, None])[..., 0]
    assert torch.allclose(torch.tensor(answers["logprobs"]), expected, atol=1e-3)
