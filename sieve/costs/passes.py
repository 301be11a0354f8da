"""Floating-point operations of passes through a model, and the memory of their activations.

A product of (m, k) and (k, n) takes 2 m k n operations. Tests compare the operations with torch's
FlopCounterMode, and the memory with what torch saves for a backward pass.
"""

from dataclasses import dataclass

from sieve.costs.shape import Shape
from sieve.projections.moments import FLOAT32, Needs, gradient_side, plan_streams

PADDING = 1.05  # tokens of a batch of rows of similar length, over those that are not padding


@dataclass(frozen=True)
class Rows:
    """Rows of tokens."""

    count: float
    length: float  # mean tokens of a row
    logits: float = 1.0  # positions of a row at which logits are computed
    padding: float = PADDING
    shared: float = 0.0  # tokens of a prefix before each row, which these passes do not run

    @property
    def tokens(self) -> float:
        """All tokens, without padding."""
        return self.count * self.length


def pass_flops(
    shape: Shape, rows: Rows, kept: float = 1.0, backward: int = 0, again: bool = False
) -> float:
    """One pass over rows.

    Args:
        kept: fraction of the prunable weights.
        backward: how many products a backward pass makes with each matrix: 1 computes gradients of
            activations, 2 also of the factors, 0 means no backward pass.
        again: the backward pass computes every block again (checkpointing).
    """
    once = min(backward, 1)
    weights = kept * shape.per_token * (1 + backward + again)
    weights += shape.unprunable * (1 + once + again)
    attended = 2 * (rows.length + rows.shared) * shape.queries * shape.layers
    attended *= 1 + 2 * once + again
    head = rows.count * rows.logits * shape.hidden * shape.vocabulary * (1 + once)
    return 2 * (rows.padding * rows.tokens * (weights + attended) + head)


def moment_flops(shape: Shape, rows: Rows, needs: Needs, by_gradient: bool) -> float:
    """Sums of z zᵀ over all tokens; both halves of the symmetric square are computed."""
    streams = plan_streams(list(shape.matrices), needs, shared=not by_gradient)
    flops = 0.0
    for matrix in shape.matrices:
        in_block = matrix.layer is not None
        seen = rows.tokens * shape.token_share(matrix) if in_block else rows.count * rows.logits
        products = streams[matrix.name][1] ** 2 if matrix.name in streams else 0
        if needs.gradient:
            side, width = gradient_side(matrix)
            products += width**2 + matrix.size * (side == "input")  # Wᵀ g
        flops += 2 * seen * products
    return flops


def activation_bytes(shape: Shape, tokens: float, itemsize: int, saved_blocks: int = 0) -> float:
    """Activations of a batch; `saved_blocks`: how many blocks save theirs for a backward pass."""
    if not saved_blocks:
        return tokens * (itemsize * 3 * (shape.widest + shape.hidden) + FLOAT32 * shape.hidden)
    block = itemsize * shape.saved_per_token + 2 * FLOAT32 * shape.hidden
    return tokens * (saved_blocks * block + itemsize * 2 * shape.widest)


def logit_bytes(shape: Shape, positions: float, itemsize: int, backward: bool = False) -> float:
    """Logits, their float32 copies, and with `backward` their gradients."""
    return positions * shape.vocabulary * (itemsize + FLOAT32 * (4 if backward else 2))
