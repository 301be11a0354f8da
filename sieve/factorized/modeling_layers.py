"""Linear layers and embeddings stored as two factors, each an `nn.Linear`, and skipped modules.

Travels with exports beside `modeling_sieve.py`.
"""

import warnings
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.pytorch_utils import Conv1D


class FactorizedLinear(nn.Module):
    """A map of rank r from d_in to d_out features: y = factor_out(factor_in(x)).

    Plain storage: the weights are (r, d_in) and (d_out, r), and `order` is None.
    Pivoted storage: factor_in computes r of the outputs, the pivots; factor_out, with a weight
    (d_out - r, r), mixes all other outputs from the pivots; y = cat([pivots, mixtures])[order].
    Layers that read the same input may share one factor_in. It then computes the pivots of all of
    them, so `mixed`, the number of mixtures of this layer, does not follow from its rank.
    """

    order: Tensor | None  # (d_out,) int32
    reader: type[nn.Linear] = nn.Linear  # of the input

    def __init__(
        self,
        d_in: int,
        d_out: int,
        rank: int,
        bias: bool,
        pivoted: bool = False,
        mixed: int | None = None,
    ) -> None:
        super().__init__()
        self._owner: tuple[FactorizedLinear, ...] = ()  # A tuple keeps it out of the submodules.
        mixed = d_out - rank * pivoted if mixed is None else mixed
        with warnings.catch_warnings():  # Rank 0 has nothing to initialize, and torch warns.
            warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
            super().__setattr__("factor_in", self.reader(d_in, rank, bias=bias and pivoted))
            self.factor_out = nn.Linear(rank, mixed, bias=bias)
        self.register_buffer("order", torch.arange(d_out, dtype=torch.int32) if pivoted else None)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., d_in) to (..., d_out)."""
        # Attributes of nn.Module are slow enough to be seen in decoding; its dictionaries are not.
        outer, order = cast(nn.Linear, self._modules["factor_out"]), self._buffers["order"]
        eager = not torch.compiler.is_compiling()  # A compiled graph leaves the sizes open.
        if order is None:
            # With gradients rank 0 computes its empty products: DDP expects every parameter.
            if _is_bare(outer) and outer.in_features == 0 and eager and not torch.is_grad_enabled():
                return constant(outer, x)
            return outer(self.factor_in(x))
        pivots = self.factor_in(x)
        pivots = pivots.reshape(-1, pivots.shape[-1])  # index_select is slow on three dimensions.
        tokens, rank = pivots.shape
        # For many tokens order the rows of the weight, not of the outputs. The pivots are then
        # multiplied by an identity, which costs little at a small rank.
        many = eager and tokens > 32 and tokens > rank
        if many and 3 * rank <= len(order) and _is_bare(outer):
            y = linear(pivots, *self.unfolded())
        else:
            y = torch.cat([pivots, outer(pivots)], 1).index_select(1, order)
        return y.view(*x.shape[:-1], y.shape[-1])

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load the layer's tensors in vLLM, which has replaced the factors and knows no `order`."""
        parameters, loaded = dict(self.named_parameters()), set()
        for name, tensor in weights:
            if name == "order":
                assert self.order is not None
                self.order.copy_(tensor)
                continue
            parameter = parameters[name]
            load = getattr(parameter, "weight_loader", None) or (lambda p, t: p.data.copy_(t))
            load(parameter, tensor)
            loaded.add(name)
        return loaded

    def unfolded(self) -> tuple[Tensor, Tensor | None]:
        """Weight (d_out, r) and bias (d_out,) that map the pivots to all outputs, in order."""
        weight, bias, order = self.factor_out.weight, self.factor_out.bias, self.order
        assert order is not None
        eye = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
        ordered = torch.cat([eye, weight]).index_select(0, order)
        if bias is None:
            return ordered, None
        return ordered, torch.cat([bias.new_zeros(len(eye)), bias]).index_select(0, order)

    @property
    def factor_in(self) -> nn.Linear:
        """The first factor; it may belong to another layer, see `share_factor_in`."""
        return cast(nn.Linear, (self._owner[0] if self._owner else self)._modules["factor_in"])

    def extra_repr(self) -> str:
        return f"rank={self.factor_in.out_features}" + ", pivoted" * (self.order is not None)


