"""A whole model whose blocks are read from its files while they run.

The embedding and the output head stay in memory. A decoder block reads the weights that it needs
when it runs and drops them afterwards, and the pages of mapped factors too. A matrix that factors
have replaced is not read; its factors stay in host memory, and a GPU has copies of them while the
block runs. Every pass over a batch reads the blocks again, so large batches pay;
`in_memory` keeps one block for many passes. Only passes without gradients work.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sieve.runtime.mapping import drop_pages
from sieve.streaming.blocks import BlockModel, compute_buffers, load_tensors


def offload(blocks: BlockModel) -> PreTrainedModel:
    """The model of `blocks`, which can be called from now on like any other."""
    model = blocks.model
    inside = tuple(f"{path}." for path in blocks.paths)
    ends = [
        name
        for name, tensor in model.named_parameters(remove_duplicate=False)
        if tensor.is_meta and not name.startswith(inside)
    ]
    load_tensors(model, blocks.checkpoint.read(ends, blocks.dtype), blocks.device)
    model.tie_weights()
    for path in blocks.paths:
        block = model.get_submodule(path)
        compute_buffers(block, blocks.device, (), model)
        for name, _, _, parameter in _absent(block):
            parameter.source = partial(_read, blocks, f"{path}.{name}")  # type: ignore[attr-defined]
        block.forward = Offloaded(blocks, path, block)
        # `model.to` moves the ends alone: what a block has is on its device already.
        block._apply = partial(_unmoved, block)  # type: ignore[method-assign]
    return model


def is_offloaded(model: nn.Module) -> bool:
    """Whether the blocks of a model are read while they run."""
    return any(isinstance(vars(m).get("forward"), Offloaded) for m in model.modules())


def in_memory(block: nn.Module) -> AbstractContextManager[None]:
    """Keep what a block reads now in memory, for many passes through it."""
    forward = vars(block).get("forward")
    return forward.in_memory() if isinstance(forward, Offloaded) else nullcontext()


@contextmanager
def passing_on(model: nn.Module) -> Iterator[None]:
    """Let offloaded blocks return their input, for passes that ask only what blocks are given."""
    forwards = [vars(module).get("forward") for module in model.modules()]
    offloaded = [forward for forward in forwards if isinstance(forward, Offloaded)]
    for forward in offloaded:
        forward.reads = False
    try:
        yield
    finally:
        for forward in offloaded:
            forward.reads = True


_Slot = tuple[dict[str, Any], str]  # a module's tensors of a kind, and a name


class Offloaded:
    """The forward method of a block that is read when it runs."""

    def __init__(self, blocks: BlockModel, path: str, block: nn.Module) -> None:
        self.blocks, self.path, self.block = blocks, path, block
        self.reads = True
        self._depth = 0  # of nested `in_memory`

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the block on its weights, which are read before and dropped after it."""
        if not self.reads:
            return self.blocks.returned(self.path, args[0] if args else kwargs["hidden_states"])
        with self.in_memory():
            return type(self.block).forward(self.block, *args, **kwargs)

    @contextmanager
    def in_memory(self) -> Iterator[None]:
        """Have the weights of the block in memory; those that are there already stay."""
        device, checkpoint = self.blocks.device, self.blocks.checkpoint
        absent, elsewhere = list(_absent(self.block)), list(_elsewhere(self.block, device))
        names = [f"{self.path}.{name}" for name, _, _, _ in absent]
        tensors = checkpoint.read(names, self.blocks.dtype)
        undo: list[tuple[_Slot, Tensor, Tensor]] = []  # slot, what is there now, and was before
        self._depth += 1
        try:
            for (_, module, leaf, parameter), name in zip(absent, names, strict=True):
                weight = nn.Parameter(tensors.pop(name).to(device), requires_grad=False)
                undo.append(((module._parameters, leaf), weight, parameter))
                module._parameters[leaf] = weight
            copies: dict[object, Tensor] = {}
            for store, leaf, tensor in elsewhere:
                copy = _copied(tensor, device, copies)
                undo.append(((store, leaf), copy, tensor))
                store[leaf] = copy
            yield
        finally:
            for (store, leaf), now, before in undo:
                if store.get(leaf) is now:  # Otherwise a layer has other factors by now.
                    store[leaf] = before
            self._depth -= 1
            if not self._depth:
                drop_pages()  # of factors, which are views of files


def _elsewhere(block: nn.Module, device: torch.device) -> Iterator[tuple[Any, str, Tensor]]:
    """The factors of a block that are not on its device: where they are kept, name, tensor."""
    for module in block.modules():
        for store in (module._parameters, module._buffers):
            for leaf, tensor in list(store.items()):
                if tensor is not None and not tensor.is_meta and tensor.device != device:
                    yield store, leaf, tensor


def _copied(tensor: Tensor, device: torch.device, copies: dict[object, Tensor]) -> Tensor:
    """A copy on a device, one of all views of the same numbers; `copies` has those made before."""
    key = tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
    if key not in copies:
        copies[key] = tensor.detach().to(device)
    copy = copies[key]
    return nn.Parameter(copy, requires_grad=False) if isinstance(tensor, nn.Parameter) else copy


def _absent(block: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    """The parameters of a block without numbers: name, module, name in the module, parameter."""
    for name, parameter in list(block.named_parameters()):
        if parameter.is_meta:
            path, _, leaf = name.rpartition(".")
            yield name, block.get_submodule(path), leaf, parameter


def _unmoved(block: nn.Module, *_args: object, **_kwargs: object) -> nn.Module:
    return block


@torch.no_grad()
def _read(blocks: BlockModel, name: str) -> Tensor:
    return blocks.checkpoint.read([name], blocks.dtype)[name].to(blocks.device)
