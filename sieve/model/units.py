"""Units: matrices that nothing needs once another matrix of their block is gone.

All that an attention computes passes through its output projection, and all that an MLP computes
through its `down`. At rank 0 such a matrix, the writer, gives its bias for every token, so the
matrices that feed it and nothing else need not exist. The graph of one forward pass shows who feeds
whom (`observation.py`); names do not count.

In an MLP the number i that the writer reads is computed from row i of each feeder alone: a neuron.
Such a unit can lose some of its neurons, and the rest stays as it is.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import cast

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from sieve.model.observation import EXIT, Observation, Owner

# Operations of torch that compute element i of the result from element i of their inputs.
ELEMENTWISE = frozenset(
    f"{name}Backward0"
    for name in (
        "Abs Add AddScalar Clamp ClampMin Clone Div Elu Erf Exp Gelu Hardswish LeakyRelu Log1P Mul "
        "MulScalar Neg Pow Relu Rsub Sigmoid Silu Softplus Square Sub Tanh ToCopy"
    ).split()
)
SPLIT = "SplitBackward0"  # of the output of a fused layer
CACHES = ("cache", "past_key_value", "past_key_values", "layer_past")


def writers_of(observation: Observation, blocks: Mapping[str, str]) -> dict[str, str]:
    """For each matrix that feeds only one writer, the name of that writer.

    The writer of a matrix is the last matrix of its block that every path from the matrix to the
    output of the block leads through. A writer reads an input of its own.

    Args:
        blocks: the prunable matrices that may be in a unit, and the path of the block of each.
    """
    chains: dict[str, list[str]] = {}
    for name in reversed(observation.readers):
        chains[name] = _common([_path(reader, chains) for reader in observation.readers[name]])
    inputs = [calls[0].tensor for calls in observation.reads.values() if calls]
    writers = {}
    for name, block in blocks.items():
        inside = [other for other in chains.get(name, []) if blocks.get(other) == block]
        if inside and inputs.count(observation.reads[inside[-1]][0].tensor) == 1:
            writers[name] = inside[-1]
    return writers


def _path(reader: str, chains: Mapping[str, list[str]]) -> list[str]:
    """What every path from a reader leads through, itself included; a loop ends the path."""
    return [reader, *chains[reader]] if reader in chains and reader != EXIT else []


def _common(paths: Sequence[list[str]]) -> list[str]:
    """The layers of the first path that are on all paths."""
    first, others = (paths[0], paths[1:]) if paths else ([], [])
    return [name for name in first if all(name in path for path in others)]


def owner_of(
    model: nn.Module, observation: Observation, writer: str, writers: Mapping[str, str]
) -> Owner | None:
    """The module that computes nothing but a unit's output, so that it can be skipped, or None.

    Args:
        writers: the result of `writers_of`.
    """
    owner = observation.owners.get(writer)
    if owner is None:
        return None
    inside = [name for name in observation.readers if name.startswith(f"{owner.path}.")]
    module = model.get_submodule(owner.path)
    arguments = inspect.signature(module.forward).parameters
    numbered = hasattr(module, "layer_idx") or not any(name in arguments for name in CACHES)
    whole = all(name == writer or writers.get(name) == writer for name in inside)
    return owner if whole and numbered else None


def has_neurons(
    model: nn.Module,
    observation: Observation,
    writer: str,
    owner: Owner | None,
    feeders: Sequence[str],
) -> bool:
    """Whether each number that a writer reads comes from rows of its feeders of its own.

    Args:
        owner: the result of `owner_of`; None is no.
        feeders: the layers that feed only this writer.
    """
    if owner is None or not feeders:
        return False
    width = dense_shape(model.get_submodule(writer))[1]
    heights = {dense_shape(model.get_submodule(name))[0] for name in feeders}
    operations = observation.operations[writer]
    fused = SPLIT in operations and heights == {2 * width}
    direct = {name for name, readers in observation.readers.items() if writer in readers}
    layers = {id(p) for n in (*feeders, writer) for p in model.get_submodule(n).parameters()}
    module = model.get_submodule(owner.path)
    return (
        operations <= (ELEMENTWISE | {SPLIT} if fused else ELEMENTWISE)
        and (fused or heights == {width})
        and direct == {*feeders}
        and layers == {id(parameter) for parameter in module.parameters()}
        and not any(buffer.numel() > 1 for buffer in module.buffers())
    )


def dense_shape(layer: nn.Module) -> tuple[int, int]:
    """(d_out, d_in) of a Linear or a Conv1D, which stores its weight transposed."""
    rows, columns = cast(Tensor, layer.weight).shape
    return (columns, rows) if isinstance(layer, Conv1D) else (rows, columns)
