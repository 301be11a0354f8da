"""Floating-point operations of passes through a model, and the memory that these hold.

A product of (m, k) and (k, n) is 2 m k n operations. Weights are frozen, so a way back is once the
matrices' products (gradients of activations alone) and twice attention's; where factors are trained
it is twice theirs.
"""

from dataclasses import dataclass

from sieve.costs.shape import FLOAT32, Shape
from sieve.projections.moments import Needs, gradient_side, plan_streams

PADDING = 1.05  # tokens of batches of like length over those that are not padding


@dataclass(frozen=True)
class Rows:
    """Rows of tokens: how many, how long on the mean, and at how many positions logits are made.

    padding: tokens that are computed over those that count.
    """

    count: float
    length: float
    kept: float = 1.0
    padding: float = PADDING

    @property
    def tokens(self) -> float:
        """All tokens."""
        return self.count * self.length

    def batches(self, batch_tokens: int) -> float:
        """Batches of at most so many tokens, at least one."""
        return max(1.0, self.padding * self.tokens / batch_tokens)


def forward_flops(shape: Shape, rows: Rows, fraction: float = 1.0) -> float:
    """One pass over rows; fraction: of the matrices' products that pruning leaves."""
    matrices = 2 * rows.tokens * (fraction * shape.per_token + shape.beside)
    attention = 4 * rows.tokens * rows.length * shape.queries * shape.layers
    return rows.padding * (matrices + attention) + head_flops(shape, rows)


def head_flops(shape: Shape, rows: Rows) -> float:
    """The output head at the positions whose logits are asked for."""
    return 2 * rows.count * rows.kept * shape.hidden * shape.vocabulary


def backward_flops(
    shape: Shape, rows: Rows, fraction: float = 1.0, trained: bool = False, again: bool = False
) -> float:
    """The way back; trained: gradients of the matrices' factors too; again: blocks are computed
    once more on it, as with checkpointing."""
    matrices = 2 * rows.tokens * (fraction * shape.per_token * (1 + trained) + shape.beside)
    attention = 8 * rows.tokens * rows.length * shape.queries * shape.layers
    once_more = forward_flops(shape, rows, fraction) - head_flops(shape, rows) if again else 0.0
    return rows.padding * (matrices + attention) + head_flops(shape, rows) + once_more


def moment_flops(shape: Shape, rows: Rows, needs: Needs, by_gradient: bool) -> float:
    """Sums of z zᵀ over all tokens: in float32, of whole squares, though they are symmetric."""
    flops = 0.0
    by_name = {matrix.name: matrix for matrix in shape.matrices}
    streams = plan_streams(list(shape.matrices), needs, shared=not by_gradient)
    seen = {m.name: _tokens(shape, rows, m) for m in shape.matrices}
    for name, (_, n) in streams.items():
        flops += 2 * seen[name] * n * n
    for name, matrix in by_name.items() if needs.gradient else ():
        side, n = gradient_side(matrix)
        flops += 2 * seen[name] * n * n
        flops += 2 * seen[name] * matrix.size if side == "input" else 0.0  # Wᵀ g
    return flops


def _tokens(shape: Shape, rows: Rows, matrix: object) -> float:
    """Tokens that a matrix sees: all, an expert's share, or of the head those that are asked of."""
    layer = getattr(matrix, "layer", None)
    if layer is None:
        return rows.count * rows.kept
    return rows.tokens * (shape.routed if getattr(matrix, "expert", None) else 1.0)


def held_bytes(shape: Shape, tokens: float, itemsize: int, checkpointing: bool = False) -> float:
    """Activations that a batch holds for its way back, and what is in hand at one time."""
    norms = 2 * FLOAT32 * shape.hidden
    block = itemsize * shape.held_per_token + norms
    if checkpointing:
        return tokens * (shape.layers * itemsize * shape.hidden + block)
    return tokens * (shape.layers * block + itemsize * 2 * shape.inner)


def passing_bytes(shape: Shape, tokens: float, itemsize: int) -> float:
    """Activations in hand at one time of a pass that holds none."""
    return tokens * (itemsize * (3 * shape.inner + 3 * shape.hidden) + FLOAT32 * shape.hidden)


def observed_bytes(shape: Shape, tokens: float) -> float:
    """Vectors in float32 that a hook has in hand: those that count, and the same weighted."""
    return 2 * FLOAT32 * tokens * shape.inner


def logit_bytes(shape: Shape, rows: float, kept: float, itemsize: int, back: bool) -> float:
    """Logits of a batch at the positions asked for, in float32 too, and their gradients."""
    copies = (itemsize + FLOAT32 * (4 if back else 2)) * shape.vocabulary
    return rows * kept * copies


def cache_bytes(shape: Shape, tokens: float, itemsize: int) -> float:
    """Keys and values of all blocks, where answers are written."""
    return 2 * itemsize * tokens * shape.keys * shape.layers
