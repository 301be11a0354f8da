"""The common prefix of all rows of a split runs once per genome, and every row reuses it.

Few-shot examples, an instruction or the start of a chat template: their keys and values are
computed for one row, and each batch runs only the rest of its rows. The scores are the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from sieve.data.batches import as_inputs
from sieve.data.encoding import Tokens
from sieve.model.backbone import forward

PLAIN_LAYERS = (DynamicLayer, DynamicSlidingWindowLayer)
KeysValues = tuple[Tensor, Tensor]  # (1, heads, P, d) each


def prefix_of(batch: object) -> Tokens:
    """The tokens that all rows of a batch begin with and that run once; () for none."""
    prefix: Tokens = getattr(batch, "prefix", ())
    return prefix


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
            return self.run(partial(forward, model, inputs, keep))
        if not self._shares(model, prefix):
            parts = whole_rows(inputs, prefix)
            return torch.cat([self.run(partial(forward, model, part, keep)) for part in parts])
        self.tokens -= rows * len(prefix)
        pairs = self._keys_values(model, prefix)
        return self.run(partial(run_rows, model, inputs, keep, pairs))

    def run(self, rows: Callable[[], Tensor]) -> Tensor:
        """Run one pass over rows; returns its logits."""
        return rows()

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
