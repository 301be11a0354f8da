"""Tokens that all rows of a role begin with are run once per genome, and lent to every row.

Few-shot examples, an instruction, the head of a chat template: their keys and values are computed
for one row, and every batch runs only what is each row's own. The scores are the same.
"""

import logging
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from sieve.data.encoding import EncodedExample, Tokens
from sieve.distributed.sharding import is_sharded
from sieve.model.backbone import cache_name, forward, input_names, is_classifier

log = logging.getLogger(__name__)
LEAST = 0.25  # of a typical row
# How a model says that attention does not reach back for ever, or that positions change with length
WINDOWS = ("sliding_window", "window_size", "attention_window_size", "attention_chunk_size")
STRETCHED = ("dynamic", "longrope")
PROBE, OWN = 5, (6, 3)  # tokens of the prefix, and of two rows behind it, that show what is exact
CLOSE = {torch.float32: 1e-4, torch.float64: 1e-6}  # of the largest logit; by rounding alone


@dataclass(frozen=True)
class Sharing:
    """When a common prefix is worth its while, and up to how many tokens of a row it is exact.

    least: of a typical row's tokens that must be common, from above 0 to 1; longest: gives the most
    tokens of a row with which a model can share, 0 where it cannot; asked only where it pays.
    """

    least: float
    longest: Callable[[], float]

    def prefix(self, encoded: Sequence[EncodedExample], written: int = 0) -> tuple[Tokens, float]:
        """The tokens to share among rows, none where that does not pay, and the longest such row.

        written: tokens that are written after each.
        """
        common = common_prefix(encoded)
        lengths = [len(row) for example in encoded for row in example.rows()] if common else []
        if not common or len(common) < self.least * statistics.median(lengths):
            return (), 0
        longest = self.longest() - written
        if min(lengths) > longest:
            log.info("a prefix of %d tokens is run with every row: the model cannot share it at "
                     "this length.", len(common))  # fmt: skip
            return (), 0
        return common, longest


def sharing_of(model: PreTrainedModel, least: float = LEAST) -> Sharing | None:
    """How a model shares prefixes; None where it never does."""
    if least > 1 or is_classifier(model):
        return None
    known: list[float] = []

    def longest() -> float:
        if not known:
            known.append(longest_shared(model))
        return known[0]

    return Sharing(least, longest)


def common_prefix(encoded: Sequence[EncodedExample]) -> Tokens:
    """What all prompts begin with, but for the last token of the shortest: it predicts an answer.

    Where one example has nothing before its choices, nothing is common.
    """
    if not encoded:
        return ()
    first = min(example.prefix for example in encoded)
    last = max(example.prefix for example in encoded)  # No other differs sooner.
    room = min(example.start for example in encoded) - 1
    for index in range(max(0, room)):
        if first[index] != last[index]:
            return first[:index]
    return first[: max(0, room)]


@torch.inference_mode()
def longest_shared(model: PreTrainedModel) -> float:
    """The most tokens of a row with which a lent prefix is exact: 0 none, inf any.

    Looked for by trying a few tokens both ways; what shows only in long rows is read from the
    configuration.
    """
    if not (cache_name(model) and "use_cache" in input_names(model)):
        return 0
    if is_sharded(model) or any(parameter.is_meta for parameter in model.parameters()):
        return 0
    width = PROBE + max(OWN)
    count = int(model.config.get_text_config().vocab_size)
    ids = torch.arange(2 * width, device=model.device).view(2, width) * 7 % count
    mask = torch.ones_like(ids)
    mask[1, : max(OWN) - min(OWN)] = 0
    ids[1, max(OWN) - min(OWN) :][:PROBE] = ids[0, :PROBE]
    places = (mask.cumsum(1) - 1).clamp(min=0)
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": places}
    try:
        whole = forward(model, inputs, 2)
        shared = Shared().forward(model, inputs, 2, tuple(ids[0, :PROBE].tolist()))
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        log.debug("%s shares no prefix: %s", type(model).__name__, error)
        return 0
    far = (whole.float() - shared.float()).abs().max() / whole.float().abs().max()
    return _reach(model) if float(far) <= CLOSE.get(whole.dtype, 0.05) else 0


def _reach(model: PreTrainedModel) -> float:
    """Tokens of a row up to which attention and positions are the same wherever padding stands."""
    text = model.config.get_text_config()
    reaches = [getattr(text, name, None) for name in WINDOWS]
    scaled: Any = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None)
    if scaled and any(kind in str(scaled) for kind in STRETCHED):
        limits = (scaled, vars(text))
        names = ("original_max_position_embeddings", "max_position_embeddings")
        reaches.append(next(h[name] for name in names for h in limits if h.get(name)))
    found = [reach for reach in reaches if isinstance(reach, int) and reach > 0]
    return min(found, default=math.inf)


