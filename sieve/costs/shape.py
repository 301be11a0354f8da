"""A model in numbers: its matrices, and the widths that passes through it depend on."""

from dataclasses import dataclass
from functools import cached_property

from sieve.bank.genome import Sizing
from sieve.model.matrices import Matrix, siblings

FLOAT32, FLOAT64 = 4, 8  # bytes


@dataclass(frozen=True)
class Shape:
    """What of a model its costs depend on.

    matrices: the prunable ones, the output head among them where it is pruned; beside: weights of
    other layers that every token passes, such as routers; parameters: of the whole model, shared
    ones once; queries, keys: numbers per token of the attention's queries and of its keys, over all
    heads; routed: the share of tokens that an expert sees; head: whether logits are of tokens.
    """

    matrices: tuple[Matrix, ...]
    parameters: int
    layers: int
    hidden: int
    vocabulary: int
    queries: int
    keys: int
    beside: int = 0
    routed: float = 1.0

    @cached_property
    def blocks(self) -> tuple[Matrix, ...]:
        """The prunable matrices but the head."""
        return tuple(matrix for matrix in self.matrices if matrix.layer is not None)

    @property
    def prunable(self) -> int:
        """Weights of the prunable matrices."""
        return sum(matrix.size for matrix in self.matrices)

    @property
    def block_size(self) -> float:
        """Prunable weights of a block."""
        return sum(matrix.size for matrix in self.blocks) / self.layers

    def share(self, matrix: Matrix) -> float:
        """The share of all tokens that a matrix sees, if it is not the head."""
        return self.routed if matrix.expert else 1.0

    @cached_property
    def per_token(self) -> float:
        """Weights of the prunable matrices that a token passes, the head left out."""
        return sum(matrix.size * self.share(matrix) for matrix in self.blocks)

    @cached_property
    def inner(self) -> float:
        """The widest activation within a block: of the MLP, as a rule."""
        return max(max(m.d_out, m.d_in) for m in self.blocks)

    @cached_property
    def held_per_token(self) -> float:
        """Numbers per token and block that a pass holds for its way back, beside the norms'.

        Inputs of the matrices, once each; outputs, but those that are added to the residual stream;
        the activation function's own; keys and values repeated for every query's head.
        """
        inputs = {m.source: m.d_in * self.share(m) for m in self.blocks}
        outputs = sum(m.d_out * self.share(m) for m in self.blocks if not writes(m))
        middle = sum(m.d_in * self.share(m) for m in self.blocks if m.kind.endswith("down"))
        repeated = 2 * (self.queries - self.keys)
        return (sum(inputs.values()) + outputs + middle) / self.layers + repeated


def writes(matrix: Matrix) -> bool:
    """Whether a kind of matrix writes to the residual stream."""
    return matrix.kind.removeprefix("expert_") in ("o", "down")


@dataclass(frozen=True)
class BankBytes:
    """Bytes of a bank: factors in the dtype they are stored in, and the rest in float32."""

    numbers: int  # of all factors
    rest: int
    shared: int = 0  # numbers of those that siblings may share

    def total(self, itemsize: int) -> int:
        """In memory and on disk."""
        return self.numbers * itemsize + self.rest


def bank_bytes(
    shape: Shape, sizing: Sizing, projection: str, fits_bias: bool, joint: bool
) -> BankBytes:
    """What a `Bank` weighs, whose factors are cut at each matrix's break-even rank."""
    groups = siblings(list(shape.blocks)) if joint else []
    numbers = rest = 0
    for matrix in (*shape.matrices, *groups):
        rank = sizing.top_rank(matrix)
        energies = matrix.d_in if projection == "input_pca" else min(matrix.d_out, matrix.d_in)
        numbers += rank * (matrix.d_out + matrix.d_in)
        rest += FLOAT32 * (energies + matrix.d_out + (rank if fits_bias else 0))
    shared = sum(sizing.top_rank(group) * (group.d_out + group.d_in) for group in groups)
    return BankBytes(numbers, rest, shared)
