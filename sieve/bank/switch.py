"""Put the factors of a bank into a model, take them out, or merge them into dense weights."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sieve.bank.bank import Bank, BankFactors
from sieve.bank.device_factors import SPARE, DeviceFactors
from sieve.bank.files import StoredFactors
from sieve.bank.genome import Genome
from sieve.bank.narrowing import narrow_layers
from sieve.bank.pivoting import Pivoted, part_of, pivot
from sieve.bank.split_factors import SplitFactors
from sieve.distributed.sharding import is_sharded, whole
from sieve.factorized.modeling_layers import (
    FactorizedEmbedding,
    FactorizedLinear,
    share_factor_in,
    skip,
    unskip,
)
from sieve.model.matrices import Matrix
from sieve.runtime.mapping import Spool, drop_pages
from sieve.runtime.memory import trim
from sieve.streaming.offloaded import is_offloaded


class Switch:
    """A model whose matrices follow a genome; changing the genome copies no weights.

    Level 1 is the model's own dense layer. As a context manager it restores the dense model at the
    end.

    The factors of a model whose blocks are read while they run are in host memory, in files if the
    bank is. A block has copies on the device while it runs.

    Args:
        as_stored: True gives every layer the storage form and the rounded numbers of an export.
            False computes with views of the plain factors, which are quick to change.
        split: split the factors of a sharded model over its ranks, except those that siblings
            share. Then only passes without gradients work.
        held: where factors are if not on the model's device, "meta" for nowhere. Such a model can
            be written but does not run.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        bank: Bank,
        as_stored: bool = True,
        split: bool = False,
        held: torch.device | None = None,
    ) -> None:
        self.model = model
        self.bank = bank
        self.device = held or model.device
        self._ends: dict[str, torch.device] = {}  # matrices outside of blocks that are read
        self._spool: Spool | None = None
        if held is None and is_offloaded(model):
            self.device = torch.device("cpu")
            self._ends = {m.name: model.device for m in bank.matrices if m.layer is None}
            if isinstance(bank.factors, StoredFactors):
                self._spool = Spool(bank.factors.folder)
        self.as_stored = as_stored
        self.dense = {m.name: model.get_submodule(m.name) for m in bank.matrices}
        if any(isinstance(layer, FactorizedLinear) for layer in self.dense.values()):
            raise ValueError(
                "got a factorized model, expected the dense one; call restore() on what apply() "
                "returned first."
            )
        self._pivots = as_stored and bank.sizing.storage == "pivoted"
        spare = 1.0 if as_stored else SPARE  # Stored forms serve one genome, views many in turn.
        self._factors = DeviceFactors(
            bank, self.device, model.dtype, spare=spare, others=self._ends
        )
        self._split = SplitFactors(model, bank) if split and is_sharded(model) else None
        self._groups = {group.name: group for group in bank.groups}
        self._d_out = {matrix.name: matrix.d_out for matrix in bank.matrices}
        biases = {name: getattr(m, "bias", None) for name, m in self.dense.items()}
        self.biases = {
            n: None if b is None else whole(b).to(self._device_of(n)) for n, b in biases.items()
        }
        self._layers: dict[str, FactorizedLinear] = {}
        self._narrow: dict[str, tuple[int, dict[str, nn.Module]]] = {}  # of the last rank
        self._pivoted: dict[str, tuple[int, Pivoted]] = {}  # of the last rank
        self._biases: dict[tuple[str, int], Tensor | None] = {}
        self._ranks: dict[str, int | None] = dict.fromkeys(bank.names)
        self._feeders = {m: [f for f in bank.matrices if f.feeds == m.name] for m in bank.matrices}

    def to(self, genome: Genome) -> "Switch":
        """Make the model the one of `genome`; ValueError when it belongs to another bank."""
        genome.check_bank(self.bank.fingerprint, self.bank.names)
        return self.set_ranks(self.bank.ranks(genome))

    def restore(self) -> "Switch":
        """Put every dense layer back."""
        return self.set_ranks(dict.fromkeys(self.dense))

    def set_ranks(self, ranks: Mapping[str, int | None]) -> "Switch":
        """Give each named matrix a rank, or None for its dense layer.

        A group with a rank overrides the ranks of its members; None leaves them.
        """
        for name, rank in ranks.items():
            if name not in self._groups:
                if self._split is not None and not rank:
                    self._split.release(name)
                layer = self.dense[name] if rank is None else self._factorize(name, rank)
                self.model.set_submodule(name, layer)
        for name, rank in ranks.items():
            if name in self._groups and rank is not None:
                for member, layer in self._layers_of_group(name, rank).items():
                    if self._split is not None:
                        self._split.release(member)
                    self.model.set_submodule(member, layer)
        self._settle(ranks)
        return self

    def _settle(self, ranks: Mapping[str, int | None]) -> None:
        """Skip the units that these ranks remove, and no others."""
        self._ranks |= ranks
        for writer, feeders in self._feeders.items():
            if feeders and not ranks.keys().isdisjoint({writer.name, *(f.name for f in feeders)}):
                self._skip(writer, feeders)

    def _skip(self, writer: Matrix, feeders: Sequence[Matrix]) -> None:
        """Leave out what feeds a writer of rank 0: no numbers are stored, and nothing computed."""
        removed = self._ranks[writer.name] == 0 and all(self._ranks[f.name] == 0 for f in feeders)
        if removed:
            for matrix in feeders:
                self.model.set_submodule(matrix.name, self._empty(matrix))
        if writer.owner is not None:
            owner = self.model.get_submodule(writer.owner)
            unskip(owner)
            if removed:
                skip(owner, writer.name[len(writer.owner) + 1 :], writer.owner_results)

    def replace(self, name: str, factors: BankFactors, rank: int) -> None:
        """Give one matrix other factors than the bank's; RuntimeError where ranks split them."""
        self._check_not_split()
        self._factors.replace(name, factors)
        self.set_ranks({name: rank})

    @contextmanager
    def lifted(self, names: Sequence[str]) -> Iterator[None]:
        """Put some dense layers back for the block; RuntimeError where ranks split the factors."""
        self._check_not_split()
        layers = {name: self.model.get_submodule(name) for name in names}
        ranks = {name: self._ranks[name] for name in names}
        self.set_ranks(dict.fromkeys(names))
        try:
            yield
        finally:
            for name, layer in layers.items():
                self.model.set_submodule(name, layer)
            self._settle(ranks)

    def _check_not_split(self) -> None:
        if self._split is not None:
            raise RuntimeError("the factors are split over ranks; use a Switch with split=False.")

    def __enter__(self) -> "Switch":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.restore()

    def _empty(self, matrix: Matrix) -> FactorizedLinear:
        """A layer of rank 0 that stores no number."""
        layer = empty_factorized(bias=False)
        numbers = torch.empty(0, dtype=self.model.dtype, device=self.device)
        set_factors(layer, numbers.view(matrix.d_out, 0), numbers.view(0, matrix.d_in), None)
        return layer

    def _layers_of_group(self, name: str, rank: int) -> Mapping[str, nn.Module]:
        """A layer for each member of a group."""
        group = self._groups[name]
        if not group.neurons:
            return self._factorize_group(name, rank)
        if name not in self._narrow or self._narrow[name][0] != rank:
            factors = self.bank.factors[name].cut(rank)
            layers = narrow_layers(group, self.dense, factors, self.bank.dtype)
            self._narrow[name] = rank, layers
            self._release()
        return self._narrow[name][1]

    def _factorize_group(self, name: str, rank: int) -> dict[str, FactorizedLinear]:
        """A layer for each member of a group; as stored they share one factor_in."""
        factors, members = self._factors.get(name, rank), self._groups[name].members
        sizes = [self._d_out[member] for member in members]
        dense = [bias for member in members if (bias := self.biases[member]) is not None]
        joined = torch.cat(dense) if dense else None
        bias = add_biases(joined, factors.bias(rank), self.bank.dtype)
        layers = {}
        if self._pivots and rank:
            pivoted, start = self._pivot(name, rank, bias), 0
            for member, size in zip(members, sizes, strict=True):
                part = self._spooled(member, part_of(pivoted, start, start + size))
                layers[member] = pivoted_layer(part, self.model.dtype)
                start += size
        else:
            biases = [None] * len(sizes) if bias is None else bias.split(sizes)
            for member, u, b in zip(members, factors.u[:, :rank].split(sizes), biases, strict=True):
                layers[member] = empty_factorized(b is not None)
                set_factors(layers[member], u, factors.v[:rank], b)
        if self.as_stored:
            share_factor_in(*layers.values())
        return layers

    def _factorize(self, name: str, rank: int) -> FactorizedLinear:
        if self._split is not None and rank and self._split.accepts(name):
            bias = self._bias(name, rank)
            layer = self._layer(name, bias)
            set_factors(layer, *self._split.assign(name, layer, rank), bias)
            return layer
        if self._pivots and rank:
            pivoted = self._pivot(name, rank, self._bias(name, rank))
            return pivoted_layer(pivoted, self.model.dtype, self._class_of(name))
        factors = self._factors.get(name, rank)
        bias = add_biases(self.biases[name], factors.bias(rank), self.bank.dtype)
        layer = self._layer(name, bias)
        set_factors(layer, factors.u[:, :rank], factors.v[:rank], bias)
        return layer

    def _device_of(self, name: str) -> torch.device:
        """Where the factors of a matrix are."""
        return self._ends.get(name, self.device)

    def _layer(self, name: str, bias: Tensor | None) -> FactorizedLinear:
        """The plain layer of a matrix, the same for all ranks."""
        if name not in self._layers:
            self._layers[name] = empty_factorized(bias is not None, self._class_of(name))
        return self._layers[name]

    def _class_of(self, name: str) -> type[FactorizedLinear]:
        looked_up = isinstance(self.dense[name], nn.Embedding)
        return FactorizedEmbedding if looked_up else FactorizedLinear

    def _pivot(self, name: str, rank: int, bias: Tensor | None) -> Pivoted:
        if name not in self._pivoted or self._pivoted[name][0] != rank:
            device = self.device if self.device.type == "meta" else self.model.device
            factors = self.bank.factors[name].cut(rank)
            bias = None if bias is None else bias.to(device)
            pivoted = pivot(factors.u.to(device), factors.v.to(device), bias)
            pivoted = self._spooled(name, pivoted.to(self._device_of(name)))
            self._pivoted[name] = rank, pivoted
            self._release()
        return self._pivoted[name][1]

    def _spooled(self, name: str, pivoted: Pivoted) -> Pivoted:
        """A matrix with its numbers in a file, if it is in a block that is read while it runs."""
        if self._spool is None or name in self._ends:
            return pivoted
        return pivoted.spooled(self._spool)

    def _release(self) -> None:
        """Return the memory of a computation if the model is read block by block to save it.

        Other models may train, and writes to factors that are views of a file would be lost.
        """
        if is_offloaded(self.model):
            drop_pages()
            trim()  # Pivoting takes many times the memory of its result.

    def _bias(self, name: str, rank: int) -> Tensor | None:
        """The bias of a matrix at a rank > 0 whose plain factors are not on the device."""
        if (name, rank) not in self._biases:
            factors, fitted = self.bank.factors[name], None
            if factors.offset is not None:
                cut = factors.cut(rank).to(self._device_of(name), self.model.dtype)
                fitted = cut.bias(rank)
            self._biases[name, rank] = add_biases(self.biases[name], fitted, self.bank.dtype)
        return self._biases[name, rank]


