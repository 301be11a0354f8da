"""Find the matrix and the rows of a batch in which NaN or infinite numbers first appear."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sieve.distributed.sharding import is_sharded
from sieve.model.backbone import forward


def find_fault(
    model: PreTrainedModel, names: Sequence[str], inputs: dict[str, Tensor], logits: Tensor
) -> str | None:
    """Describe a batch whose logits (B, keep, V) have NaN; None if only padding has NaN.

    Runs the batch once more to find the matrix, unless the model is sharded.

    names: of the matrices, in order.
    """
    mask = _mask(inputs)
    broken = torch.isnan(logits).any(-1) & mask[:, -logits.shape[1] :].bool()
    if not broken.any():
        return None
    first = None if is_sharded(model) else _first_fault(model, names, inputs, mask)
    return _message(f"the activations at {first} are" if first else "the logits are", broken)


def fault_after(block: str, inputs: dict[str, Tensor], hidden: Tensor) -> str | None:
    """Describe hidden states (B, T, d) after a block that are not finite; None if all are."""
    if torch.isfinite(hidden.sum()):
        return None
    broken = ~torch.isfinite(hidden).all(-1) & _mask(inputs).to(hidden.device).bool()
    return _message(f"the activations after {block} are", broken) if broken.any() else None


def _mask(inputs: dict[str, Tensor]) -> Tensor:
    """1 for tokens, 0 for padding (B, T)."""
    mask = inputs.get("attention_mask")
    return torch.ones_like(inputs["input_ids"]) if mask is None else mask


def _message(subject: str, broken: Tensor) -> str:
    """The error message for broken tokens (B, T)."""
    rows = broken.any(1).nonzero().flatten().tolist()
    listed = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
    count = f"{len(rows)} of {len(broken)}"
    return (
        f"{subject} not finite in {count} rows (row {listed}, counted from 0); load "
        "the model in another dtype (model.dtype=float32 or bfloat16), or leave these rows out."
    )


@torch.no_grad()
def _first_fault(
    model: PreTrainedModel, names: Sequence[str], inputs: dict[str, Tensor], mask: Tensor
) -> str | None:
    """The first matrix in the forward pass whose output is not finite at a token."""
    broken: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: object, y: Tensor) -> None:
            counts = mask.bool() if y.shape[:2] == mask.shape else ...
            if not broken and not torch.isfinite(y[counts]).all():
                broken.append(name)

        return hook

    with ExitStack() as stack:
        for name in names:
            stack.enter_context(model.get_submodule(name).register_forward_hook(watch(name)))
        forward(model, inputs, 1)
    return broken[0] if broken else None
