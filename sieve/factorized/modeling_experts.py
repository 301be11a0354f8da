"""Stacked experts, 3-D parameters in transformers, unfolded into plain Linears for each expert.

Travels with exports beside `modeling_sieve.py`. The attributes that transformers gives a class of
experts say how it computes: whether it has a gate, biases or a norm, and whether it is transposed.
"""

from typing import Any

import torch
from torch import nn

WEIGHTS = ("gate_up_proj", "up_proj", "down_proj")


class Expert(nn.Module):
    """The Linears of one expert; `tokens` (n,) are the positions last routed to it."""

    def __init__(self, linears: dict[str, nn.Linear]) -> None:
        super().__init__()
        self.tokens: torch.Tensor | None = None
        for name, linear in linears.items():
            self.add_module(name, linear)


class Unfolded:
    """The forward pass of unfolded experts, mixed into their native class."""

    _is_hf_initialized = True  # transformers must not initialize the removed weights.

    def forward(self: Any, *args: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
        """Hidden states (tokens, d), chosen experts (tokens, k), their weights; to (tokens, d)."""
        x, chosen, weights = [*args, *kwargs.values()][:3]
        out = torch.zeros_like(x)
        if type(x).__name__ == "FakeTensor":  # Without values no token can be routed.
            return out
        for name, expert in self.named_children():
            if isinstance(expert, Expert):
                expert.tokens, slot = torch.where(chosen == int(name))
                if len(expert.tokens):
                    y = self._one(expert, x[expert.tokens])
                    y = y * weights[expert.tokens, slot, None]
                    out.index_add_(0, expert.tokens, y.to(out.dtype))
        return out

    def _one(self: Any, expert: Any, x: torch.Tensor) -> torch.Tensor:
        if self.has_gate:
            y = expert.down_proj(self._apply_gate(expert.gate_up_proj(x)))
        else:
            y = expert.down_proj(self.act_fn(expert.up_proj(x)))
        # transformers before 5.20, which vLLM may bring, has no such norm.
        return self.post_expert_norm(y) if getattr(self, "has_post_expert_norm", False) else y


def can_unfold(module: nn.Module) -> bool:
    """Whether a module has stacked experts in the form of transformers."""
    described = all(hasattr(module, name) for name in ("has_gate", "has_bias", "is_transposed"))
    names = _stacked(module)
    return described and len(names) == 2 and all(getattr(module, n).ndim == 3 for n in names)


def unfold(model: nn.Module) -> list[str]:
    """Unfold all stacked experts in place, without copying weights; returns their module paths."""
    paths = [name for name, module in model.named_modules() if can_unfold(module)]
    for path in paths:
        _unfold(model.get_submodule(path))
    return paths


def fold(model: nn.Module) -> None:
    """Stack unfolded experts again in place; their layers must be plain Linears."""
    for module in list(model.modules()):
        if isinstance(module, Unfolded):
            _fold(module)


def _stacked(module: nn.Module) -> list[str]:
    """Names of the stacked parameters."""
    return [name for name in WEIGHTS if isinstance(getattr(module, name, None), nn.Parameter)]


def _unfold(module: Any) -> None:
    names, cls = _stacked(module), type(module)
    for index in range(len(getattr(module, names[0]))):
        linears = {}
        for name in names:
            weight = getattr(module, name)[index]
            bias = getattr(module, f"{name}_bias")[index] if module.has_bias else None
            linears[name] = _linear(weight.T if module.is_transposed else weight, bias)
        module.add_module(str(index), Expert(linears))
    for name in names:
        delattr(module, name)
        if module.has_bias:
            delattr(module, f"{name}_bias")
    module.__class__ = type(f"Unfolded{cls.__name__}", (Unfolded, cls), {})


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight = nn.Parameter(weight, requires_grad=weight.requires_grad)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=bias.requires_grad)
    return linear


def _fold(module: Any) -> None:
    experts = {name: child for name, child in module.named_children() if isinstance(child, Expert)}
    for name in list(next(iter(experts.values()))._modules):
        linears: list[Any] = [getattr(expert, name) for expert in experts.values()]
        stacked = torch.stack([x.weight.T if module.is_transposed else x.weight for x in linears])
        module.register_parameter(name, nn.Parameter(stacked, requires_grad=False))
        if module.has_bias:
            bias = torch.stack([linear.bias for linear in linears])
            module.register_parameter(f"{name}_bias", nn.Parameter(bias, requires_grad=False))
    for name in experts:
        delattr(module, name)
    module.__class__ = type(module).__bases__[1]
