"""Factorized layers, in the form that is quickest for so many tokens.

Travels with exports beside `modeling_sieve.py` and needs torch alone.
"""

import functools
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

Parts = tuple[torch.Tensor, torch.Tensor | None]  # a weight, and a bias or none
# Costs on a CPU, in multiplications: of a call, of putting an output in its place, of two products
# over one of as many, of reading weights (in tokens).
CALL, PLACE, SPLIT, READ = 150_000, 40, 1.15, 2
CHUNK = 256  # tokens that are put in order at a time: they stay in the cache
SMALL = 2**20  # numbers in a matrix whose other forms may be kept beside its factors


class FactorizedLinear(nn.Module):
    """A map of rank r from d_in to d_out features as two plain Linears, in one of two forms.

    Plain: y = factor_out(factor_in(x)), weights (r, d_in) and (d_out, r).
    Pivoted: factor_in(x) are r of the outputs themselves, factor_out mixes the d_out − r others
    from them, and `order` (d_out,) puts all in place. Rank 0 is plain: the bias alone.
    Siblings, which read one input, may share one factor_in; of its r outputs pivots are then those
    of all of them, and `mixed` says how many of this one's outputs are not among them.

    It computes what the factors say in the form that is quickest for so many tokens. Of a small
    matrix other forms are kept beside the factors while no gradients are computed on a CPU: with
    them it takes up to three times what the dense one does. They go when a weight changes.
    """

    order: torch.Tensor | None

    def __init__(
        self, d_in: int, d_out: int, rank: int, bias: bool, pivoted: bool = False,
        mixed: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if mixed is None:
            mixed = d_out - rank * pivoted
        with warnings.catch_warnings():  # Rank 0 has nothing to initialize, and torch says so.
            warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
            self.factor_in = nn.Linear(d_in, rank, bias=bias and pivoted)
            self.factor_out = nn.Linear(rank, mixed, bias=bias)
        self.register_buffer("order", torch.arange(d_out, dtype=torch.int32) if pivoted else None)
        self._kept: dict[int, _Kept] = {}  # by numbers in the input

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., d_in) to (..., d_out)."""
        if self._kept and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            kept = self._kept.get(x.numel())
            if kept is not None and kept.is_current():
                return kept(x)
        inner, outer, order = self.factor_in, self.factor_out, self.order
        if order is None:
            # Parameters without numbers need gradients too: optimizers and DDP look for them.
            if torch.is_grad_enabled() or outer.weight.numel() or not _is_plain(outer):
                return outer(inner(x))
            shape, bias = (*x.shape[:-1], outer.out_features), outer.bias
            # A copy: some models write to what they get.
            return x.new_zeros(shape) if bias is None else bias.expand(shape).clone()
        form = self._form(x, order)
        if form in ("kept", "merged"):
            return self._keep(form, x.numel())(x)
        if form == "buffered":
            return self._buffered(x, order)
        if form == "unfolded":
            return nn.functional.linear(inner(x), *self.unfolded())
        pivots = inner(x)
        # In two dimensions: in three, torch is ten times slower at it.
        joined = torch.cat([pivots, outer(pivots)], dim=-1)
        placed = joined.view(-1, joined.shape[-1]).index_select(1, order)
        return placed.view(*x.shape[:-1], len(order))

    def _form(self, x: torch.Tensor, order: torch.Tensor) -> str:
        """The quickest form that is allowed: a factor that is no plain Linear has to be called.

        Always the same in a graph that is compiled or exported, where sizes may be open.
        """
        inner, outer, d_in, d_out = self.factor_in, self.factor_out, x.shape[-1], len(order)
        if torch.compiler.is_compiling() or not _is_plain(outer) or not x.numel():
            return "ordered"
        free = x.device.type == "cpu" and type(x) is torch.Tensor and _is_plain(inner)
        free = free and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
        free = free and inner.weight.dtype == x.dtype
        # Of tensors made in inference mode, changes are not counted.
        used = (inner.weight, outer.weight, order)
        keeps = free and d_in * d_out <= SMALL and not any(t.is_inference() for t in used)
        return _quickest(x.numel() // d_in, d_in, d_out, outer.in_features, free, keeps)

    def _buffered(self, x: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        """Without gradients: pivots and mixtures side by side in a buffer, then put in order."""
        inner, outer, tokens = self.factor_in, self.factor_out, x.reshape(-1, x.shape[-1])
        out = x.new_empty(len(tokens), len(order))
        buffer = x.new_empty(min(CHUNK, len(tokens)), len(order))
        for rows, placed in zip(tokens.split(CHUNK), out.split(CHUNK), strict=True):
            joined = buffer[: len(rows)]
            pivots, mixtures = joined.tensor_split([outer.in_features], dim=1)
            for part, given, made in ((inner, rows, pivots), (outer, pivots, mixtures)):
                torch.mm(given, part.weight.t(), out=made)
                if part.bias is not None:
                    made += part.bias
            torch.index_select(joined, 1, order, out=placed)
        return out.view(*x.shape[:-1], len(order))

    def _keep(self, form: str, size: int) -> "_Kept":
        """Keep a form for inputs of a size; one serves all sizes that it is best for."""
        others = list(self._kept.values())  # A list: another thread may add to them.
        found = next((kept for kept in others if kept.form == form), None)
        if len(self._kept) > 64 or not all(kept.is_current() for kept in others):
            self._kept.clear()
            found = None
        self._kept[size] = found = found or _Kept(self, form)
        return found

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if "_kept" in self.__dict__:
            self.__dict__["_kept"].clear()  # PEFT merges into a factor before it puts that back.

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": {}}  # A copy has weights of its own.

    def unfolded(self) -> Parts:
        """Weight (d_out, r) and bias (d_out,) from the inner outputs to all, in order."""
        weight, order = self.factor_out.weight, self.order
        bias: torch.Tensor | None = self.factor_out.bias
        assert order is not None
        eye = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
        if bias is not None:
            bias = torch.cat([bias.new_zeros(len(eye)), bias]).index_select(0, order)
        return torch.cat([eye, weight]).index_select(0, order), bias

    def merged(self) -> Parts:
        """Weight (d_out, d_in) and bias (d_out,) of the one dense layer that does the same."""
        weight, bias = self.unfolded()
        exact, inner = weight.double(), self.factor_in
        if bias is not None:
            bias = (bias.double() + exact @ inner.bias.double()).to(bias.dtype)
        return (exact @ inner.weight.double()).to(weight.dtype), bias

    def read_from(self, sibling: "FactorizedLinear") -> None:
        """Share a sibling's factor_in, which stays the sibling's own, under its name alone.

        What wraps, replaces or merges into it there, as PEFT does, is so for both.
        """
        del self.factor_in
        self._read = [sibling]  # In a list, lest it become a part of this module.

    def __getattr__(self, name: str) -> Any:
        read = self.__dict__.get("_read") if name == "factor_in" else None
        return read[0].factor_in if read else super().__getattr__(name)

    def extra_repr(self) -> str:
        form = "" if self.order is None else ", pivoted"
        return f"rank={self.factor_in.out_features}{form}"


def _is_plain(factor: Any) -> bool:
    """Whether a factor is what it was made as: not wrapped, hooked, shared or quantized."""
    if type(factor) is not nn.Linear or type(factor.weight) is not nn.Parameter:
        return False
    # accelerate, which may hold weights elsewhere, puts another `forward` in the place of this.
    return not (factor._forward_hooks or factor._forward_pre_hooks or "forward" in factor.__dict__)


@functools.lru_cache(maxsize=4096)
def _quickest(tokens: int, d_in: int, d_out: int, rank: int, free: bool, keeps: bool) -> str:
    """The form that costs least: two products and an order, two without one, or one product."""
    often, place = tokens + READ, PLACE * d_out
    factors = SPLIT * rank * (d_in + d_out)
    costs = {
        "ordered": 4 * CALL + often * (factors - SPLIT * rank**2) + tokens * place,
        "unfolded": 5 * CALL + often * factors + 2 * rank * place,
    }
    if keeps:
        costs["kept"] = 2 * CALL + often * factors
        costs["merged"] = CALL + often * d_in * d_out
    form = min(costs, key=lambda name: costs[name])
    return "buffered" if free and form == "ordered" else form


class _Kept:
    """Another form of a layer's weights, for as long as they stay the same.

    Only what is written through `.data` goes unnoticed.
    """

    def __init__(self, layer: FactorizedLinear, form: str) -> None:
        factors = layer.factor_in, layer.factor_out
        weight, bias = layer.merged() if form == "merged" else layer.unfolded()
        self.form, self.inner = form, None if form == "merged" else layer.factor_in
        self.weight, self.bias = weight.detach(), None if bias is None else bias.detach()
        self.hooks = [h for f in factors for h in (f._forward_hooks, f._forward_pre_hooks)]
        held: list[tuple[Any, str]] = [(layer._buffers, "order")]
        held += [(f._parameters, name) for f in factors for name in ("weight", "bias")]
        self.seen = [(where, name, where[name], _state(where[name])) for where, name in held]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        given = x if self.inner is None else self.inner(x)
        return nn.functional.linear(given, self.weight, self.bias)

    def is_current(self) -> bool:
        """Whether all is as it was: the tensors, their versions, where they stand, no hooks."""
        for where, name, tensor, state in self.seen:
            if where[name] is not tensor or _state(tensor) != state:
                return False
        return not any(self.hooks)


def _state(tensor: torch.Tensor | None) -> tuple[int, int]:
    return (0, 0) if tensor is None else (tensor._version, tensor.data_ptr())


class SharedLinear(nn.Linear):
    """A factor_in that several siblings read with the same input: computed once for all of them."""

    def __init__(self, d_in: int, d_out: int, bias: bool, readers: int) -> None:
        super().__init__(d_in, d_out, bias)
        self.readers = readers
        self._last: tuple[torch.Tensor, int, torch.Tensor, int] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., d_in) to (..., d_out); the output is let go once all have read it."""
        if torch.compiler.is_compiling():  # The compiler finds by itself what is the same.
            return super().forward(x)
        last = self._last
        if last is not None and last[0] is x and last[1] == _version(x):
            reads = last[3] + 1
            self._last = (*last[:3], reads) if reads < self.readers else None
            return last[2]
        out = super().forward(x)
        self._last = (x, _version(x), out, 1)
        return out


