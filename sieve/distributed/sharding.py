"""Models whose weights are sharded over ranks: fully sharded data parallel (FSDP2).

Every decoder block is a unit of `torch.distributed.fsdp.fully_shard`: a rank holds its shard of
each weight and gathers the whole block while it computes with it. A weight is a DTensor outside of
the block's forward and backward pass, and a plain tensor within. Factors are whole on every rank,
except where a search splits them (`bank/`). All ranks must run a forward or backward pass together;
`Turns` keeps ranks in step that have different numbers of batches.
"""

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel

from sieve.model.backbone import forward, place, with_input_gradients
from sieve.model.matrices import block_paths, dense_like, dense_weight, shares_embedding
from sieve.model.quantized import is_quantized


def is_sharded(model: nn.Module) -> bool:
    """Whether the weights of a model are sharded over ranks."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def whole(weight: Tensor) -> Tensor:
    """Gather a sharded weight from all ranks; every rank must call this.

    A weight that is read while its block runs is read; another one is returned unchanged.
    """
    if (source := getattr(weight, "source", None)) is not None:
        return source()
    if not distributed.is_available():
        return weight
    from torch.distributed.tensor import DTensor

    return weight.full_tensor() if isinstance(weight, DTensor) else weight


def whole_weight(layer: nn.Module) -> Tensor:
    """The gathered weight W (d_out, d_in) of a Linear or Conv1D; every rank must call this."""
    dense = dense_weight(layer)
    stored: Any = layer.weight
    if (source := getattr(stored, "source", None)) is not None:  # A view of it has none.
        return source() if dense is stored else source().T
    return whole(dense)


def whole_layer(layer: nn.Module) -> nn.Module:
    """A layer that can be called outside of the model; every rank must call this.

    The weights of a sharded dense layer are gathered.
    """
    weight = getattr(layer, "weight", None)
    if weight is None or (not hasattr(weight, "source") and whole(weight) is weight):
        return layer
    bias = getattr(layer, "bias", None)
    return dense_like(layer, whole_weight(layer), None if bias is None else whole(bias))


def shard(model: PreTrainedModel, mesh: DeviceMesh, dtype: torch.dtype) -> None:
    """Shard a frozen model's weights over the ranks of a mesh, in place, in a dtype.

    Blocks are converted, moved to the mesh's device and sharded one after the other, so a rank
    holds its shards and one whole block at a time. The embedding and the head are units of their
    own, or one unit if they are tied. Raises ValueError for quantized weights.
    """
    from torch.distributed.fsdp import fully_shard

    if any(is_quantized(parameter) for parameter in model.parameters()):
        raise ValueError(
            "trainer=fsdp cannot shard the weights of a quantized model. Choose trainer=gpu or "
            "trainer=cpu, or take the model as it was before quantization."
        )
    for path in block_paths(model):
        block: Any = model.get_submodule(path)
        place(block, None, dtype)
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    place(model, None, dtype)  # the embedding, norms, the head and buffers
    for unit in _ends(model):
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def _ends(model: PreTrainedModel) -> list[Any]:
    """The embedding and the head of a model as units; one unit if they share a weight."""
    embedding = None
    with contextlib.suppress(NotImplementedError):  # Custom models may not implement it.
        embedding = model.get_input_embeddings()
    head = model.get_output_embeddings()
    if embedding is not None and head is not None and shares_embedding(model):
        return [[embedding, head]]
    return [unit for unit in (embedding, head) if unit is not None]


def average_gradients(parameters: Sequence[Tensor]) -> None:
    """Average gradients over ranks, for parameters that are not sharded."""
    for parameter in parameters:
        if parameter.grad is not None:
            distributed.all_reduce(parameter.grad)
            parameter.grad /= distributed.get_world_size()


def without_gradients(model: nn.Module) -> AbstractContextManager[object]:
    """The context for a pass without gradients.

    Not inference mode if the model is sharded: its gathered weights outlive the pass.
    """
    return torch.no_grad() if is_sharded(model) else torch.inference_mode()


class Turns:
    """Keeps ranks in step that run a sharded model a different number of times.

    Before each forward pass, a rank announces it to the others. A rank that has finished runs one
    token through the model whenever another rank announces a pass. If the model is not sharded,
    nothing happens. Use it as a context manager around all passes.

    Args:
        backwards: whether every pass is also run backwards.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        backwards: bool = False,
        checkpointed: Sequence[nn.Module] = (),
    ) -> None:
        self.model, self.backwards, self.checkpointed = model, backwards, checkpointed
        self._stop: Callable[[], None] | None = None
        self.passes = 0  # passes run only for other ranks

    def begin(self) -> None:
        """Announce every pass from here on."""
        if is_sharded(self.model):
            handle = self.model.register_forward_pre_hook(self._before_pass, prepend=True)
            self._stop = handle.remove

    def end(self) -> None:
        """Join the passes of other ranks until every rank has finished its own."""
        if self._stop is None:
            return
        self._stop()
        self._stop = None
        while self._announce(0):
            self._join_pass()
            self.passes += 1

    def __enter__(self) -> "Turns":
        self.begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.end()

    def _before_pass(self, *_: object) -> None:
        self._announce(1)

    def _announce(self, passes: int) -> int:
        """Tell the other ranks whether this one has a pass; returns how many other ranks have one.

        A rank that has a pass gets 0, since reading the sum would make it wait.
        """
        busy = torch.tensor([passes], device=self.model.device)
        distributed.all_reduce(busy)
        return 0 if passes else int(busy)

    def _join_pass(self) -> None:
        token = {"input_ids": torch.ones(1, 1, dtype=torch.long, device=self.model.device)}
        token["attention_mask"] = torch.ones_like(token["input_ids"])
        if not self.backwards:
            with torch.no_grad():
                forward(self.model, token, 1)
            return
        gradients = with_input_gradients(self.model, self.checkpointed)
        with torch.inference_mode(False), torch.enable_grad(), gradients:
            forward(self.model, token, 1).float().sum().backward()
