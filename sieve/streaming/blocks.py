"""A model of which the weights of one decoder block at a time are in memory.

The model is built without weights. Those of a block are read from its safetensors files when it is
entered, the next block's in the background meanwhile, and dropped when it is left. What is in no
block (embeddings, final norm, output head) is read for the passes that need it. The model's own
forward method makes the masks, positions and whatever else its blocks are given, so that any
architecture whose blocks pass on hidden states alone can be walked through.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel

from sieve.data.batches import as_inputs
from sieve.factorized.modeling_experts import unfold
from sieve.model.backbone import forward
from sieve.model.matrices import Matrix, block_of, find_matrices, shares_embedding
from sieve.runtime.memory import give_back_memory
from sieve.streaming.checkpoint import Checkpoint, renamed_for


class _Reached(Exception):
    """A pass has come to where it was to end."""


class BlockModel:
    """A causal LM or classifier, walked through block by block.

    build: makes the model, under whatever device or mode is at hand; checkpoint: where its weights
    are. dtype: that it computes in; head: whether the output head is to be pruned too; check: looks
    at the model without weights. Raises ValueError where the checkpoint lacks a weight.
    """

    def __init__(
        self,
        build: Callable[[], PreTrainedModel],
        checkpoint: Checkpoint,
        device: torch.device,
        dtype: torch.dtype,
        head: bool = False,
        check: Callable[[PreTrainedModel], None] = lambda model: None,
    ) -> None:
        self.checkpoint, self.device, self.dtype = checkpoint, device, dtype
        with FakeTensorMode():
            fake = build()
            check(fake)
            self.matrices: list[Matrix] = find_matrices(fake, head)
            self.paths = _stack(fake, self.matrices)
            self._tuples = _tuples(fake, self.paths)
            self._tied = shares_embedding(fake)
        with torch.device("meta"):
            self.model = build()
        unfold(self.model)
        checkpoint.rename(renamed_for(self.model))
        self.model.requires_grad_(False)
        self._readers = ThreadPoolExecutor(1)
        self._next: tuple[str, Future[dict[str, Tensor]]] | None = None
        self._fill_rest()

    def _outside(self, names: Iterable[str]) -> list[str]:
        """Those names that are in no block."""
        inside = tuple(f"{path}." for path in self.paths)
        return [name for name in names if not f"{name}.".startswith(inside)]

    def _fill_rest(self) -> None:
        """Buffers that no checkpoint holds, and small weights that are in no block."""
        settle_buffers(self.model, self.device, self.paths)
        tables = [self.model.get_input_embeddings(), self.model.get_output_embeddings()]
        large = {id(t.weight) for t in tables if t is not None}
        held = dict(_tensors(self.model))
        small = [n for n in self._outside(_names(self.model)) if id(held[n]) not in large]
        put(self.model, self.checkpoint.read(small), self.device, self.dtype)

    @contextmanager
    def _with_table(self, table: nn.Module | None) -> Iterator[None]:
        """The weights of the embedding or the head for the duration of the block."""
        if table is None:
            yield
            return
        names = self._names_of(table)
        tensors: dict[str, Tensor] = {}
        if self._tied and table is self.model.get_output_embeddings():
            inner = self._names_of(self.model.get_input_embeddings())[0]
            tensors[names.pop(0)] = self.checkpoint.read([inner])[inner]
        put(self.model, self.checkpoint.read(names) | tensors, self.device, self.dtype)
        try:
            yield
        finally:
            drop(table)

    def _names_of(self, table: nn.Module) -> list[str]:
        """Names of the parameters of the embedding or the head, the weight first."""
        path = next(name for name, module in self.model.named_modules() if module is table)
        return [f"{path}.{name}" for name, _ in table.named_parameters()]

    @contextmanager
    def loaded(self, path: str, then: str | None = None) -> Iterator[nn.Module]:
        """A block, or another module, with its weights; `then` is read in the background."""
        module = self.model.get_submodule(path)
        if self._outside([path]):
            with self._with_table(module):
                yield module
            return
        if self._next is not None and self._next[0] == path:
            tensors = self._next[1].result()
        else:
            tensors = self._read(path)
        self._next = None
        settle_buffers(module, self.device, (), self.model)
        put(self.model, tensors, self.device, self.dtype)
        if then is not None:
            self._next = then, self._readers.submit(self._read, then)
        try:
            yield module
        finally:
            drop(module)
            if path in self.paths:
                give_back_memory()

    def _read(self, path: str) -> dict[str, Tensor]:
        module = self.model.get_submodule(path)
        names = [f"{path}.{name}" for name in _names(module)]
        return self.checkpoint.read(names)

    def embed(self, batches: list[Any], keep: Callable[[int, Tensor], None]) -> None:
        """Give `keep` the hidden states (B, T, d) of every batch before the first block."""
        with self._with_table(self.model.get_input_embeddings()):
            for index, batch in enumerate(batches):
                with torch.no_grad():
                    keep(index, self._run(batch, 0, None))

    def block(self, number: int, hidden: Tensor, batch: Any) -> Tensor:
        """Hidden states (B, T, d) after a loaded block, of those before it."""
        return self._run(batch, number, hidden)

    @contextmanager
    def top(self) -> Iterator[Callable[[Tensor, Any, int], Tensor]]:
        """The head's weights, and logits (B, keep, V) of hidden states after the last block."""

        def logits(hidden: Tensor, batch: Any, keep: int) -> Tensor:
            with self._replaced(len(self.paths) - 1, lambda *_args, **_kwargs: hidden):
                return forward(self.model, self._inputs(batch, hidden), keep)

        with self._with_table(self.model.get_output_embeddings()):
            yield logits

    def _run(self, batch: Any, number: int, hidden: Tensor | None) -> Tensor:
        """A pass up to one block: what that is given, where hidden is None, else what it makes."""
        found: list[Tensor] = []
        block = self.model.get_submodule(self.paths[number])

        def reached(given: Tensor, *args: Any, **kwargs: Any) -> None:
            if hidden is None:
                found.append(given)
            else:
                made = type(block).forward(block, hidden, *args, **kwargs)
                found.append(made[0] if isinstance(made, tuple) else made)
            raise _Reached

        with self._replaced(number, reached):
            try:
                forward(self.model, self._inputs(batch, hidden), 1)
            except _Reached:
                pass
        return found[0]

    def _inputs(self, batch: Any, hidden: Tensor | None) -> dict[str, Tensor]:
        """What the model is given: tokens, or nothing in their place where hidden states are."""
        inputs = {name: tensor.to(self.device) for name, tensor in as_inputs(batch).items()}
        if hidden is not None:
            ids = inputs.pop("input_ids")
            table: Any = self.model.get_input_embeddings()
            shape = (*ids.shape, table.embedding_dim)
            inputs["inputs_embeds"] = hidden.new_zeros(1).expand(shape)
        return inputs

    @contextmanager
    def _replaced(self, number: int, work: Callable[..., Any]) -> Iterator[None]:
        """Let every block pass on what it is given, but one, which does `work`."""

        def passing(given: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
            return given

        def as_made(inner: Callable[..., Any], size: int) -> Callable[..., Any]:
            def run(*args: Any, **kwargs: Any) -> Any:
                given = args or (kwargs.pop("hidden_states"),)
                made = inner(*given, **kwargs)
                return (made, *[None] * (size - 1)) if size else made

            return run

        blocks = [self.model.get_submodule(path) for path in self.paths]
        try:
            for index, block in enumerate(blocks):
                inner = work if index == number else passing
                block.forward = as_made(inner, self._tuples[index])
            yield
        finally:
            for block in blocks:
                del block.forward  # The class's own shows again.


def _stack(model: PreTrainedModel, matrices: list[Matrix]) -> list[str]:
    """Module paths of all blocks of the one stack that holds the matrices, in order."""
    parents = {block_of(m.name).rpartition(".")[0] for m in matrices if m.layer is not None}
    if len(parents) != 1:
        raise ValueError(
            f"got a model with {len(parents)} stacks of blocks, expected one to walk through; set "
            "calibration.strategy=whole."
        )
    parent = parents.pop()
    return [f"{parent}.{name}" for name, _ in model.get_submodule(parent).named_children()]


def _tuples(model: PreTrainedModel, paths: list[str]) -> list[int]:
    """How many things each block returns as a tuple; 0 where it returns the hidden states alone."""
    sizes = dict.fromkeys(paths, 0)
    handles = []
    for path in paths:

        def note(_module: Any, _args: Any, made: Any, path: str = path) -> None:
            sizes[path] = len(made) if isinstance(made, tuple) else 0

        handles.append(model.get_submodule(path).register_forward_hook(note))
    ids = torch.zeros(1, 2, dtype=torch.long)
    forward(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, 1)
    for handle in handles:
        handle.remove()
    return list(sizes.values())


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, and buffers that a checkpoint holds, by name."""
    yield from module.named_parameters(remove_duplicate=False)
    skipped = {
        f"{prefix}.{name}" if prefix else name
        for prefix, inner in module.named_modules()
        for name in inner._non_persistent_buffers_set
    }
    yield from ((n, b) for n, b in module.named_buffers(remove_duplicate=False) if n not in skipped)


def _names(module: nn.Module) -> list[str]:
    return [name for name, _ in _tensors(module)]


def settle_buffers(
    module: nn.Module, device: torch.device, but: tuple[str, ...] | list[str] = (),
    model: PreTrainedModel | None = None,
) -> None:  # fmt: skip
    """Make the buffers that no checkpoint holds, as the architecture says.

    but: module paths whose insides are left alone; model: whose class knows how, by default
    `module` itself.
    """
    maker: Any = model or module
    inside = tuple(f"{path}." for path in but)
    for name, inner in module.named_modules():
        empty = [n for n in inner._non_persistent_buffers_set if getattr(inner, n) is not None]
        if empty and not f"{name}.".startswith(inside):
            for key in empty:
                inner._buffers[key] = torch.empty_like(getattr(inner, key), device=device)
            with torch.no_grad():
                maker._init_weights(inner)


def put(
    model: nn.Module, tensors: dict[str, Tensor], device: torch.device, dtype: torch.dtype
) -> None:
    """Give a model weights and buffers by name, on a device and in a dtype; empties `tensors`."""
    while tensors:
        name, tensor = tensors.popitem()
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        tensor = tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)
        if leaf in module._parameters:
            module._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
        else:
            module._buffers[leaf] = tensor


def drop(module: nn.Module) -> None:
    """Take a module's weights out of memory."""
    for inner in module.modules():
        for name, parameter in inner._parameters.items():
            if parameter is not None:
                empty = torch.empty_like(parameter, device="meta")
                inner._parameters[name] = nn.Parameter(empty, requires_grad=False)