def _version(x: torch.Tensor) -> int:
    return 0 if x.is_inference() else x._version


def factorize(
    model: nn.Module, ranks: dict[str, int], biases: list[str], pivoted: Sequence[str] = (),
    mixed: dict[str, int] | None = None, shared: dict[str, str] | None = None,
) -> None:  # fmt: skip
    """Replace the named dense layers by FactorizedLinear of the given ranks, uninitialized.

    mixed: how many outputs of a layer are mixtures, where that is not told by its rank; shared: the
    sibling whose factor_in a layer reads.
    """
    shared = shared or {}
    for name, rank in ranks.items():
        dense: Any = model.get_submodule(name)
        step = 1 if isinstance(dense, nn.Linear) else -1  # Conv1D holds W transposed.
        d_out, d_in = dense.weight.shape[::step]
        rows = (mixed or {}).get(name)
        layer = FactorizedLinear(d_in, d_out, rank, name in biases, name in pivoted, rows)
        readers = 1 + list(shared.values()).count(name)
        if readers > 1:
            layer.factor_in = SharedLinear(d_in, rank, name in biases and name in pivoted, readers)
        model.set_submodule(name, layer)
    for name, source in shared.items():
        sibling: Any = model.get_submodule(name)
        sibling.read_from(model.get_submodule(source))
