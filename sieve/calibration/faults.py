"""Where numbers that are not finite come from: the first matrix, and the rows of a batch."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sieve.distributed.sharding import is_sharded
from sieve.model.backbone import forward


def find_fault(
    model: PreTrainedModel, names: Sequence[str], inputs: dict[str, Tensor], logits: Tensor
) -> str | None:
    """A sentence about a batch with logits (B, keep, V) that are NaN; None if of padding alone.

    names: of the matrices, in order; the batch is run once more to see in which the first number
    that is not finite comes up, but where ranks share the model out.
    """
    mask = _mask(inputs)
    broken = torch.isnan(logits).any(-1) & mask[:, -logits.shape[1] :].bool()
    if not broken.any():
        return None
    first = None if is_sharded(model) else _first(model, names, inputs, mask)
    return _told(f"the activations at {first} are" if first else "the logits are", broken)


def fault_after(block: str, inputs: dict[str, Tensor], hidden: Tensor) -> str | None:
    """A sentence about hidden states (B, T, d) after a block; None where tokens' are finite."""
    if torch.isfinite(hidden.sum()):
        return None
    broken = ~torch.isfinite(hidden).all(-1) & _mask(inputs).to(hidden.device).bool()
    return _told(f"the activations after {block} are", broken) if broken.any() else None


def _mask(inputs: dict[str, Tensor]) -> Tensor:
    """Which tokens (B, T) count."""
    mask = inputs.get("attention_mask")
    return torch.ones_like(inputs["input_ids"]) if mask is None else mask


def _told(where: str, broken: Tensor) -> str:
    """The sentence, of the tokens (B, T) that are broken."""
    rows = broken.any(1).nonzero().flatten().tolist()
    told = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
    count = f"{len(rows)} of {len(broken)}"
    return (
        f"{where} not finite in {count} rows (row {told}, counted from 0); load "
        "the model in another dtype (model.dtype=float32 or bfloat16), or leave these rows out."
    )


@torch.no_grad()
def _first(
    model: PreTrainedModel, names: Sequence[str], inputs: dict[str, Tensor], mask: Tensor
) -> str | None:
    """The first matrix in the order of the pass whose output is not finite at a token."""
    found: list[str] = []

    def watch(name: str) -> Any:
        def hook(_module: Any, _args: Any, y: Tensor) -> None:
            counts = mask.bool() if y.shape[:2] == mask.shape else ...
            if not found and not torch.isfinite(y[counts]).all():
                found.append(name)

        return hook

    handles = [model.get_submodule(n).register_forward_hook(watch(n)) for n in names]
    try:
        forward(model, inputs, 1)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None