class Absent(nn.Module):
    """A factor of rank 0 that is no `nn.Linear`, for engines that replace every Linear."""

    def __init__(self, factor: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = factor.in_features, factor.out_features
        self.weight, self.bias = factor.weight, factor.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features): the bias, or zero, or nothing."""
        return constant(self, x)


def constant(factor: "nn.Linear | Absent", x: Tensor) -> Tensor:
    """The output (..., out_features) of a factor that reads nothing of x (..., d)."""
    bias = x.new_zeros(1) if factor.bias is None else factor.bias
    return bias.expand(*x.shape[:-1], factor.out_features).clone()


class Lookup(nn.Linear):
    """The first factor of an embedding: token i reads column i of the weight (r, tokens)."""

    def forward(self, ids: Tensor) -> Tensor:
        """Map token ids (...) to (..., r)."""
        y = embedding(ids, self.weight.T)
        return y if self.bias is None else y + self.bias


class FactorizedEmbedding(FactorizedLinear):
    """An embedding of rank r: column i of the product (d_out, d_in) of both factors is for token i.

    d_in is the number of tokens.
    """

    reader = Lookup

    def forward(self, ids: Tensor) -> Tensor:
        """Map token ids (...) to (..., d_out)."""
        pivots = self.factor_in(ids)
        y = self.factor_out(pivots)
        return y if self.order is None else torch.cat([pivots, y], -1).index_select(-1, self.order)


def _is_bare(factor: nn.Module) -> bool:
    """Whether a factor is its weight and bias alone: not wrapped, hooked or quantized."""
    if type(factor) is not nn.Linear or type(factor.weight) is not nn.Parameter:
        return False
    # accelerate, which may keep weights elsewhere, gives the module a `forward` of its own.
    return not (factor._forward_hooks or factor._forward_pre_hooks or "forward" in vars(factor))


class SharedLinear(nn.Linear):
    """A factor_in that several layers apply to the same input: computed once for all of them."""

    def __init__(self, factor_in: nn.Linear, readers: int) -> None:
        super().__init__(1, 1, factor_in.bias is not None, device="meta")
        self.out_features, self.in_features = factor_in.weight.shape
        self.weight, self.bias = factor_in.weight, factor_in.bias
        self.readers, self._reads = readers, 0
        self._last: tuple[Tensor, int, Tensor] | None = None  # input, its version, output

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., d_in) to (..., d_out); drop the output when all layers have read it."""
        if torch.compiler.is_compiling():  # The compiler merges equal products by itself.
            return super().forward(x)
        version = 0 if x.is_inference() else x._version
        if self._last is None or self._last[0] is not x or self._last[1] != version:
            self._last, self._reads = (x, version, super().forward(x)), 0
        y, self._reads = self._last[2], self._reads + 1
        if self._reads == self.readers:
            self._last = None
        return y


def share_factor_in(owner: FactorizedLinear, *siblings: FactorizedLinear) -> None:
    """Let layers use the owner's factor_in, also after PEFT has wrapped or replaced it there."""
    shared = SharedLinear(owner.factor_in, 1 + len(siblings))
    owner._modules["factor_in"] = shared.train(owner.training)
    for layer in siblings:
        del layer._modules["factor_in"]
        layer._owner = (owner,)


