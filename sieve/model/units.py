"""Units: matrices that nothing needs once another matrix of their block is gone.

All that an attention computes passes through its output projection, and all that an MLP computes
through its `down`. At rank 0 such a matrix, the writer, gives its bias for every token, so the
matrices that feed it and nothing else need not exist. The graph of one forward pass shows who feeds
whom (`observation.py`); names do not count.
"""

import inspect
from collections.abc import Mapping, Sequence

from torch import nn

from sieve.model.observation import EXIT, Observation, Owner

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
