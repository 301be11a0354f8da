"""The loss whose gradients calibration collects, summed over the answer tokens of a batch.

`sampled`: the negative log-likelihood of tokens sampled from the dense model itself. It needs no
labels, and the second moment of its gradient is the Fisher information.
`gold`: the negative log-likelihood of the right answer; its second moment is the empirical Fisher.
`margin`, the default: −asinh(m), where p is the probability of the dense model's most likely token
and m = log p/(1 − p). The Fisher information weights a row by p(1 − p), so rows whose answer is
certain count for nothing and a few doubtful rows dominate. Here a row's gradient is scaled by
1/√(1 + m²): pruning changes are not small, so certain rows must count.
Where a batch has no targets, every next token is an answer token.
"""

import zlib

import torch
from torch import Tensor

from sieve.data.batches import IGNORED


def answer_loss(
    logits: Tensor,
    targets: Tensor,
    answers: str,
    input_ids: Tensor,
    seed: int,
    random_signs: bool = False,
) -> Tensor:
    """The loss summed over all answer tokens, in float32.

    With random signs the loss of each row is multiplied by +1 or -1. A gradient that rows share is
    then Σ sᵢ gᵢ, and the mean of its second moment over signs is Σ gᵢ gᵢᵀ, the sum over rows.

    Args:
        logits: (B, K, V); the model reads the right tokens before each answer token.
        targets: (B, K), −100 where nothing is predicted.
        answers: "sampled", "gold" or "margin".
        input_ids: of the batch. With the seed they seed "sampled", the same on any rank.
        seed: of sampled answers and of signs.
    """
    wanted = targets != IGNORED
    losses = _losses(logits, targets, wanted, answers, _generator(input_ids, seed))
    if random_signs:
        generator = _generator(input_ids, seed + 1)
        signs = torch.randint(2, (len(targets),), generator=generator).to(losses.device) * 2 - 1
        losses = losses * signs[wanted.nonzero()[:, 0]]
    return losses.sum()


def _generator(input_ids: Tensor, seed: int) -> torch.Generator:
    """Random numbers of a batch, the same on any rank."""
    # A checksum of both, since a generator uses 32 bits of a seed.
    digest = zlib.crc32(input_ids.cpu().numpy().tobytes(), seed & 0xFFFFFFFF)
    return torch.Generator().manual_seed(digest)


def _losses(
    logits: Tensor, targets: Tensor, wanted: Tensor, answers: str, generator: torch.Generator
) -> Tensor:
    """The loss of each answer token (P,)."""
    if answers == "margin":
        return -torch.asinh(log_odds(logits[wanted].float()))
    logprobs = torch.log_softmax(logits[wanted].float(), dim=-1)  # (P, V)
    if answers == "gold":
        chosen = targets[wanted]
    else:
        # Inversion of CPU random numbers, so that a seed gives the same tokens on every device.
        uniform = torch.rand(len(logprobs), 1, generator=generator).to(logprobs.device)
        cumulative = logprobs.detach().exp().cumsum(-1)
        chosen = torch.searchsorted(cumulative, uniform * cumulative[:, -1:]).squeeze(1)
        chosen = chosen.clamp_max(logprobs.shape[1] - 1)
    return -logprobs.gather(1, chosen[:, None]).squeeze(1)


def log_odds(logits: Tensor) -> Tensor:
    """log p/(1 − p) of the most likely of V tokens: logits (P, V) to (P,)."""
    best = logits.detach().argmax(-1, keepdim=True)
    others = logits.scatter(1, best, float("-inf"))
    return logits.gather(1, best).squeeze(1) - others.logsumexp(-1)