class _Lent(DynamicLayer):
    """Keys and values (1, heads, P, d) of a prefix, set before those of every row; kept as is."""

    def __init__(self, layer: Any, length: int) -> None:
        super().__init__()
        self.keys, self.values = layer.keys[:, :, :length], layer.values[:, :, :length]
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Those of the prefix and the rows' own, (B, heads, P + T, d)."""
        pairs = ((self.keys, key_states), (self.values, value_states))
        keys, values = (
            torch.cat([held.expand(len(own), -1, -1, -1), own], -2)
            for held, own in pairs
            if held is not None
        )
        return keys, values


@dataclass
class Shared:
    """What one state of a model computes once: make another when its weights change.

    lends: false runs every row whole; tokens: that were run so far, padding counted; unshared: that
    would have been.
    """

    lends: bool = True
    tokens: int = 0
    unshared: int = 0
    _lent: dict[Tokens, DynamicCache] = field(default_factory=dict)

    def forward(
        self, model: PreTrainedModel, inputs: dict[str, Tensor], keep: int, prefix: Tokens = ()
    ) -> Tensor:
        """As `backbone.forward`, of left-padded rows (B, T) that all begin with `prefix`.

        With hooks on a layer, which see every token, the rows are run whole.
        """
        rows, width = inputs["input_ids"].shape
        own = width - len(prefix)
        self.count(rows * width)
        if not prefix:
            return forward(model, inputs, keep)
        if not self.lends or _watched(model):
            step = max(1, rows * own // width)  # The batch was made for rows without the prefix.
            parts = [{k: v[i : i + step] for k, v in inputs.items()} for i in range(0, rows, step)]
            return torch.cat([forward(model, part, keep) for part in parts])
        self.tokens -= rows * len(prefix)
        cache = self._prefix(model, prefix, inputs["input_ids"].device)
        # Own tokens end where the rows do, so they are as many columns from the left as before.
        mask = inputs["attention_mask"]
        mask = torch.cat([mask.new_ones(rows, len(prefix)), mask[:, :own]], 1)
        cut = {k: v[:, len(prefix) :] for k, v in inputs.items() if k != "attention_mask"}
        return forward(model, cut | {"attention_mask": mask}, keep, cache)

    def count(self, tokens: int) -> None:
        """Tokens that are run without sharing."""
        self.tokens += tokens
        self.unshared += tokens

    def growing(self, model: PreTrainedModel, prefix: Tokens, rows: int) -> DynamicCache | None:
        """A prefix's keys and values for so many rows, to which others may be added as they come.

        None where the rows are to be run whole.
        """
        if not (prefix and self.lends and not _watched(model)):
            return None
        self.tokens -= rows * len(prefix)
        held, cache = self._prefix(model, prefix, model.device), DynamicCache()
        cache.layers = [_grown(layer, rows) for layer in held.layers]
        return cache

    def _prefix(self, model: PreTrainedModel, prefix: Tokens, device: torch.device) -> DynamicCache:
        """The keys and values of a prefix; ValueError where the model's cache is not plain."""
        if prefix not in self._lent:
            longer = next((p for p in self._lent if p[: len(prefix)] == prefix), None)
            if longer is not None:  # Of fewer rows, those of a stage before, more was common.
                self._lent[prefix] = _cut(self._lent[longer], len(prefix))
                return self._lent[prefix]
            ids = torch.tensor([prefix], device=device)
            places = torch.arange(len(prefix), device=device)[None]
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            cache = DynamicCache(config=model.config)
            forward(model, inputs | {"position_ids": places}, 1, cache)
            if not all(_plain(layer, len(prefix)) for layer in cache.layers):
                raise ValueError("the model's cache holds more than keys and values.")
            self._lent[prefix] = _cut(cache, len(prefix))
            self.tokens += len(prefix)
        return self._lent[prefix]


def _cut(cache: DynamicCache, length: int) -> DynamicCache:
    """The first tokens of a cache, to be lent."""
    lent = DynamicCache()
    lent.layers = [_Lent(layer, length) for layer in cache.layers]
    return lent


def _grown(lent: Any, rows: int) -> DynamicLayer:
    layer = DynamicLayer()
    layer.lazy_initialization(lent.keys, lent.values)
    layer.keys = lent.keys.expand(rows, -1, -1, -1)
    layer.values = lent.values.expand(rows, -1, -1, -1)
    return layer


def _plain(layer: Any, length: int) -> bool:
    kinds = (DynamicLayer, DynamicSlidingWindowLayer)
    return type(layer) in kinds and layer.keys is not None and layer.keys.shape[-2] == length


def _watched(model: PreTrainedModel) -> bool:
    """Whether hooks stand on any layer of a model, as those that collect moments do."""
    return any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
