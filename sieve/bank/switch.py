"""Swap factors of a bank in and out of a model, and merge them back to dense weights."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sieve.bank.bank import Bank, BankFactors
from sieve.bank.dealt_factors import DealtFactors
from sieve.bank.genome import Genome
from sieve.bank.pivoting import Pivoted, part_of, pivot
from sieve.bank.placed import SPARE, Placed
from sieve.distributed.sharding import is_sharded, whole
from sieve.factorized.modeling_experts import unfold
from sieve.factorized.modeling_layers import FactorizedLinear, share_factor_in
from sieve.factorized.modeling_sieve import native_class
from sieve.model.matrices import dense_like


class Switch:
    """A model whose matrices follow a genome; changing the genome copies no weights.

    Level 1 is the model's own dense layer. The factors are views of the bank's, moved to the
    model's device and dtype as far as genomes have asked for them. As a context manager it puts the
    dense model back at the end.
    as_stored: false computes with those views whatever the storage form, which is quick to change
    and the same map; true gives every layer the bank's own form and the numbers it is stored in.
    dealt: ranks that share out the model share out those views too, but of groups of siblings; for
    passes without gradients.
    """

    def __init__(
        self, model: PreTrainedModel, bank: Bank, as_stored: bool = True, dealt: bool = False
    ) -> None:
        self.model = model
        self.bank = bank
        self.as_stored = as_stored
        self.pivots = as_stored and bank.sizing.storage == "pivoted"
        self.dense = {m.name: model.get_submodule(m.name) for m in bank.matrices}
        if any(isinstance(layer, FactorizedLinear) for layer in self.dense.values()):
            raise ValueError(
                "got a model that is factorized already, expected the dense one; call restore() "
                "on what apply() returned first."
            )
        spare = 1.0 if as_stored else SPARE  # One genome, or many in turn.
        self._placed = Placed(bank, model.device, model.dtype, spare=spare)
        self._dealt = DealtFactors(model, bank) if dealt and is_sharded(model) else None
        self._groups = {group.name: group for group in bank.groups}
        self._d_out = {matrix.name: matrix.d_out for matrix in bank.matrices}
        biases = {name: getattr(m, "bias", None) for name, m in self.dense.items()}
        self.biases = {n: None if b is None else whole(b) for n, b in biases.items()}
        self._factorized: dict[str, FactorizedLinear] = {}
        self._biases: dict[tuple[str, int], Tensor | None] = {}

    def to(self, genome: Genome) -> "Switch":
        """Make the model the one of `genome`; ValueError when it belongs to another bank."""
        genome.check_bank(self.bank.fingerprint, self.bank.names)
        return self.set_ranks(self.bank.ranks(genome))

    def restore(self) -> "Switch":
        """Put every dense layer back."""
        return self.set_ranks(dict.fromkeys(self.dense))

    def set_ranks(self, ranks: Mapping[str, int | None]) -> "Switch":
        """Give each named matrix a rank, or None for its dense layer.

        A group of siblings with a rank shares factors among them, whatever theirs are; None leaves
        them as they are.
        """
        for name, rank in ranks.items():
            if name not in self._groups:
                if self._dealt is not None and not rank:
                    self._dealt.take(name)
                layer = self.dense[name] if rank is None else self._factorize(name, rank)
                self.model.set_submodule(name, layer)
        for name, rank in ranks.items():
            if name in self._groups and rank is not None:
                for member, layer in self._factorize_group(name, rank).items():
                    if self._dealt is not None:
                        self._dealt.take(member)
                    self.model.set_submodule(member, layer)
        return self

    def replace(self, name: str, factors: BankFactors, rank: int) -> None:
        """Give one matrix factors that are not the bank's, of a switch that is not dealt."""
        self._check_whole()
        self._placed.replace(name, factors)
        self.set_ranks({name: rank})

    def _check_whole(self) -> None:
        if self._dealt is not None:
            raise RuntimeError("ranks share out these factors; use a Switch with dealt=False.")

    @contextmanager
    def lifted(self, names: Sequence[str]) -> Iterator[None]:
        """Put the dense layers of some matrices back for the block; of a switch not dealt."""
        self._check_whole()
        layers = {name: self.model.get_submodule(name) for name in names}
        self.set_ranks(dict.fromkeys(names))
        try:
            yield
        finally:
            for name, layer in layers.items():
                self.model.set_submodule(name, layer)

    def __enter__(self) -> "Switch":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.restore()

    def _factorize_group(self, name: str, rank: int) -> dict[str, FactorizedLinear]:
        """The members' layers, of one factor_in; as stored it is one module, else views of one."""
        factors, members = self._placed.of(name, rank), self._groups[name].members
        cuts = [self._d_out[member] for member in members]
        dense = [self.biases[member] for member in members]
        whole = None if dense[0] is None else torch.cat([b for b in dense if b is not None])
        bias = add_biases(whole, factors.bias(rank), self.bank.dtype)
        layers = {}
        if self.pivots and rank:
            exact = self.bank.factors[name]
            u, v = exact.u[:, :rank].to(self.model.device), exact.v[:rank].to(self.model.device)
            pivoted, start = pivot(u, v, bias), 0
            for member, size in zip(members, cuts, strict=True):
                part = part_of(pivoted, start, start + size)
                layers[member] = pivoted_layer(part, self.model.dtype)
                start += size
        else:
            parts = factors.u[:, :rank].split(cuts)
            biases = [None] * len(cuts) if bias is None else bias.split(cuts)
            for member, u, b in zip(members, parts, biases, strict=True):
                layers[member] = empty_factorized(b is not None)
                set_factors(layers[member], u, factors.v[:rank], b)
        if self.as_stored:
            share_factor_in(*layers.values())
        return layers

    def _factorize(self, name: str, rank: int) -> FactorizedLinear:
        if self._dealt is not None and rank and self._dealt.takes(name):
            return self._deal(self._dealt, name, rank)
        if self.pivots and rank:
            bias = self._bias(name, rank)
            exact = self.bank.factors[name]
            u, v = exact.u[:, :rank].to(self.model.device), exact.v[:rank].to(self.model.device)
            return pivoted_layer(pivot(u, v, bias), self.model.dtype)
        factors = self._placed.of(name, rank)
        bias = add_biases(self.biases[name], factors.bias(rank), self.bank.dtype)
        layer = self._factorized.get(name)
        if layer is None:
            layer = self._factorized[name] = empty_factorized(bias is not None)
        set_factors(layer, factors.u[:, :rank], factors.v[:rank], bias)
        return layer

    def _deal(self, dealt: DealtFactors, name: str, rank: int) -> FactorizedLinear:
        """A layer that gets its factors from all ranks, before its block runs."""
        bias = self._bias(name, rank)
        layer = self._factorized.get(name)
        if layer is None:
            layer = self._factorized[name] = empty_factorized(bias is not None)
        set_factors(layer, *dealt.give(name, layer, rank), bias)
        return layer

    def _bias(self, name: str, rank: int) -> Tensor | None:
        """The bias of a matrix at a rank > 0, for which no factors stay on the device."""
        if (name, rank) not in self._biases:
            held, fitted = self.bank.factors[name], None
            if held.offset is not None:
                place = self.model.device, self.model.dtype
                u, offset = held.u[:, :rank].to(*place), held.offset[:rank].to(*place)
                fitted = held.mean.to(*place) - u @ offset
            self._biases[name, rank] = add_biases(self.biases[name], fitted, self.bank.dtype)
        return self._biases[name, rank]


