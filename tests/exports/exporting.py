"""Pruned models to export, and greedy generation with them."""

from collections.abc import Sequence

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
