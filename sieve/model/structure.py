"""What of a model's repeated blocks can be factorized, and why other parts cannot.

By structure alone: how often a layer is called in a pass and with how many vectors, what stands
beside experts, and how these are held.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sieve.factorized.modeling_experts import Expert, Unfolded

# Length of the sequence that shows which layers share an input.
TOKENS = 8


@dataclass(frozen=True)
class Read:
    """One call of a layer: which tensor it read (identity and version) and how many vectors."""

    tensor: tuple[int, int]
    vectors: int


def expert_of(model: nn.Module, name: str) -> str | None:
    """The path of the expert that a layer is part of, or None."""
    parent = name.rpartition(".")[0]
    return parent if isinstance(model.get_submodule(parent), Expert) else None


def faults_of(
    model: nn.Module, modules: Mapping[str, nn.Module], inputs: Mapping[str, list[Read]]
) -> dict[str, str]:
    """Layers that are not read by every token once, and how they are read."""
    faults = {}
    for name, reads in inputs.items():
        seen = [read.vectors for read in reads]
        if seen != [TOKENS] and not expert_of(model, name):
            times = f"called {len(seen)} times" if len(seen) != 1 else f"given {seen[0]} vectors"
            faults[name] = f"it is {times} in a pass of {TOKENS} tokens, expected once with each"
    # Which experts of a list the tokens reach is chance: when one is left out, its fellows are.
    fellows = {_fellowship(name) for name in faults if _fellowship(name) != name}
    for name in modules:
        if _fellowship(name) in fellows:
            faults.setdefault(name, "its fellows in a list are not given every token once")
    return {name: why for name, why in faults.items() if not _is_small(modules[name])}


def meant_dense(model: nn.Module, modules: Mapping[str, nn.Module]) -> set[str]:
    """Layers that are not meant to be factorized: routers, and vectors in disguise."""
    return {n for n, module in modules.items() if _is_small(module) or _is_router(model, n, module)}


def _is_small(module: Any) -> bool:
    return min(module.weight.shape) < 2


def _fellowship(name: str) -> str:
    """The path with the numbers below the decoder block's own blanked: equal for list fellows."""
    head, *rest = re.split(r"(?<=\.)(?=\d+\.)", name)
    return head + "".join(rest[:1] + [re.sub(r"^\d+", "*", part) for part in rest[1:]])


def _is_router(model: nn.Module, name: str, module: Any) -> bool:
    """Whether a layer stands beside experts and has one output for each of them."""
    d_out = module.weight.shape[0]
    *parents, _ = name.split(".")
    for block in (parents, parents[:-1]):
        for sibling in model.get_submodule(".".join(block)).children():
            listed = isinstance(sibling, nn.ModuleList | Unfolded)
            count = sum(1 for path, _ in sibling.named_children() if path.isdigit())
            stacked = any(p.shape[0] == d_out for p in _stacked(sibling))
            if (listed and d_out == count) or stacked:
                return True
    return False


def _stacked(module: nn.Module) -> list[Tensor]:
    """Expert weights in one 3-D tensor, held by this very module."""
    if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
        return []
    return [parameter for parameter in module.parameters(recurse=False) if parameter.ndim == 3]


def stacked_faults(model: nn.Module) -> dict[str, str]:
    """Modules that hold experts in a way of their own."""
    held = {
        name: sum(tensor.numel() for tensor in tensors)
        for name, module in model.named_modules()
        if (tensors := _stacked(module))
    }
    return {
        name: f"its {count:,} weights are stacked in a way that transformers does not describe"
        for name, count in held.items()
    }