def empty_factorized(
    bias: bool, layer_class: type[FactorizedLinear] = FactorizedLinear
) -> FactorizedLinear:
    """A layer without memory, whose factors `set_factors` provides."""
    with torch.device("meta"):
        return layer_class(1, 1, 1, bias).eval()


def set_factors(layer: FactorizedLinear, u: Tensor, v: Tensor, bias: Tensor | None) -> None:
    """Point a layer at factors u (d_out, r), v (r, d_in) and a bias (d_out,), without a copy."""
    _set_linear(layer.factor_in, v, layer.factor_in.bias)
    _set_linear(layer.factor_out, u, bias)


def pivoted_layer(
    pivoted: Pivoted, dtype: torch.dtype, layer_class: type[FactorizedLinear] = FactorizedLinear
) -> FactorizedLinear:
    """A layer that computes in `dtype` with pivoted factors."""
    with torch.device("meta"):
        layer = layer_class(2, 2, 1, pivoted.row_bias is not None, pivoted=True).eval()
    for linear, weight, bias in (
        (layer.factor_in, pivoted.rows, pivoted.row_bias),
        (layer.factor_out, pivoted.mix, pivoted.mix_bias),
    ):
        _set_linear(linear, weight.to(dtype), None if bias is None else bias.to(dtype))
    layer.order = pivoted.order
    return layer


def _set_linear(linear: nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    if _is_view(linear.weight, weight) and _is_view(linear.bias, bias):
        return
    linear.weight = nn.Parameter(weight, requires_grad=False)
    frozen = None if bias is None else nn.Parameter(bias, requires_grad=False)
    linear.register_parameter("bias", frozen)
    linear.out_features, linear.in_features = weight.shape


def _is_view(parameter: Tensor | None, numbers: Tensor | None) -> bool:
    """Whether a frozen parameter is these numbers in their place in memory already."""
    if parameter is None or numbers is None:
        return parameter is numbers
    return (
        parameter.data_ptr() == numbers.data_ptr() != 0
        and parameter.shape == numbers.shape
        and parameter.stride() == numbers.stride()
        and parameter.dtype == numbers.dtype
        and not parameter.requires_grad
    )


def add_biases(dense: Tensor | None, fitted: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The dense layer's bias plus the projection's, rounded to the storage dtype."""
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
