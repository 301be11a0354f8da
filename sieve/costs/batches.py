"""The tokens of a forward pass if batch_tokens is not set: as many as fit into free memory."""

from collections.abc import Callable

from sieve.costs.shape import Shape
from sieve.projections.moments import FLOAT32

CPU_TOKENS, GPU_TOKENS, FEWEST_TOKENS = 2_048, 8_192, 128
USABLE = 0.5  # of free memory
# Memory that the C library keeps after backward passes on a CPU, as a share of their activations.
# `make bench` shows measured peaks beside forecasts.
UNRELEASED = 0.5


def fitting_tokens(pass_bytes: Callable[[int], float], free_bytes: float, on_cpu: bool) -> int:
    """The tokens of a pass: as many as are fast on the device, halved until the pass fits.

    pass_bytes: returns the memory of a pass over a number of tokens.
    """
    tokens = CPU_TOKENS if on_cpu else GPU_TOKENS
    while tokens > FEWEST_TOKENS and pass_bytes(tokens) > USABLE * free_bytes:
        tokens //= 2
    return tokens


def calibration_bytes(
    shape: Shape, tokens: int, itemsize: int, logits: float, on_cpu: bool, saved_blocks: int
) -> float:
    """The memory of a forward and a backward pass over a batch.

    Args:
        itemsize: bytes of a number that the model computes with.
        logits: the share of the tokens whose logits are computed.
        saved_blocks: decoder blocks whose activations are in memory together.
    """
    activations = shape.activation_bytes(tokens, itemsize, saved_blocks)
    positions = tokens * logits * shape.vocabulary * (itemsize + 4 * FLOAT32)
    return activations * (1 + UNRELEASED * on_cpu) + positions
