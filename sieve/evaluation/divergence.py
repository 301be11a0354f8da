"""Kullback-Leibler divergence of a pruned model's answers from the dense model's."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sieve.data.batches import as_targets, trailing_positions
from sieve.data.prefix import batch_logits


def answer_logprobs(model: PreTrainedModel, batch: object) -> Tensor:
    """Log-probabilities (tokens, V), float32, at the answer tokens of a calibration batch."""
    answers = as_targets(batch) >= 0
    keep = trailing_positions(answers)
    logits = batch_logits(model, batch, keep)[answers[:, -keep:]]
    return torch.log_softmax(logits.float(), -1)


def divergence(dense: Tensor, pruned: Tensor) -> Tensor:
    """KL(dense ‖ pruned), nats, summed over tokens; arguments are log-probabilities (tokens, V)."""
    return nn.functional.kl_div(pruned, dense, reduction="sum", log_target=True)


@torch.no_grad()
def divergences(
    model: PreTrainedModel,
    candidates: Sequence[Callable[[], AbstractContextManager[object]]],
    batches: Sequence[object],
) -> list[float]:
    """Mean divergence per answer token of each candidate, nats.

    candidates: each returns a context in which the model computes with the candidate's factors.
    """
    totals, tokens = [0.0] * len(candidates), 0
    for batch in batches:
        dense = answer_logprobs(model, batch)
        tokens += len(dense)
        for index, pruned in enumerate(candidates):
            with pruned():
                totals[index] += float(divergence(dense, answer_logprobs(model, batch)))
    return [total / max(1, tokens) for total in totals]
