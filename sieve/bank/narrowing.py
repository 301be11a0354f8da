"""MLPs that have lost neurons: their layers, their factors, and their form in a dense model."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.pytorch_utils import Conv1D

from sieve.bank.files import BankFactors
from sieve.factorized.modeling_experts import unfold
from sieve.factorized.modeling_sieve import native_class
from sieve.model.matrices import Matrix, dense_like, dense_weight
from sieve.projections.factors import Factors
from sieve.projections.neurons import by_neuron, kept_neurons


def narrow_layers(
    gene: Matrix, dense: Mapping[str, nn.Module], factors: BankFactors, dtype: torch.dtype
) -> dict[str, nn.Module]:
    """A dense layer with fewer rows or columns for each member of a group of neurons.

    Args:
        gene: the group; its last member is the writer.
        dense: the members in the dense model, by name.
        factors: cut to the neurons that stay.
        dtype: of the bank, in which a fitted bias is rounded.
    """
    *feeders, writer = gene.members
    order, start, layers = kept_neurons(factors.v), 0, dict[str, nn.Module]()
    for name in feeders:
        module = dense[name]
        d_out, d_in = dense_weight(module).shape
        parts = d_out // gene.d_in  # of a fused layer
        height = parts * d_in
        rows = factors.u[start : start + height].view(parts, d_in, -1)
        bias = getattr(module, "bias", None)
        if bias is not None:
            bias = bias.detach().view(parts, -1)[:, order.to(bias.device)].flatten()
        layers[name] = _like(module, rows.transpose(1, 2).reshape(-1, d_in), bias)
        start += height
    weight = factors.u[start:].float() @ factors.v[:, order].float()
    bias, fitted = getattr(dense[writer], "bias", None), factors.bias(len(order))
    if fitted is not None and len(order):
        fitted = fitted if bias is None else fitted.to(bias.device) + bias.detach()
        bias = fitted.to(dtype)
    layers[writer] = _like(dense[writer], weight, bias)
    return layers


def _like(module: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """A layer of the same class, device and dtype."""
    kind = dense_weight(module)
    return dense_like(
        module, weight.to(kind).detach(), None if bias is None else bias.to(kind).detach()
    )


def factors_of(gene: Matrix, weights: Sequence[Tensor], before: BankFactors) -> Factors:
    """The factors of trained layers: the directions are the neurons themselves.

    Args:
        weights: of the layers of the members, (d_out, d_in) each.
        before: the factors that the layers were made of.
    """
    *feeders, writer = (weight.double().cpu() for weight in weights)
    order = kept_neurons(before.v)
    v = before.v.new_zeros(before.v.shape, dtype=torch.double)
    v[torch.arange(len(order)), order] = 1.0
    incoming = [by_neuron(rows, len(order)) for rows in feeders]
    mean, offset = before.mean, before.offset
    if (bias := before.bias(len(order))) is not None:  # Fitted with the untrained columns.
        mean, offset = bias.float(), torch.zeros(len(order))
    return Factors(torch.cat([*incoming, writer]), v, before.energy, mean, offset)


def widened(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of `narrow_layers_of` in the shape of the native ones: lost neurons are zeros.

    Raises ValueError where the native layer has no bias but needs one.
    """
    narrow = narrow_layers_of(model)
    shapes = {n: (dense_weight(a).shape, dense_weight(b).shape) for n, (a, b) in narrow.items()}
    # By MLP: the neurons of the layer that reads them, now and in the dense model.
    counts = {
        name.rpartition(".")[0]: (now[1], dense[1])
        for name, (now, dense) in shapes.items()
        if now[1] < dense[1]
    }
    layers = {}
    for name, (layer, original) in narrow.items():
        count, all_neurons = counts[name.rpartition(".")[0]]
        weight, bias = dense_weight(layer).detach(), getattr(layer, "bias", None)
        if shapes[name][0][1] < shapes[name][1][1]:  # It reads them.
            check_bias(name, bias, original, native_class(model))
            weight = pad(weight, (0, all_neurons - count))
        else:
            rows = weight.view(-1, count, weight.shape[1])  # Fused layers have several parts.
            weight = pad(rows, (0, 0, 0, all_neurons - count)).flatten(0, 1)
            bias = None if bias is None else pad(bias.view(-1, count), (0, all_neurons - count))
        layers[name] = dense_like(original, weight, None if bias is None else bias.flatten())
    return layers


def check_bias(name: str, bias: Tensor | None, original: nn.Module, native: type) -> None:
    """ValueError where the native layer has no bias but needs one."""
    if bias is not None and getattr(original, "bias", None) is None:
        raise ValueError(
            f"{name} needs a bias, which {native.__name__} does not have; use "
            "export=factorized, or projection=output with search levels above 0."
        )


def narrow_layers_of(model: nn.Module) -> dict[str, tuple[nn.Module, nn.Module]]:
    """Every dense layer that has lost neurons, with the native layer on the meta device."""
    dense = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    with torch.device("meta"):
        native = native_class(model)(model.config)
        unfold(native)
    originals = {n: m for n, m in native.named_modules() if n in dense}
    return {
        name: (dense[name], original)
        for name, original in originals.items()
        if dense_weight(original).shape != dense_weight(dense[name]).shape
    }
