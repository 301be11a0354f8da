"""Run one decoder block of a model as often as a refit needs, outside of a whole forward pass."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sieve.data.batches import as_inputs
from sieve.model.backbone import forward
from sieve.model.matrices import Matrix

Args: TypeAlias = tuple[Any, ...]  # positional arguments of a module's forward
Kwargs: TypeAlias = dict[str, Any]


class _Stop(Exception):
    """Ends a block's forward pass once the input of a matrix is known."""


@dataclass
class BlockCall:
    """The arguments that a model calls a block with, for one batch."""

    hidden: Tensor  # of the first block; empty for the others
    args: Args  # the arguments beside the hidden states
    kwargs: Kwargs

    def run(self, block: Callable[..., Tensor | tuple[Tensor]], hidden: Tensor) -> Tensor:
        """The block's output for the hidden states `hidden`."""
        out = block(hidden, *self.args, **self.kwargs)
        return out[0] if isinstance(out, tuple) else out

    def input_of(self, module: nn.Module, block: nn.Module, hidden: Tensor) -> Tensor:
        """The input (B, T, d_in) of a module in the block when the block reads `hidden`."""
        inputs: list[Tensor] = []

        def hook(_module: nn.Module, args: Args, kwargs: Kwargs) -> None:
            inputs.append([*args, *kwargs.values()][0])
            raise _Stop

        with module.register_forward_pre_hook(hook, with_kwargs=True), suppress(_Stop):
            self.run(block, hidden)
        return inputs[0]


def block_calls(model: PreTrainedModel, batch: object, paths: Sequence[str]) -> list[BlockCall]:
    """The calls of the blocks at `paths` in a forward pass over a batch."""
    calls: list[BlockCall] = []

    def hook(_module: nn.Module, args: Args, kwargs: Kwargs) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        others = {k: v for k, v in kwargs.items() if k != "hidden_states"}
        calls.append(BlockCall(torch.empty(0) if calls else hidden, args[1:], others))

    with ExitStack() as stack:
        for path in paths:
            module = model.get_submodule(path)
            stack.enter_context(module.register_forward_pre_hook(hook, with_kwargs=True))
        forward(model, as_inputs(batch), keep=1)
    return calls


def stream_writers(
    model: PreTrainedModel,
    block: nn.Module,
    matrices: Sequence[Matrix],
    call: BlockCall,
    hidden: Tensor,
) -> list[str]:
    """The matrices of a dense block whose output is added to the residual stream unchanged.

    A trial for each: its output becomes noise, that of the others zero. It is a writer if the block
    then adds the noise to the hidden states.
    """
    wide = [m for m in matrices if m.d_out == hidden.shape[-1]]
    noise = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0)).to(hidden)
    writers = []
    for name in [m.name for m in wide if not m.expert]:
        with ExitStack() as stack:
            for other in wide:
                handle = model.get_submodule(other.name).register_forward_hook(
                    lambda _m, _a, y, own=(other.name == name): noise if own else y * 0
                )
                stack.enter_context(handle)
            written = call.run(block, hidden) - hidden
        if torch.allclose(written.float(), noise.float(), rtol=0.05, atol=0.05):
            writers.append(name)
    return writers
