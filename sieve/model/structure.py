"""Which layers of the repeated blocks can be factorized, and why the others cannot.

Decided by structure alone: how often a layer is called in a forward pass and with how many vectors,
and what experts it stands beside.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from sieve.factorized.modeling_experts import Expert, Unfolded

Layer = nn.Linear | Conv1D
TOKENS = 8  # length of the sequence that shows which layers share an input


@dataclass(frozen=True)
class Read:
    """One call of a layer: the tensor it read (identity and version) and its number of vectors."""

    tensor: tuple[int, int]
    vectors: int


def expert_of(model: nn.Module, name: str) -> str | None:
    """The path of the expert that a layer is part of, or None."""
    parent = name.rpartition(".")[0]
    return parent if isinstance(model.get_submodule(parent), Expert) else None


def faults_of(
    model: nn.Module, layers: Mapping[str, Layer], reads: Mapping[str, list[Read]]
) -> dict[str, str]:
    """Modules that cannot be factorized -> why.

    These are layers that do not read every token exactly once, and modules that stack experts in a
    form that transformers does not describe.
    """
    faults = {}
    for name, calls in reads.items():
        vectors = [call.vectors for call in calls]
        if vectors != [TOKENS] and not expert_of(model, name):
            called = f"called {len(vectors)} times"
            if len(vectors) == 1:
                called = f"given {vectors[0]} vectors"
            faults[name] = f"it is {called} in a pass of {TOKENS} tokens, expected once with each"
    # Which experts of a list the tokens reach is chance: one fault excludes the whole list.
    faulty_lists = {_list_path(name) for name in faults if _list_path(name) != name}
    for name in layers:
        if _list_path(name) in faulty_lists:
            faults.setdefault(name, "other entries of its list are not given every token once")
    faults = {name: reason for name, reason in faults.items() if not _is_small(layers[name])}
    for name, module in model.named_modules():
        if count := sum(weight.numel() for weight in _stacked_weights(module)):
            form = "stacked in a form that transformers does not describe"
            faults[name] = f"its {count:,} weights are {form}"
    return faults


def meant_dense(model: nn.Module, layers: Mapping[str, Layer]) -> set[str]:
    """Layers that are never factorized: routers, and matrices with a single row or column."""
    return {n for n, layer in layers.items() if _is_small(layer) or _is_router(model, n, layer)}


def _is_small(layer: Layer) -> bool:
    return min(layer.weight.shape) < 2


def _list_path(name: str) -> str:
    """The path with "*" for numbers below the decoder block's: equal for entries of one list."""
    head, *rest = re.split(r"(?<=\.)(?=\d+\.)", name)
    return head + "".join(rest[:1] + [re.sub(r"^\d+", "*", part) for part in rest[1:]])


def _is_router(model: nn.Module, name: str, layer: Layer) -> bool:
    """Whether a layer stands beside experts and has one output for each of them."""
    d_out = layer.weight.shape[0]
    *parents, _ = name.split(".")
    for block in (parents, parents[:-1]):
        for sibling in model.get_submodule(".".join(block)).children():
            is_list = isinstance(sibling, nn.ModuleList | Unfolded)
            entries = sum(1 for path, _ in sibling.named_children() if path.isdigit())
            stacked = any(weight.shape[0] == d_out for weight in _stacked_weights(sibling))
            if (is_list and d_out == entries) or stacked:
                return True
    return False


def _stacked_weights(module: nn.Module) -> list[Tensor]:
    """The module's own 3-D parameters, which stack the weights of experts."""
    if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
        return []
    return [parameter for parameter in module.parameters(recurse=False) if parameter.ndim == 3]