class Skipped:
    """The forward pass of a module whose result is the constant output of one of its layers.

    Nothing but this layer, of rank 0, computes. The cache of keys and values gets one number for
    each token, because transformers counts the tokens of a cache in one of its layers.

    Args:
        writer: the path of the layer inside the module.
        results: the length of the tuple to return, the others None; 0 returns the output alone.
    """

    def __init__(self, module: nn.Module, writer: str, results: int) -> None:
        self.module, self.writer, self.results = module, writer, results
        self.d_in = cast(FactorizedLinear, module.get_submodule(writer)).factor_in.in_features

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor | None, ...]:
        """The layer's output (B, T, d_out) for hidden states (B, T, d), the first argument."""
        values = [*args, *kwargs.values()]
        hidden, cache = values[0], next((x for x in values if isinstance(x, Cache)), None)
        if cache is not None:
            self._count(cache, hidden)
        zeros = hidden.new_zeros(()).expand(*hidden.shape[:-1], self.d_in)
        y = self.module.get_submodule(self.writer)(zeros)
        return (y, *[None] * (self.results - 1)) if self.results else y

    def _count(self, cache: Cache, hidden: Tensor) -> None:
        index = cast(int, self.module.layer_idx)
        layers = cache.layers
        if index >= len(layers) or isinstance(layers[index], CacheLayerMixin):
            number = hidden.new_zeros(hidden.shape[0], 1, hidden.shape[1], 1)
            cache.update(number, number, index)


def skip(module: nn.Module, writer: str, results: int) -> None:
    """Let a module compute nothing but its writer, until `unskip`; see `Skipped`."""
    if "forward" not in vars(module):  # accelerate gives modules a `forward` of its own.
        module.forward = Skipped(module, writer, results)


def unskip(module: nn.Module) -> None:
    """Let a module compute again what its class computes."""
    if isinstance(vars(module).get("forward"), Skipped):
        del module.forward


def skipped(model: nn.Module) -> dict[str, Skipped]:
    """What each skipped module of a model does instead, by path."""
    found = {name: vars(module).get("forward") for name, module in model.named_modules()}
    return {name: forward for name, forward in found.items() if isinstance(forward, Skipped)}


def factorize(
    model: nn.Module,
    ranks: dict[str, int],
    biases: Sequence[str],
    pivoted: Sequence[str] = (),
    mixed: dict[str, int] | None = None,
    shared: dict[str, str] | None = None,
    skipped: dict[str, tuple[str, int]] | None = None,
    narrow: dict[str, tuple[int, int, bool]] | None = None,
) -> None:
    """Replace the named dense layers by FactorizedLinear of the given ranks, uninitialized.

    Args:
        biases: layers with a bias.
        pivoted: layers in pivoted storage.
        mixed: the number of mixtures of each layer that shares a factor_in.
        shared: for each layer that uses the factor_in of another, the name of that layer.
        skipped: for each module to skip, the arguments of `skip`.
        narrow: for each dense layer that has lost neurons, d_out, d_in and whether it has a bias.
    """
    for name, (d_out, d_in, has_bias) in (narrow or {}).items():
        linear = isinstance(model.get_submodule(name), nn.Linear)
        fewer = nn.Linear(d_in, d_out, has_bias) if linear else Conv1D(d_out, d_in)
        model.set_submodule(name, fewer)
    layers: dict[str, FactorizedLinear] = {}
    for name, rank in ranks.items():
        dense = model.get_submodule(name)
        # Conv1D and an embedding store the weight transposed.
        step = 1 if isinstance(dense, nn.Linear) else -1
        d_out, d_in = cast(Tensor, dense.weight).shape[::step]
        layer_class = FactorizedEmbedding if isinstance(dense, nn.Embedding) else FactorizedLinear
        layers[name] = layer_class(
            d_in, d_out, rank, name in biases, name in pivoted, (mixed or {}).get(name)
        )
        model.set_submodule(name, layers[name])
    siblings: dict[str, list[FactorizedLinear]] = {}
    for name, owner in (shared or {}).items():
        siblings.setdefault(owner, []).append(layers[name])
    for owner, sharing in siblings.items():
        share_factor_in(layers[owner], *sharing)
    for path, (writer, results) in (skipped or {}).items():
        skip(model.get_submodule(path), writer, results)
