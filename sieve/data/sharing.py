"""Which prefix the rows of a split share, and in which rows a model can share it.

How a shared prefix runs is in `sieve.data.prefix`.
"""

import logging
import math
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sieve.data.encoding import EncodedExample, Tokens, common_tokens
from sieve.data.prefix import PrefixCache, run_prefix, run_rows
from sieve.distributed.sharding import is_sharded
from sieve.model.backbone import cache_name, forward, input_names, is_classifier

log = logging.getLogger(__name__)
LEAST_FRACTION = 0.25  # of a typical row that a prefix must cover to be shared
# Configuration fields that limit how far attention looks back.
WINDOWS = ("sliding_window", "window_size", "attention_window_size", "attention_chunk_size")
LENGTH_DEPENDENT = ("dynamic", "longrope")  # rotary positions that change with the row's length
PROBE_PREFIX, PROBE_ROWS = 5, (6, 3)  # tokens of a trial prefix and of the two rows after it
# Largest difference of two logits by rounding alone, as a fraction of the largest logit.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}


@dataclass(frozen=True)
class PrefixSharing:
    """Decides whether rows share their common prefix.

    Args:
        least: the fraction (0, 1] of a typical row's tokens that the prefix must cover.
        longest: returns the length of the longest row for which sharing is exact, 0 if the model
            cannot share; called only if sharing would save time.
        rereads: returns whether a layer computes with the prefix again for every row; called only
            for rows whose layers have hooks.
    """

    least: float
    longest: Callable[[], float]
    rereads: Callable[[], bool] = lambda: False

    def prefix(
        self, encoded: Sequence[EncodedExample], new_tokens: int = 0, hooked: bool = False
    ) -> tuple[Tokens, float]:
        """The prefix to share, () for none, and the length of the longest row that may share it.

        Args:
            new_tokens: tokens that are generated after each row.
            hooked: whether layers have hooks that must see each token of the rows once.
        """
        common = common_prefix(encoded)
        lengths = [len(row) for example in encoded for row in example.rows()] if common else []
        if not common or len(common) < self.least * statistics.median(lengths):
            return (), 0
        longest = self.longest() - new_tokens
        if min(lengths) > longest or (hooked and self.rereads()):
            log.info(
                "All rows begin with %d common tokens, but the model cannot share the prefix of "
                "these rows; every row runs whole.",
                len(common),
            )
            return (), 0
        return common, longest


def prefix_sharing_of(
    model: PreTrainedModel,
    least: float = LEAST_FRACTION,
    load: Callable[[], PreTrainedModel] | None = None,
) -> PrefixSharing | None:
    """How the rows of a model share a prefix; None if they never do.

    load: returns the model with weights if `model` has none; called only if sharing would pay off.
    """
    if least > 1 or is_classifier(model):
        return None

    def loaded() -> PreTrainedModel:
        return load() if load else model

    return PrefixSharing(
        least, cache(lambda: longest_exact_row(loaded())), cache(lambda: rereads_prefix(loaded()))
    )


def common_prefix(encoded: Sequence[EncodedExample]) -> Tokens:
    """The tokens that all prompts begin with, without the last token of the shortest prompt.

    The last token predicts the answer. () if an example has no prompt tokens.
    """
    prompts = [example.prefix for example in encoded]
    return common_tokens(prompts)[: max(0, min(map(len, prompts), default=0) - 1)]


@torch.inference_mode()
def longest_exact_row(model: PreTrainedModel) -> float:
    """The length of the longest row whose logits a shared prefix leaves the same: 0 none, inf any.

    A few tokens are run with and without sharing; limits that only long rows show are read from the
    configuration.
    """
    if not (cache_name(model) and "use_cache" in input_names(model)):
        return 0
    absent = (p for p in model.parameters() if p.is_meta and not hasattr(p, "source"))
    if is_sharded(model) or any(True for _ in absent):
        return 0
    width, padding = PROBE_PREFIX + max(PROBE_ROWS), max(PROBE_ROWS) - min(PROBE_ROWS)
    vocabulary = int(model.config.get_text_config().vocab_size)
    ids = torch.arange(2 * width, device=model.device).view(2, width) * 7 % vocabulary
    mask = torch.ones_like(ids)
    mask[1, :padding] = 0
    ids[1, padding:][:PROBE_PREFIX] = ids[0, :PROBE_PREFIX]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    prefix = tuple(ids[0, :PROBE_PREFIX].tolist())
    try:
        whole = forward(model, inputs, 2)
        shared = PrefixCache().forward(model, inputs, 2, prefix)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        log.debug("%s cannot share a prefix: %s", type(model).__name__, error)
        return 0
    difference = (whole.float() - shared.float()).abs().max() / whole.float().abs().max()
    exact = float(difference) <= TOLERANCE.get(whole.dtype, 0.05)
    return _attention_window(model) if exact else 0


@torch.inference_mode()
def rereads_prefix(model: PreTrainedModel) -> bool:
    """Whether a linear layer computes with the cached prefix again for every row.

    Latent attention does: it caches what keys and values are computed from.
    """
    return _vectors_after(model, PROBE_PREFIX) != _vectors_after(model, PROBE_PREFIX - 1)


def _vectors_after(model: PreTrainedModel, tokens: int) -> int:
    """How many vectors all linear layers read to compute one token after a prefix of `tokens`."""
    vectors = list[int]()
    ids = torch.arange(tokens + 1, device=model.device)[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": ids}
    pairs = run_prefix(model, tuple(range(tokens)))
    with ExitStack() as stack:
        for layer in (m for m in model.modules() if isinstance(m, nn.Linear | Conv1D)):
            handle = layer.register_forward_pre_hook(
                lambda _, args: vectors.append(args[0].numel() // args[0].shape[-1])
            )
            stack.enter_context(handle)
        run_rows(model, inputs, 1, pairs)
    return sum(vectors)


def _attention_window(model: PreTrainedModel) -> float:
    """The length of the longest row whose attention and positions do not depend on padding."""
    text = model.config.get_text_config()
    limits = [getattr(text, name, None) for name in WINDOWS]
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None)
    if rope and any(kind in str(rope) for kind in LENGTH_DEPENDENT):
        fields = vars(text) | {name: value for name, value in rope.items() if value}
        original = fields.get("original_max_position_embeddings")
        limits.append(original or fields["max_position_embeddings"])
    return min((n for n in limits if isinstance(n, int) and n > 0), default=math.inf)
