"""One forward pass of a few tokens that shows how the layers of the repeated blocks are connected.

The output of every layer and of every block is cut from the graph of gradients. So the graph of a
layer's input ends at the layers whose outputs it is computed from.
"""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sieve.model.structure import TOKENS, Layer, Read

EXIT = ""  # stands for the output of a block among the readers of a layer


@dataclass(frozen=True)
class Owner:
    """The module whose result is the output of one of its layers, unchanged."""

    path: str
    results: int  # length of the tuple that it returns; 0 if it returns the output alone


@dataclass
class Observation:
    """What one pass of `TOKENS` tokens shows."""

    reads: dict[str, list[Read]]  # the calls of each layer
    # For each called layer, in order of the calls, the layers that read its output with no other
    # layer between, and `EXIT` if the output of the block is computed from it in this way.
    readers: dict[str, set[str]]
    owners: dict[str, Owner]  # by layer; the outermost module
    operations: dict[str, set[str]]  # by layer: torch's names of what computes its input


@torch.inference_mode(False)  # Inference tensors have no versions.
@torch.enable_grad()
def observe(
    model: PreTrainedModel, layers: Mapping[str, Layer], blocks: Iterable[str]
) -> Observation:
    """Run a few tokens through a model; `blocks` are the paths of its repeated blocks."""
    observer, training = _Observer(layers), model.training
    vocabulary = getattr(model.config.get_text_config(), "vocab_size", 1)
    tokens = (torch.arange(TOKENS, device=model.device) % vocabulary)[None]
    takes_cache = "use_cache" in inspect.signature(model.forward).parameters
    options = {"use_cache": False} if takes_cache else {}
    with ExitStack() as stack:
        stack.callback(model.train, training)
        for name, layer in layers.items():
            before = partial(observer.enter, name)
            stack.enter_context(layer.register_forward_pre_hook(before, with_kwargs=True))
            stack.enter_context(layer.register_forward_hook(partial(observer.leave, name)))
        for block in blocks:
            module = model.get_submodule(block)
            for path, owner in module.named_modules(prefix=block):
                if owner is not module and path not in layers:
                    hook = partial(observer.leave_owner, path)
                    stack.enter_context(owner.register_forward_hook(hook))
            stack.enter_context(module.register_forward_hook(observer.leave_block))
        output = model.eval()(input_ids=tokens, attention_mask=torch.ones_like(tokens), **options)
        observer.exits.extend(_tensors(output))
    return observer.observation()


class _Observer:
    """The hooks of one pass, and what they recorded."""

    def __init__(self, layers: Mapping[str, Layer]) -> None:
        self.reads: dict[str, list[Read]] = {name: [] for name in layers}
        self.exits: list[Tensor] = []  # outputs of blocks and of the model
        self.owners: dict[str, Owner] = {}
        self._inputs: list[tuple[str, Tensor]] = []  # An id is unique only while its tensor lives.
        self._outputs: dict[str, tuple[Tensor, int]] = {}  # the last of a layer, and its version
        self._leaves: dict[Tensor, str] = {}

    def enter(
        self, name: str, _module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]
    ) -> None:
        """Record what a layer reads."""
        x = args[0] if args else next(iter(kwargs.values()))
        self._inputs.append((name, x))
        self.reads[name].append(Read((id(x), x._version), x.numel() // x.shape[-1]))

    def leave(self, name: str, _module: nn.Module, _args: object, output: Tensor) -> Tensor:
        """Cut a layer's output from the graph."""
        leaf = output.detach().requires_grad_()
        self._leaves[leaf] = name
        output = leaf.clone()  # A leaf itself must not be changed in place.
        self._outputs[name] = output, output._version
        return output

    def leave_owner(self, path: str, _module: nn.Module, _args: object, output: object) -> None:
        """Record that a module returns the output of one of its layers."""
        results = output if isinstance(output, tuple) else (output,)
        result = results[0] if results else None
        if isinstance(result, Tensor):
            for name, (own, version) in self._outputs.items():
                if name.startswith(f"{path}.") and _is_same(result, own, version):
                    self.owners[name] = Owner(path, len(results) * isinstance(output, tuple))

    def leave_block(self, _module: nn.Module, _args: object, output: object) -> object:
        """Cut a block's outputs from the graph."""
        self.exits.extend(_tensors(output))
        if isinstance(output, tuple):
            return tuple(_cut(part) for part in output)
        return _cut(output)

    def observation(self) -> Observation:
        """Everything that the pass showed."""
        readers: dict[str, set[str]] = {name: set() for name, _ in self._inputs}
        operations: dict[str, set[str]] = {}
        for name, x in [*self._inputs, *((EXIT, x) for x in self.exits)]:
            leaves, names = _graph_of(x)
            operations.setdefault(name, set()).update(names)
            for leaf in leaves:
                if leaf in self._leaves:
                    readers[self._leaves[leaf]].add(name)
        return Observation(self.reads, readers, self.owners, operations)


def _is_same(tensor: Tensor, output: Tensor, version: int) -> bool:
    same_memory = tensor.untyped_storage()._cdata == output.untyped_storage()._cdata
    return same_memory and tensor.shape == output.shape and tensor._version == version


def _cut(value: object) -> object:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().requires_grad_().clone()
    return value


def _tensors(value: object) -> Iterator[Tensor]:
    """The tensors in a nest of tuples, lists and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)


def _graph_of(tensor: Tensor) -> tuple[list[Tensor], set[str]]:
    """The leaves of the graph that a tensor was computed by, and the names of its operations."""
    nodes, seen = [tensor.grad_fn], set()
    leaves, names = list[Tensor](), set[str]()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            leaves.append(leaf)
        else:
            names.add(node.name())
        nodes += [following for following, _ in node.next_functions]
    return leaves, names
