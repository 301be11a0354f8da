"""Swap factors of a bank in and out of a model, and merge them back to dense weights."""

from collections.abc import Mapping
from types import TracebackType

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sieve.bank import Bank
from sieve.genome import Genome
from sieve.matrices import dense_like
from sieve.modeling_sieve import FactorizedLinear, native_class


class Switch:
    """A model whose matrices follow a genome; changing the genome copies no weights.

    Level 1 is the model's own dense layer. The factors are views of the bank's, moved once to the
    model's device and dtype. As a context manager it puts the dense model back at the end.
    """

    def __init__(self, model: PreTrainedModel, bank: Bank) -> None:
        self.model = model
        self.bank = bank
        self._dense = {m.name: model.get_submodule(m.name) for m in bank.matrices}
        if any(isinstance(layer, FactorizedLinear) for layer in self._dense.values()):
            raise ValueError(
                "got a model that is factorized already, expected the dense one; call restore() "
                "on what apply() returned first."
            )
        self._factors = {
            m.name: bank.factors[m.name].to(model.device, model.dtype) for m in bank.matrices
        }
        self._biases = {name: getattr(m, "bias", None) for name, m in self._dense.items()}
        self._factorized: dict[str, FactorizedLinear] = {}

    def to(self, genome: Genome) -> "Switch":
        """Make the model the one of `genome`; ValueError when it belongs to another bank."""
        genome.check_bank(self.bank.fingerprint, self.bank.names)
        return self.set_ranks(self.bank.ranks(genome))

    def restore(self) -> "Switch":
        """Put every dense layer back."""
        return self.set_ranks(dict.fromkeys(self._dense))

    def set_ranks(self, ranks: Mapping[str, int | None]) -> "Switch":
        """Give each named matrix a rank, or None for its dense layer."""
        for name, rank in ranks.items():
            layer = self._dense[name] if rank is None else self._factorize(name, rank)
            self.model.set_submodule(name, layer)
        return self

    def __enter__(self) -> "Switch":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.restore()

    def _factorize(self, name: str, rank: int) -> FactorizedLinear:
        factors = self._factors[name]
        if not 0 <= rank <= factors.rank:
            raise ValueError(f"{name}: got rank {rank}, the bank holds 0 to {factors.rank}.")
        bias = add_biases(self._biases[name], factors.bias(rank), self.bank.dtype)
        layer = self._factorized.get(name)
        if layer is None:
            layer = self._factorized[name] = empty_factorized(bias is not None)
        set_factors(layer, factors.u[:, :rank], factors.v[:rank], bias)
        return layer


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
    with torch.device("meta"):
        native = native_class(model)(model.config)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, FactorizedLinear)}
    originals = {name: native.get_submodule(name) for name in layers}
    for name, layer in layers.items():  # All are checked before the first is replaced.
        if layer.factor_out.bias is not None and getattr(originals[name], "bias", None) is None:
            raise ValueError(
                f"{name} was given a bias that {type(native).__name__} has no place for; use "
                "export=factorized, or projection=output with search levels above 0."
            )
    for name, layer in layers.items():
        out = layer.factor_out
        weight = (out.weight.double() @ layer.factor_in.weight.double()).to(out.weight.dtype)
        model.set_submodule(name, dense_like(originals[name], weight, out.bias))
