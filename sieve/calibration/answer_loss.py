"""The task's own loss over a batch, whose gradients calibration collects.

`sampled`: negative log-likelihood of an answer sampled from the dense model at the answer tokens,
which makes the second moment of its gradient the Fisher information and needs no labels.
`gold`: the same of the right answer (the empirical Fisher).
`margin`: −asinh(m) of the log-odds m = log p/(1 − p) of the dense model's likeliest token. What
the Fisher information weighs by p(1 − p) this weighs by 1/(1 + m²): a row whose answer is certain
still counts, as the changes of pruning are not small, and a few doubtful rows do not outweigh it.
Where a batch names no answer, every next token is one.
"""

import zlib

import torch
from torch import Tensor

from sieve.data.batches import IGNORED


def answer_loss(
    logits: Tensor, targets: Tensor, answers: str, generator: torch.Generator
) -> Tensor:
    """The loss summed over all answer tokens, in float32.

    logits: (B, K, V); targets: (B, K), −100 where nothing is predicted; answers: "sampled", "gold"
    or "margin"; every answer token is predicted from the gold ones before it.
    """
    wanted = targets != IGNORED
    if answers == "margin":
        return -torch.asinh(log_odds(logits[wanted].float())).sum()
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


def log_odds(logits: Tensor) -> Tensor:
    """log p/(1 − p) of the likeliest of V tokens: logits (P, V) to (P,)."""
    best = logits.detach().argmax(-1, keepdim=True)
    others = logits.scatter(1, best, float("-inf"))
    return logits.gather(1, best).squeeze(1) - others.logsumexp(-1)


def generator_for(input_ids: Tensor, seed: int) -> torch.Generator:
    """A generator that depends on the seed and the batch's tokens alone, on whatever rank."""
    # One checksum of both: the generator takes no more than 32 bits of a seed.
    digest = zlib.crc32(input_ids.cpu().numpy().tobytes(), seed & 0xFFFFFFFF)
    return torch.Generator().manual_seed(digest)
