"""Run one decoder block of a model as often as a refit needs, outside of a whole forward pass."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel

from sieve.data.batches import as_inputs
from sieve.data.prefix import cache_after, prefix_of, run_prefix, run_rows, without_prefix
from sieve.model.backbone import forward
from sieve.model.matrices import Matrix
from sieve.streaming.offloaded import passing_on

Args: TypeAlias = tuple[Any, ...]  # positional arguments of a module's forward
Kwargs: TypeAlias = dict[str, Any]
# Vectors of one batch: of its prefix (1, P, d) if there is one, then of its rows (B, T, d).
Passes: TypeAlias = list[Tensor]


class _Stop(Exception):
    """Ends a block's forward pass once the input of a matrix is known."""


@dataclass
class BlockCall:
    """The arguments of a block in one forward pass of a model, without the hidden states."""

    args: Args
    kwargs: Kwargs

    def run(
        self, block: Callable[..., Tensor | tuple[Tensor]], hidden: Tensor, cache: Cache | None
    ) -> Tensor:
        """The block's output for the hidden states `hidden`; keys and values go to `cache`."""
        args = [cache if isinstance(value, Cache) else value for value in self.args]
        kwargs = {k: cache if isinstance(v, Cache) else v for k, v in self.kwargs.items()}
        out = block(hidden, *args, **kwargs)
        return out[0] if isinstance(out, tuple) else out


@dataclass
class BatchCall:
    """How a model calls a block for one batch: in one pass, or for its prefix and for its rows."""

    passes: list[BlockCall]

    def run(self, block: Callable[..., Tensor | tuple[Tensor]], hidden: Passes) -> Passes:
        """The block's outputs for the hidden states `hidden`."""
        if len(hidden) == 1:
            return [self.passes[0].run(block, hidden[0], None)]
        cache = DynamicCache()
        prefix = self.passes[0].run(block, hidden[0], cache)
        after = cache_after(cache, hidden[0].shape[1])
        return [prefix, self.passes[1].run(block, hidden[1], after)]

    def input_of(self, module: nn.Module, block: nn.Module, hidden: Passes) -> Passes:
        """The inputs (B, T, d_in) of a module of the block when the block reads `hidden`."""
        inputs: Passes = []

        def hook(_module: nn.Module, args: Args, kwargs: Kwargs) -> None:
            inputs.append([*args, *kwargs.values()][0])
            if len(inputs) == len(hidden):
                raise _Stop

        with module.register_forward_pre_hook(hook, with_kwargs=True), suppress(_Stop):
            self.run(block, hidden)
        return inputs


@dataclass
class BatchPasses:
    """The passes over one batch: how they call every block, and what the first block reads."""

    calls: list[BatchCall]  # by block
    hidden: Passes  # hidden states that the first block reads
    masks: list[Tensor | None]  # (B * T,) bool: positions without padding; None is all
    copies: Tensor | None  # (N,) rows that a token stands for; None: one each


def block_calls(model: PreTrainedModel, batch: object, paths: Sequence[str]) -> BatchPasses:
    """The calls of the blocks at `paths` in the passes over a batch."""
    recorded: list[tuple[Tensor, BlockCall]] = []

    def hook(_module: nn.Module, args: Args, kwargs: Kwargs) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        others = {k: v for k, v in kwargs.items() if k != "hidden_states"}
        recorded.append((hidden, BlockCall(args[1:], others)))

    inputs, prefix = as_inputs(batch), prefix_of(batch)
    mask = inputs.get("attention_mask")
    masks, copies = [mask], None
    with ExitStack() as stack:
        for path in paths:
            module = model.get_submodule(path)
            stack.enter_context(module.register_forward_pre_hook(hook, with_kwargs=True))
        if prefix:
            run_rows(model, inputs, 1, run_prefix(model, prefix))
            own = without_prefix(inputs, len(prefix))["attention_mask"][:, len(prefix) :]
            masks = [None, own]
            copies = torch.ones(len(prefix) + int(own.sum()), device=own.device)
            copies[: len(prefix)] = len(own)
        else:
            with passing_on(model):
                forward(model, inputs, keep=1)
    count, starts = len(paths), range(0, len(recorded), len(paths))
    return BatchPasses(
        calls=[BatchCall([recorded[s + index][1] for s in starts]) for index in range(count)],
        hidden=[recorded[start][0] for start in starts],
        masks=[None if m is None else m.flatten().bool() for m in masks],
        copies=copies,
    )


def stream_writers(
    model: PreTrainedModel,
    block: nn.Module,
    matrices: Sequence[Matrix],
    call: BatchCall,
    passes: Passes,
) -> list[str]:
    """The matrices of a dense block whose output is added to the residual stream unchanged.

    Each matrix is tried: noise replaces its output, zeros replace all other outputs. It is a writer
    if the block then adds the noise to the hidden states.
    """
    hidden, first = passes[0], BatchCall(call.passes[:1])
    wide = [m for m in matrices if m.d_out == hidden.shape[-1]]
    noise = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0)).to(hidden)
    writers = []
    for name in [m.name for m in wide if not m.expert]:
        with ExitStack() as stack:
            for other in wide:
                handle = model.get_submodule(other.name).register_forward_hook(
                    lambda _m, _a, y, own=(other.name == name): (
                        noise.reshape(y.shape) if own else y * 0
                    )
                )
                stack.enter_context(handle)
            written = first.run(block, [hidden])[0] - hidden
        if torch.allclose(written.float(), noise.float(), rtol=0.05, atol=0.05):
            writers.append(name)
    return writers
