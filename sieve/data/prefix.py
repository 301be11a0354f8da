"""The common prefix of all rows of a split runs once per genome, and every row reuses it.

Few-shot examples, an instruction or the start of a chat template: their keys and values are
computed for one row, and each batch runs only the rest of its rows. The scores are the same.
"""

import logging
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from sieve.data.batches import as_inputs
from sieve.data.encoding import EncodedExample, Tokens, common_tokens
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
PLAIN_LAYERS = (DynamicLayer, DynamicSlidingWindowLayer)
KeysValues = tuple[Tensor, Tensor]  # (1, heads, P, d) each


@dataclass(frozen=True)
class PrefixSharing:
    """Decides whether rows share their common prefix.

    Args:
        least: the fraction (0, 1] of a typical row's tokens that the prefix must cover.
        longest: returns the length of the longest row for which sharing is exact, 0 if the model
            cannot share; called only if sharing would save time.
    """

    least: float
    longest: Callable[[], float]

    def prefix(
        self, encoded: Sequence[EncodedExample], new_tokens: int = 0
    ) -> tuple[Tokens, float]:
        """The prefix to share, () for none, and the length of the longest row that may share it.

        new_tokens: tokens that are generated after each row.
        """
        common = common_prefix(encoded)
        lengths = [len(row) for example in encoded for row in example.rows()] if common else []
        if not common or len(common) < self.least * statistics.median(lengths):
            return (), 0
        longest = self.longest() - new_tokens
        if min(lengths) > longest:
            log.info(
                "All rows begin with %d common tokens, but the model cannot share a prefix in rows "
                "of this length; every row runs whole.",
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
    return PrefixSharing(least, cache(lambda: longest_exact_row(load() if load else model)))


def prefix_of(batch: object) -> Tokens:
    """The tokens that all rows of a batch begin with and that run once; () for none."""
    prefix: Tokens = getattr(batch, "prefix", ())
    return prefix


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
    if is_sharded(model) or any(parameter.is_meta for parameter in model.parameters()):
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


class _PrefixLayer(DynamicLayer):
    """Keys and values (1, heads, P, d) of a prefix, which go before the rows' own."""

    keys: Tensor
    values: Tensor

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Prefix and rows together, (B, heads, P + T, d); the layer itself does not change."""
        rows = len(key_states)
        return (
            torch.cat([self.keys.expand(rows, -1, -1, -1), key_states], -2),
            torch.cat([self.values.expand(rows, -1, -1, -1), value_states], -2),
        )


@dataclass
class PrefixCache:
    """Keys and values of prefixes for one state of a model; make a new one when weights change.

    Args:
        lends: False runs every row whole.
        tokens: tokens that have run so far, padding included.
        unshared: tokens that would have run without sharing.
    """

    lends: bool = True
    tokens: int = 0
    unshared: int = 0
    _pairs: dict[Tokens, list[KeysValues]] = field(default_factory=dict)

    def forward(
        self, model: PreTrainedModel, inputs: dict[str, Tensor], keep: int, prefix: Tokens = ()
    ) -> Tensor:
        """As `backbone.forward`, for left-padded rows (B, T) that all begin with `prefix`.

        A model with hooks on a layer runs the rows whole, since hooks must see every token.
        """
        rows, width = inputs["input_ids"].shape
        self.count(rows * width)
        if not prefix:
            return forward(model, inputs, keep)
        if not self._shares(model, prefix):
            parts = whole_rows(inputs, prefix)
            return torch.cat([forward(model, part, keep) for part in parts])
        self.tokens -= rows * len(prefix)
        return run_rows(model, inputs, keep, self._keys_values(model, prefix))

    def count(self, tokens: int) -> None:
        """Count tokens that run without sharing."""
        self.tokens += tokens
        self.unshared += tokens

    def growing(self, model: PreTrainedModel, prefix: Tokens, rows: int) -> DynamicCache | None:
        """A prefix's keys and values for `rows` rows, which generation appends to.

        None if the rows must run whole.
        """
        if not self._shares(model, prefix):
            return None
        self.tokens -= rows * len(prefix)
        layers = []
        for keys, values in self._keys_values(model, prefix):
            layer = DynamicLayer()
            layer.lazy_initialization(keys, values)
            layer.keys = keys.expand(rows, -1, -1, -1)
            layer.values = values.expand(rows, -1, -1, -1)
            layers.append(layer)
        return _cache_of(layers)

    def _shares(self, model: PreTrainedModel, prefix: Tokens) -> bool:
        return bool(prefix) and self.lends and not _has_hooks(model)

    def _keys_values(self, model: PreTrainedModel, prefix: Tokens) -> list[KeysValues]:
        """The keys and values of a prefix by layer; ValueError if the model caches more."""
        if prefix not in self._pairs:
            length = len(prefix)
            # An earlier batch of fewer rows may have had a longer common prefix.
            longer = next((other for other in self._pairs if other[:length] == prefix), None)
            if longer is None:
                self.tokens += length
            pairs = self._pairs[longer] if longer else run_prefix(model, prefix)
            self._pairs[prefix] = [(k[:, :, :length], v[:, :, :length]) for k, v in pairs]
        return self._pairs[prefix]


def run_prefix(model: PreTrainedModel, prefix: Tokens) -> list[KeysValues]:
    """The keys and values of one row of a prefix by layer.

    Raises ValueError if the model caches more than plain keys and values.
    """
    ids = torch.tensor([prefix], device=model.device)
    positions = torch.arange(len(prefix), device=model.device)[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    computed = DynamicCache(config=model.config)
    forward(model, inputs | {"position_ids": positions}, 1, computed)
    return [plain_layer(layer, len(prefix)) for layer in computed.layers]


def plain_layer(layer: object, tokens: int) -> KeysValues:
    """The keys and values of a cached layer; ValueError if it holds anything else."""
    if (
        not isinstance(layer, DynamicLayer)
        or type(layer) not in PLAIN_LAYERS
        or layer.keys is None
        or layer.values is None
        or layer.keys.shape[-2] != tokens
    ):
        raise ValueError(
            "the model's cache has layers that are not plain keys and values; set share_prefix=2."
        )
    return layer.keys, layer.values


def batch_logits(model: PreTrainedModel, batch: object, keep: int) -> Tensor:
    """Logits (B, keep, V) of a batch's rows, whose common prefix runs once."""
    inputs, prefix = as_inputs(batch), prefix_of(batch)
    if not prefix:
        return forward(model, inputs, keep)
    return run_rows(model, inputs, keep, run_prefix(model, prefix))


def run_rows(
    model: PreTrainedModel, inputs: dict[str, Tensor], keep: int, pairs: Sequence[KeysValues]
) -> Tensor:
    """Logits (B, keep, V) of whole rows (B, T), computed without the prefix that they begin with.

    pairs: the keys and values of the prefix by layer.
    """
    own = without_prefix(inputs, pairs[0][0].shape[-2])
    return forward(model, own, keep, _cache_of([_PrefixLayer(*pair) for pair in pairs]))


def without_prefix(inputs: dict[str, Tensor], tokens: int) -> dict[str, Tensor]:
    """Left-padded rows (B, T) without their prefix, which the mask puts before the padding."""
    own = {name: tensor[:, tokens:] for name, tensor in inputs.items()}
    own["attention_mask"] = _mask_prefix_first(inputs["attention_mask"], tokens)
    return own


def whole_rows(inputs: dict[str, Tensor], prefix: Tokens) -> list[dict[str, Tensor]]:
    """Split a batch that was sized without the prefix, because its rows must run whole."""
    rows, width = inputs["input_ids"].shape
    step = max(1, rows * (width - len(prefix)) // width)
    return [{k: v[i : i + step] for k, v in inputs.items()} for i in range(0, rows, step)]


def cache_after(computed: DynamicCache, tokens: int) -> DynamicCache:
    """A cache for rows after a prefix, from the cache that one block has filled.

    Raises ValueError if the block caches more than the keys and values of one layer.
    """
    layers = [layer for layer in computed.layers if getattr(layer, "is_initialized", True)]
    if len(layers) != 1:
        raise ValueError(
            f"a decoder block cached {len(layers)} layers, expected one; set share_prefix=2."
        )
    return _cache_of([_PrefixLayer(*plain_layer(layers[0], tokens))] * len(computed.layers))


def _cache_of(layers: Sequence[DynamicLayer]) -> DynamicCache:
    cache = DynamicCache()
    cache.layers = list(layers)
    return cache


def prefix_first(ids: Tensor, mask: Tensor, prefix: Tokens) -> tuple[Tensor, Tensor]:
    """Left-padded rows and mask (B, T) with the padding after the prefix instead of before it."""
    tokens = torch.tensor(prefix, device=ids.device).expand(len(ids), -1)
    return (
        torch.cat([tokens, ids[:, len(prefix) :]], 1),
        _mask_prefix_first(mask, len(prefix)),
    )


def _mask_prefix_first(mask: Tensor, tokens: int) -> Tensor:
    """The mask (B, T) of rows with `tokens` prefix tokens before their padding.

    The rows' own tokens stay in the same columns, since they end where the rows end.
    """
    return torch.cat([torch.ones_like(mask[:, :tokens]), mask[:, : mask.shape[1] - tokens]], 1)


def _has_hooks(model: PreTrainedModel) -> bool:
    """Whether any layer but the head has forward hooks, for example to collect moments."""
    head = model.get_output_embeddings()
    layers = (layer for layer in model.modules() if layer is not head)
    return any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers)
