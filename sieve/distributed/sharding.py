"""A model whose weights are shared out over ranks: fully sharded data parallel (FSDP2).

Every decoder block is a unit of `torch.distributed.fsdp.fully_shard`: a rank holds its share of
each weight, and the whole block for as long as it computes with it. A weight is a DTensor outside
of the block's forward and backward pass, and a plain tensor within. Factors are plain tensors on
every rank, but where a search shares them out (`bank/dealt_factors.py`). A forward or backward
pass is an affair of all ranks; `Turns` keeps those in step that have different numbers of batches.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn
from transformers import PreTrainedModel

from sieve.model.backbone import forward, place, with_input_gradients
from sieve.model.matrices import block_paths, dense_like, dense_weight, shares_embedding
from sieve.model.quantized import is_quantized


def is_sharded(model: nn.Module) -> bool:
    """Whether the weights of a model are shared out over ranks."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def whole(weight: Tensor) -> Tensor:
    """A weight with all of its numbers, from the shares of the ranks, which all have to ask.

    A weight that is no DTensor comes back as it is.
    """
    if not distributed.is_available():
        return weight
    from torch.distributed.tensor import DTensor

    return weight.full_tensor() if isinstance(weight, DTensor) else weight


def whole_weight(layer: nn.Module) -> Tensor:
    """The weight of a Linear or Conv1D as W (d_out, d_in), with all of its numbers."""
    return whole(dense_weight(layer))


def whole_layer(layer: nn.Module) -> nn.Module:
    """A layer that can be called by itself: a dense one with all its numbers; all ranks ask."""
    held: Any = getattr(layer, "weight", None)
    if held is None or whole(held) is held:
        return layer
    bias = getattr(layer, "bias", None)
    return dense_like(layer, whole_weight(layer), None if bias is None else whole(bias))


def shard(model: PreTrainedModel, mesh: Any, dtype: torch.dtype) -> None:
    """Share a frozen model's weights out over the ranks of a mesh, in place, in a dtype.

    One block after the other is brought to its dtype and to the mesh's device and cut, so that a
    rank holds its share and one whole block at a time; weights that are views of a file leave the
    memory with their block. The embedding and the head are units of their own, one where they are
    tied. Raises ValueError for quantized weights.
    """
    from torch.distributed.fsdp import fully_shard

    if any(is_quantized(parameter) for parameter in model.parameters()):
        raise ValueError(
            "got a quantized model, whose weights cannot be shared out over ranks; choose "
            "trainer=gpu or trainer=cpu, or the model as it was before it was quantized."
        )
    for path in block_paths(model):
        block: Any = model.get_submodule(path)
        place(block, None, dtype)
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    place(model, None, dtype)  # What is left: the embedding, norms, the head, buffers.
    for unit in _ends(model):
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def _ends(model: PreTrainedModel) -> list[Any]:
    """The embedding and the head of a model, together where they share a table."""
    embedding = None
    with contextlib.suppress(NotImplementedError):  # A custom model may not say where it is.
        embedding = model.get_input_embeddings()
    head = model.get_output_embeddings()
    if embedding is not None and head is not None and shares_embedding(model):
        return [[embedding, head]]
    return [unit for unit in (embedding, head) if unit is not None]


def average_gradients(parameters: Sequence[Tensor]) -> None:
    """Replace the gradients of parameters that all ranks hold alike by their mean over ranks."""
    for parameter in parameters:
        if parameter.grad is not None:
            distributed.all_reduce(parameter.grad)
            parameter.grad /= distributed.get_world_size()


def held_fraction(model: nn.Module) -> float:
    """Part of all numbers of a model's weights that this rank holds."""
    from torch.distributed.tensor import DTensor

    parameters = list(model.parameters())
    held = sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in parameters)
    return held / sum(parameter.numel() for parameter in parameters)


def without_gradients(model: nn.Module) -> Any:
    """The context for a pass without gradients: a sharded model's buffers outlive the pass."""
    return torch.no_grad() if is_sharded(model) else torch.inference_mode()


class Turns:
    """Lets every rank run a sharded model as often as it has to, and the others go along.

    Before each of its forward passes a rank says that it has one; one that is done at `end` runs a
    token through the model for as long as another has a pass to do. backwards: every pass is run
    backwards, too. Nothing happens where the model is not sharded. As a context manager it covers
    its block, unless that fails.
    """

    def __init__(
        self, model: PreTrainedModel, backwards: bool = False, checkpointed: Sequence[Any] = ()
    ) -> None:
        self.model, self.backwards, self.checkpointed = model, backwards, checkpointed
        self._stop: Callable[[], None] | None = None
        self.passes = 0  # that were run for others

    def begin(self) -> None:
        """From here on, passes are told of."""
        if is_sharded(self.model):
            handle = self.model.register_forward_pre_hook(lambda *_: self._told(1), prepend=True)
            self._stop = handle.remove

    def end(self) -> None:
        """Go along until no rank has anything left to do."""
        if self._stop is None:
            return
        self._stop()
        self._stop = None
        while self._told(0)[0]:
            self._go_along()
            self.passes += 1

    def __enter__(self) -> "Turns":
        self.begin()
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            self.end()

    def _told(self, passes: int) -> Any:
        """How many ranks have a pass to do now (1,); None where this one does, lest it wait."""
        busy = torch.tensor([passes], device=self.model.device)
        distributed.all_reduce(busy)
        return None if passes else busy

    def _go_along(self) -> None:
        token = {"input_ids": torch.ones(1, 1, dtype=torch.long, device=self.model.device)}
        token["attention_mask"] = torch.ones_like(token["input_ids"])
        if not self.backwards:
            with torch.no_grad():
                forward(self.model, token, 1)
            return
        with (
            torch.inference_mode(False), torch.enable_grad(),
            with_input_gradients(self.model, self.checkpointed),
        ):  # fmt: skip
            forward(self.model, token, 1).float().sum().backward()
