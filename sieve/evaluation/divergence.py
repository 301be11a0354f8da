"""How far a pruned model's answers are from the dense model's: KL at the answer tokens."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sieve.bank.bank import Bank
from sieve.bank.genome import Genome
from sieve.bank.switch import Switch
from sieve.data.batches import as_inputs, as_targets, trailing_positions
from sieve.model.backbone import forward


def answer_logprobs(model: PreTrainedModel, batch: Any) -> Tensor:
    """Log-probabilities (tokens, V), float32, where a calibration batch has an answer token."""
    inputs, wanted = as_inputs(batch), as_targets(batch) >= 0
    keep = trailing_positions(wanted)
    return torch.log_softmax(forward(model, inputs, keep)[wanted[:, -keep:]].float(), -1)


def divergence(dense: Tensor, pruned: Tensor) -> Tensor:
    """Σ KL(dense ‖ pruned) over tokens, nats, of log-probabilities (tokens, V)."""
    return nn.functional.kl_div(pruned, dense, reduction="sum", log_target=True)


@torch.no_grad()
def divergences(
    model: PreTrainedModel, candidates: Sequence[tuple[Bank, Genome]], batches: Sequence[Any]
) -> list[float]:
    """Mean divergence per answer token of each candidate, nats; the model comes back dense."""
    switches = [Switch(model, bank, as_stored=False) for bank, _ in candidates]
    totals, tokens = [0.0] * len(candidates), 0
    for batch in batches:
        dense = answer_logprobs(model, batch)
        tokens += len(dense)
        for index, (switch, (_, genome)) in enumerate(zip(switches, candidates, strict=True)):
            with switch.to(genome):
                totals[index] += float(divergence(dense, answer_logprobs(model, batch)))
    return [total / max(1, tokens) for total in totals]
