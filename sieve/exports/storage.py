"""The storage form of an export's matrices: two plain factors, or pivoted ones.

Both forms hold the same matrix of rank r, pivoted ones in r² numbers less, but with an index for
each output (`sieve.bank.pivoting`). Engines that split a matrix over devices need plain factors.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sieve.bank.merging import merged_bias
from sieve.bank.pivoting import part_of, pivot
from sieve.bank.switch import empty_factorized, pivoted_layer, set_factors
from sieve.distributed.sharding import is_sharded
from sieve.exports.onnx import replaced_layers
from sieve.factorized.modeling_layers import FactorizedLinear, share_factor_in
from sieve.model.quantized import bytes_of, is_quantized
from sieve.quantization import check_not_quantized

FORMS = ("plain", "pivoted")
INDEX_BYTES = torch.int32.itemsize
Group = dict[str, FactorizedLinear]  # layers that share one factor_in, by name; often one alone


@dataclass(frozen=True)
class StorageSize:
    """The form of the factors in an export, and the bytes of all of its weights in either form.

    The file has a header in addition. Of quantized weights only the form that they have is known.
    """

    form: str
    bytes: dict[str, int]


def check_storage(model: PreTrainedModel, format: str, storage: str | None) -> None:
    """Raise ValueError if an export cannot be written in a storage form; None is as it is.

    Quantized factors are written in their own form alone.
    """
    if storage is None:
        return
    if storage not in FORMS:
        raise ValueError(f"got storage {storage!r}, expected one of {', '.join(FORMS)}, or None.")
    if format != "factorized":
        raise ValueError(
            f"got storage {storage!r} with export format {format!r}, which has a form of its own; "
            "use export=factorized."
        )
    if is_sharded(model):
        raise ValueError(
            "got a model sharded over ranks, whose factors cannot be converted; run the same "
            "command again with trainer=cpu, which only exports."
        )
    if any(_is_pivoted(group) != (storage == "pivoted") for group in _ranked(model)):
        check_not_quantized(model)


@contextmanager
def stored_as(model: PreTrainedModel, storage: str | None, dtype: torch.dtype) -> Iterator[None]:
    """Give the matrices of a model another storage form for the block; None leaves them.

    Plain ones become pivoted only where that takes fewer bytes in `dtype`. Outputs are the same to
    rounding; plain factors of a pivoted matrix have the same numbers, and zeros and ones.
    """
    if storage is None:
        yield
        return
    with torch.no_grad(), replaced_layers(model) as layers:
        for group in _groups(layers):
            for name, layer in _converted(group, storage, dtype.itemsize).items():
                model.set_submodule(name, layer)
        yield


def storage_size(
    model: PreTrainedModel, dtype: torch.dtype, storage: str | None = None
) -> StorageSize | None:
    """The sizes of an export with weights in `dtype`; None if it has no factors of rank above 0.

    storage: the form to write, None as it is.
    """
    groups = _ranked(model)
    if not groups:
        return None
    tensors = {id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values()}
    now = sum(bytes_of(tensor, dtype) for tensor in tensors.values())
    own = FORMS[any(_is_pivoted(group) for group in groups)]
    if any(is_quantized(tensor) for tensor in tensors.values()):
        return StorageSize(own, {own: now})
    saved = {True: 0, False: 0}  # by whether a group is pivoted
    for group in groups:
        less = _saved(group, dtype.itemsize)
        saved[_is_pivoted(group)] += less if _is_pivoted(group) else max(less, 0)
    sizes = {"plain": now + saved[True], "pivoted": now - saved[False]}
    return StorageSize(storage or own, sizes)


def _ranked(model: PreTrainedModel) -> list[Group]:
    """The groups of a rank above 0, which has a storage form."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, FactorizedLinear)}
    return [group for group in _groups(layers) if _rank(group)]


def _groups(layers: Group) -> list[Group]:
    groups: dict[int, Group] = {}
    for name, layer in layers.items():
        groups.setdefault(id(layer.factor_in), {})[name] = layer
    return list(groups.values())


def _rank(group: Group) -> int:
    return _first(group).factor_in.out_features


def _is_pivoted(group: Group) -> bool:
    return _first(group).order is not None


def _saved(group: Group, itemsize: int) -> int:
    """Bytes that pivoted form saves over plain form; negative if it takes more."""
    outputs = sum(_d_out(layer) for layer in group.values())
    return _rank(group) ** 2 * itemsize - INDEX_BYTES * outputs


def _d_out(layer: FactorizedLinear) -> int:
    return layer.factor_out.out_features if layer.order is None else len(layer.order)


def _converted(group: Group, storage: str, itemsize: int) -> Group:
    """The layers of a group that need another form, in that form."""
    if not _rank(group) or _is_pivoted(group) == (storage == "pivoted"):
        return {}
    if storage == "pivoted" and _saved(group, itemsize) <= 0:
        return {}
    layers = _pivoted(group) if storage == "pivoted" else _plain(group)
    if len(layers) > 1:
        share_factor_in(*layers.values())
    return layers


def _plain(group: Group) -> Group:
    layers = {}
    for name, pivoted in group.items():
        bias = merged_bias(pivoted)
        layers[name] = empty_factorized(bias is not None, type(pivoted))
        set_factors(layers[name], pivoted.unfolded()[0], pivoted.factor_in.weight, bias)
    return layers


def _pivoted(group: Group) -> Group:
    u = torch.cat([layer.factor_out.weight for layer in group.values()])
    whole, start, layers = pivot(u, _first(group).factor_in.weight, _joined_bias(group)), 0, {}
    for name, plain in group.items():
        end = start + _d_out(plain)
        layers[name] = pivoted_layer(part_of(whole, start, end), u.dtype, type(plain))
        start = end
    return layers


def _joined_bias(group: Group) -> Tensor | None:
    """The biases of all layers; layers that share a factor have all a bias or none."""
    if _first(group).factor_out.bias is None:
        return None
    return torch.cat([layer.factor_out.bias for layer in group.values()])


def _first(group: Group) -> FactorizedLinear:
    return next(iter(group.values()))
