"""The task's own loss over a batch, whose gradients calibration collects.

Negative log-likelihood at the answer tokens: of an answer sampled from the dense model, which
makes the second moment of the gradient the Fisher information and needs no labels, or of the gold
answer (the empirical Fisher). Where a batch names no answer, every next token is one.
"""

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

IGNORED = -100


def as_targets(batch: Any) -> Tensor:
    """Tokens to predict (B, T), −100 where none is: the batch's `targets`, else every next token."""
    get: Callable[[str], Any] = lambda name: getattr(batch, name, None)  # noqa: E731
    if isinstance(batch, Mapping):
        get = batch.get
    if (targets := get("targets")) is not None:
        return targets
    ids, mask = get("input_ids"), get("attention_mask")
    targets = torch.full_like(ids, IGNORED)
    targets[:, :-1] = ids[:, 1:]
    if mask is not None:
        seen = mask.bool()
        targets[:, :-1].masked_fill_(~(seen[:, :-1] & seen[:, 1:]), IGNORED)
    return targets


def answer_loss(
    logits: Tensor, targets: Tensor, answers: str, generator: torch.Generator
) -> Tensor:
    """Summed negative log-likelihood of the answers, in float32.

    logits: (B, K, V); targets: (B, K), −100 where nothing is predicted; answers: "sampled" draws
    every answer token from the model, given the gold tokens before it; "gold" takes the targets.
    """
    wanted = targets != IGNORED
    logprobs = torch.log_softmax(logits[wanted].float(), dim=-1)  # (P, V)
    if answers == "gold":
        chosen = targets[wanted]
    else:
        # Sampled on the CPU by inversion, so that a seed means the same on every device.
        uniform = torch.rand(len(logprobs), 1, generator=generator).to(logprobs.device)
        cumulative = logprobs.detach().exp().cumsum(-1)
        chosen = torch.searchsorted(cumulative, uniform * cumulative[:, -1:]).squeeze(1)
        chosen = chosen.clamp_max(logprobs.shape[1] - 1)
    return -logprobs.gather(1, chosen[:, None]).sum()


def generator_for(input_ids: Tensor, seed: int) -> torch.Generator:
    """A generator that depends on the seed and the batch's tokens alone, on whatever rank."""
    digest = zlib.crc32(input_ids.cpu().numpy().tobytes())
    return torch.Generator().manual_seed((seed << 32) + digest)
