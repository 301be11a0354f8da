"""A model with the weights of one decoder block at a time in memory.

The model is built without weights. The weights of a block are read from the safetensors files when
the block is entered and dropped when it is left; the next block is read in the background. Weights
outside of blocks (embeddings, final norm, output head) are read for the passes that need them. The
model's own forward method computes masks, positions and other inputs of blocks, so this works for
every architecture whose blocks exchange nothing but hidden states.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel

from sieve.data.batches import as_inputs
from sieve.factorized.modeling_experts import unfold
from sieve.model.backbone import forward, is_classifier, replaced_forwards
from sieve.model.matrices import Matrix, block_of, find_matrices, shares_embedding
from sieve.streaming.checkpoint import Checkpoint, renamed_for

Forward = Callable[..., Any]  # the forward method of a block


class _BlockReached(Exception):
    """Ends a forward pass at the block of interest."""


class BlockModel:
    """A causal LM or classifier that runs block by block.

    Raises ValueError if the checkpoint lacks a weight.

    Args:
        build: creates the model on the current default device.
        checkpoint: the model's weights.
        dtype: the dtype to compute in.
        head: whether the output head is prunable.
        check: raises an error if the model, here without weights, is not supported.
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
            self._tuple_sizes = dict(zip(self.paths, _tuple_sizes(fake, self.paths), strict=True))
            tied = shares_embedding(fake)
        with torch.device("meta"):
            self.model = build()
        unfold(self.model)
        checkpoint.rename(renamed_for(self.model))
        if tied:
            self._share_embedding()
        self.model.requires_grad_(False)
        self._readers = ThreadPoolExecutor(1)
        self._next: tuple[str, Future[dict[str, Tensor]]] | None = None
        self._load_small()

    def _share_embedding(self) -> None:
        """Read the weight of the head where the checkpoint has it: in the embedding."""
        tables = self.model.get_output_embeddings(), self.model.get_input_embeddings()
        self.checkpoint.share(*(f"{_path_of(self.model, table)}.weight" for table in tables))

    def _load_small(self) -> None:
        """Compute the buffers and load the small weights that are in no block, such as norms."""
        compute_buffers(self.model, self.device, self.paths)
        tables = [self.model.get_input_embeddings(), self.model.get_output_embeddings()]
        large = {id(t.weight) for t in tables if t is not None}
        inside = tuple(f"{path}." for path in self.paths)
        outside = [(n, t) for n, t in _tensors(self.model) if not n.startswith(inside)]
        small = [name for name, tensor in outside if id(tensor) not in large]
        load_tensors(self.model, self.checkpoint.read(small, self.dtype), self.device)

    @contextmanager
    def loaded(self, path: str, next_path: str | None = None) -> Iterator[nn.Module]:
        """Load a block or the head, and read `next_path` in the background."""
        module = self.model.get_submodule(path)
        if self._next is not None and self._next[0] == path:
            tensors = self._next[1].result()
        else:
            tensors = self._read(path)
        self._next = None
        compute_buffers(module, self.device, (), self.model)
        load_tensors(self.model, tensors, self.device)
        if next_path is not None:
            self._next = next_path, self._readers.submit(self._read, next_path)
        try:
            yield module
        finally:
            drop(module)

    def _read(self, path: str) -> dict[str, Tensor]:
        module = self.model.get_submodule(path)
        names = [f"{path}.{name}" for name in _names(module)]
        return self.checkpoint.read(names, self.dtype)

    @contextmanager
    def _with_embeddings(self, tokens: Tensor) -> Iterator[None]:
        """Load the embeddings of some tokens for the duration of a `with` block."""
        table: Any = self.model.get_input_embeddings()
        name = f"{_path_of(self.model, table)}.weight"
        # On a CPU, rows that are never written take no memory.
        weight = torch.empty(table.weight.shape, dtype=self.dtype, device=self.device)
        weight[tokens] = self.checkpoint.read_rows(name, tokens, self.dtype).to(self.device)
        load_tensors(self.model, {name: weight}, self.device)
        try:
            yield
        finally:
            drop(table)

    def embed(self, batches: list[object], keep: Callable[[int, Tensor], None]) -> None:
        """Call `keep` with the index and the hidden states (B, T, d) of each embedded batch."""
        tokens = torch.cat([as_inputs(batch)["input_ids"].unique().cpu() for batch in batches])
        with self._with_embeddings(tokens.unique()):
            for index, batch in enumerate(batches):
                with torch.no_grad():
                    keep(index, self.run(0, None, batch))

    @contextmanager
    def head(self) -> Iterator[Callable[[Tensor, object, int], Tensor]]:
        """Load the head; yields a function from the last block's hidden states to logits.

        The logits (B, keep, V) belong to the last `keep` positions.
        """

        def logits(hidden: Tensor, batch: object, keep: int) -> Tensor:
            inputs = self._inputs(batch)
            if not is_classifier(self.model):  # A classifier may read the first position.
                inputs = {name: tensor[:, -keep:] for name, tensor in inputs.items()}
                hidden = hidden[:, -keep:]
            with self._replaced(len(self.paths) - 1, lambda *_args, **_kwargs: hidden, hidden):
                return forward(self.model, inputs, keep)

        head = self.model.get_output_embeddings()
        with self.loaded(_path_of(self.model, head)) if head is not None else nullcontext():
            yield logits

    def run(self, number: int, hidden: Tensor | None, batch: object) -> Tensor:
        """Run a loaded block on hidden states (B, T, d); returns the hidden states after it.

        If `hidden` is None, returns the input of the block: the embedded batch for block 0.
        """
        states: list[Tensor] = []
        block = self.model.get_submodule(self.paths[number])

        def stop_here(inputs: Tensor, *args: Any, **kwargs: Any) -> None:
            if hidden is None:
                states.append(inputs)
            else:
                outputs = type(block).forward(block, hidden, *args, **kwargs)
                states.append(outputs[0] if isinstance(outputs, tuple) else outputs)
            raise _BlockReached

        with self._replaced(number, stop_here, hidden):
            with suppress(_BlockReached):
                forward(self.model, self._inputs(batch), 1)
        return states[0]

    def returned(self, path: str, states: Tensor) -> object:
        """Hidden states in the form in which the block at `path` returns them."""
        size = self._tuple_sizes[path]
        return (states, *[None] * (size - 1)) if size else states

    def _inputs(self, batch: object) -> dict[str, Tensor]:
        return {name: tensor.to(self.device) for name, tensor in as_inputs(batch).items()}

    @contextmanager
    def _replaced(self, number: int, work: Forward, hidden: Tensor | None) -> Iterator[None]:
        """Make block `number` do `work` and every other block return its input.

        If there are hidden states, the embedding, which has no weights now, returns zeros.
        """

        def identity(inputs: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
            return inputs

        def in_form_of_block(inner: Forward, path: str) -> Forward:
            def run(*args: Any, **kwargs: Any) -> object:
                inputs = args or (kwargs.pop("hidden_states"),)
                return self.returned(path, inner(*inputs, **kwargs))

            return run

        def zeros(ids: Tensor) -> Tensor:
            assert hidden is not None
            return hidden.new_zeros(1).expand(*ids.shape, table.embedding_dim)

        table: Any = self.model.get_input_embeddings()
        replacements: dict[Any, Forward] = {} if hidden is None else {table: zeros}
        for index, path in enumerate(self.paths):
            inner = work if index == number else identity
            block = self.model.get_submodule(path)
            replacements[block] = in_form_of_block(inner, path)
        with replaced_forwards(replacements):
            yield


def _path_of(model: nn.Module, module: nn.Module) -> str:
    return next(name for name, inner in model.named_modules() if inner is module)


def _stack(model: PreTrainedModel, matrices: list[Matrix]) -> list[str]:
    """Module paths of the blocks of the stack that contains the matrices, in order."""
    parents = {block_of(m.name).rpartition(".")[0] for m in matrices if m.layer is not None}
    if len(parents) != 1:
        raise ValueError(
            f"calibration.strategy=stream needs a model with one stack of blocks, got "
            f"{len(parents)} stacks. Set calibration.strategy=whole."
        )
    parent = parents.pop()
    return [f"{parent}.{name}" for name, _ in model.get_submodule(parent).named_children()]


def _tuple_sizes(model: PreTrainedModel, paths: list[str]) -> list[int]:
    """Size of the tuple that each block returns; 0 if it returns a tensor."""
    sizes = dict.fromkeys(paths, 0)

    def record(path: str, _module: nn.Module, _args: object, outputs: object) -> None:
        sizes[path] = len(outputs) if isinstance(outputs, tuple) else 0

    with ExitStack() as stack:
        for path in paths:
            block = model.get_submodule(path)
            stack.enter_context(block.register_forward_hook(partial(record, path)))
        ids = torch.zeros(1, 2, dtype=torch.long)
        forward(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, 1)
    return list(sizes.values())


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, and buffers that checkpoints contain, by name."""
    yield from module.named_parameters(remove_duplicate=False)
    skipped = {
        f"{prefix}.{name}" if prefix else name
        for prefix, inner in module.named_modules()
        for name in inner._non_persistent_buffers_set
    }
    yield from ((n, b) for n, b in module.named_buffers(remove_duplicate=False) if n not in skipped)


def _names(module: nn.Module) -> list[str]:
    return [name for name, _ in _tensors(module)]


def compute_buffers(
    module: nn.Module,
    device: torch.device,
    skip: Sequence[str] = (),
    model: PreTrainedModel | None = None,
) -> None:
    """Compute the buffers that checkpoints do not contain, such as rotary frequencies.

    Args:
        skip: paths of modules to leave alone.
        model: the model whose class initializes buffers; by default `module` itself.
    """
    initializer: Any = model or module
    inside = tuple(f"{path}." for path in skip)
    for name, inner in module.named_modules():
        empty = [n for n in inner._non_persistent_buffers_set if getattr(inner, n) is not None]
        if empty and not f"{name}.".startswith(inside):
            for key in empty:
                inner._buffers[key] = torch.empty_like(getattr(inner, key), device=device)
            with torch.no_grad():
                initializer._init_weights(inner)


def load_tensors(model: nn.Module, tensors: dict[str, Tensor], device: torch.device) -> None:
    """Set weights and buffers of a model by name, on a device; empties `tensors`."""
    while tensors:
        name, tensor = tensors.popitem()
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        tensor = tensor.to(device)
        if leaf in module._parameters:
            module._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
        else:
            module._buffers[leaf] = tensor


def drop(module: nn.Module) -> None:
    """Free the memory of a module's weights."""
    for inner in module.modules():
        for name, parameter in inner._parameters.items():
            if parameter is not None:
                empty = torch.empty_like(parameter, device="meta")
                inner._parameters[name] = nn.Parameter(empty, requires_grad=False)