def empty_factorized(bias: bool) -> FactorizedLinear:
    """A FactorizedLinear that waits for `set_factors`; no memory is taken."""
    with torch.device("meta"):
        return FactorizedLinear(1, 1, 1, bias).eval()


def set_factors(layer: FactorizedLinear, u: Tensor, v: Tensor, bias: Tensor | None) -> None:
    """Point a layer at factors u (d_out, r), v (r, d_in) and a bias (d_out,), without a copy."""
    layer.factor_in.weight = nn.Parameter(v, requires_grad=False)
    layer.factor_out.weight = nn.Parameter(u, requires_grad=False)
    layer.factor_out.register_parameter(
        "bias", None if bias is None else nn.Parameter(bias, requires_grad=False)
    )
    layer.factor_in.out_features, layer.factor_in.in_features = v.shape
    layer.factor_out.out_features, layer.factor_out.in_features = u.shape


def pivoted_layer(pivoted: Pivoted, dtype: torch.dtype) -> FactorizedLinear:
    """A layer that computes, in a dtype, with pivoted factors rounded to their own."""
    with torch.device("meta"):
        layer = FactorizedLinear(2, 2, 1, pivoted.row_bias is not None, pivoted=True).eval()
    parts = ((layer.factor_in, pivoted.rows, pivoted.row_bias),
             (layer.factor_out, pivoted.mix, pivoted.mix_bias))  # fmt: skip
    for linear, weight, bias in parts:
        linear.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
        linear.out_features, linear.in_features = weight.shape
        if bias is not None:
            linear.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
    layer.order = pivoted.order
    return layer


def add_biases(dense: Tensor | None, fitted: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The dense layer's bias plus the projection's, rounded to the dtype it is stored in."""
    if fitted is None:
        return None if dense is None else dense.detach()
    total = fitted if dense is None else fitted + dense.detach()
    return total.to(dtype).to(fitted.dtype)


def apply(model: PreTrainedModel, bank: Bank, genome: Genome) -> Switch:
    """Make `model`, in place, the model of `genome`; the returned switch can undo it.

    Raises ValueError when bank, genome and model do not belong together, or when the model is
    factorized already.
    """
    return Switch(model, bank).to(genome)


def merge_dense(model: PreTrainedModel) -> None:
    """Replace every FactorizedLinear by one dense layer W = U V of the native class, in place.

    Raises ValueError, and changes nothing, where a bias would be needed and the native layer has
    no place for one.
    """
    for name, (layer, original) in to_merge(model).items():
        weight, bias = merged(layer)
        model.set_submodule(name, dense_like(original, weight, bias))


def to_merge(model: nn.Module) -> dict[str, tuple[FactorizedLinear, nn.Module]]:
    """Every FactorizedLinear by name, and the native layer, without numbers, in its place.

    Raises ValueError as `merge_dense`.
    """
    held: Any = model
    with torch.device("meta"):
        native = native_class(model)(held.config)
        unfold(native)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, FactorizedLinear)}
    originals = {name: native.get_submodule(name) for name in layers}
    for name, layer in layers.items():
        if layer.factor_out.bias is not None and getattr(originals[name], "bias", None) is None:
            raise ValueError(
                f"{name} was given a bias that {type(native).__name__} has no place for; use "
                "export=factorized, or projection=output with search levels above 0."
            )
    return {name: (layer, originals[name]) for name, layer in layers.items()}


def merged(layer: FactorizedLinear) -> tuple[Tensor, Tensor | None]:
    """Weight W (d_out, d_in) and bias (d_out,) of the one dense layer that does the same."""
    inner, outer = layer.factor_in, layer.factor_out
    weight = outer.weight.double() @ inner.weight.double()
    bias: Tensor | None = outer.bias
    if layer.order is not None:
        weight = torch.cat([inner.weight.double(), weight])[layer.order]
        if bias is not None:
            mixed = bias.double() + outer.weight.double() @ inner.bias.double()
            bias = torch.cat([inner.bias.double(), mixed])[layer.order].to(bias.dtype)
    return weight.to(outer.weight.dtype), bias
