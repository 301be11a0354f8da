"""Genomes: a level per matrix, its rank, and what that costs. Pure functions of integers.

A level is the fraction of a matrix's weights that stays, on a grid; 1 is the dense matrix itself
and 0 its mean output alone. A genome belongs to one bank and says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sieve.model.matrices import Matrix
from sieve.runtime.artifacts import read_json, write_json_atomic

FORMAT = 1


class PlainStorage:
    """Two plain matrices, (d_out, r) and (r, d_in)."""

    name = "plain"

    def cost(self, d_out: int, d_in: int, rank: int) -> int:
        """Numbers stored at a rank."""
        return rank * (d_out + d_in)

    def largest_rank(self, d_out: int, d_in: int, budget: float) -> int:
        """The largest rank that costs at most `budget` numbers."""
        return max(0, int(budget // (d_out + d_in)))


class PivotedStorage(PlainStorage):
    """r rows of the product itself, (r, d_in), and the others as their mixture (d_out − r, r).

    These are the degrees of freedom of a rank-r matrix (PIFA, arXiv:2501.19090). The order of the
    rows is an integer per output, counted in bytes but not as a parameter.
    """

    name = "pivoted"

    def cost(self, d_out: int, d_in: int, rank: int) -> int:
        """Numbers stored at a rank."""
        return rank * (d_out + d_in - rank)

    def largest_rank(self, d_out: int, d_in: int, budget: float) -> int:
        """The largest rank, at most full, that costs at most `budget` numbers."""
        low, high = 0, min(d_out, d_in)  # The cost rises all the way to full rank.
        while low < high:
            middle = (low + high + 1) // 2
            if self.cost(d_out, d_in, middle) <= budget:
                low = middle
            else:
                high = middle - 1
        return low


STORAGES = {storage.name: storage for storage in (PlainStorage(), PivotedStorage())}


def get_storage(name: str) -> PlainStorage:
    """Look a storage form up by name; ValueError lists the known ones."""
    if name not in STORAGES:
        raise ValueError(f"got storage {name!r}, expected one of {', '.join(STORAGES)}.")
    return STORAGES[name]


COARSE = 8  # steps that a rank has at least


@dataclass(frozen=True)
class Sizing:
    """How levels become ranks and ranks become numbers, the same for a whole bank.

    rank_multiple: ranks are rounded down to its multiples, as matrix units like 8 or 16 want them;
    below eight times it to those of its half, and so on, so that no rank loses more than an eighth;
    fits_bias: every factorized matrix carries a bias, which counts where the dense one had none.
    """

    storage: str = "plain"
    rank_multiple: int = 1
    fits_bias: bool = False

    def rank(self, matrix: Matrix, level: float) -> int | None:
        """Largest rank within `level` of the dense size; None is the dense matrix (level 1)."""
        if level >= 1:
            return None
        # A level may be the fraction of a certain rank: rounding must not lose that rank.
        budget = level * matrix.size * (1 + 1e-12)
        budget -= self._bias_cost(matrix) if self.fits_bias else 0
        rank = get_storage(self.storage).largest_rank(matrix.d_out, matrix.d_in, budget)
        return self.rounded(min(rank, self.top_rank(matrix)))

    def step(self, rank: int) -> int:
        """What a rank has to be a multiple of."""
        step = self.rank_multiple
        while step > 1 and rank < COARSE * step:
            step //= 2
        return step

    def rounded(self, rank: int) -> int:
        """The largest rank allowed that is no larger than one."""
        return rank - rank % self.step(rank)

    def top_rank(self, matrix: Matrix) -> int:
        """Break-even: the largest rank that costs no more than the dense matrix."""
        storage = get_storage(self.storage)
        largest = storage.largest_rank(matrix.d_out, matrix.d_in, matrix.size)
        return min(largest, matrix.d_out, matrix.d_in)

    def level(self, matrix: Matrix, rank: int | None) -> float:
        """The level that `rank` turns into this very rank."""
        if rank is None:
            return 1.0
        return self.kept(matrix, rank) / matrix.size if rank else 0.0

    def kept(self, matrix: Matrix, rank: int | None) -> int:
        """Numbers stored for a matrix at a rank, new biases counted."""
        if rank is None:
            return matrix.size
        bias = self._bias_cost(matrix) if self.fits_bias or rank == 0 else 0
        return get_storage(self.storage).cost(matrix.d_out, matrix.d_in, rank) + bias

    @staticmethod
    def _bias_cost(matrix: Matrix) -> int:
        return 0 if matrix.has_bias else matrix.d_out


@dataclass(frozen=True)
class Genome:
    """One level index per matrix: `grid[indexes[i]]` is the level of matrix `names[i]`.

    `bank` is the fingerprint of the bank whose factors the levels speak of.
    """

    grid: tuple[float, ...]
    indexes: tuple[int, ...]
    names: tuple[str, ...]
    bank: str

    @property
    def levels(self) -> dict[str, float]:
        """Level of every matrix by name."""
        return {n: self.grid[i] for n, i in zip(self.names, self.indexes, strict=True)}

    def save(self, path: Path, **extra: Any) -> None:
        """Write readable JSON, whole or not at all; `extra` stands beside the levels."""
        body = {"format": FORMAT, "bank": self.bank, "grid": list(self.grid), "levels": self.levels}
        write_json_atomic(path, body | extra)

    @classmethod
    def load(cls, path: Path) -> "Genome":
        """Read what `save` wrote; ValueError when it is no genome or a level is off its grid."""
        body = read_json(path)
        if not isinstance(body, dict) or body.get("format") != FORMAT or "levels" not in body:
            raise ValueError(f"{path} is no genome of this version of Sieve; search again.")
        grid = tuple(float(level) for level in body["grid"])
        position = {level: i for i, level in enumerate(grid)}
        stray = {n: lv for n, lv in body["levels"].items() if float(lv) not in position}
        if stray:
            raise ValueError(f"{path}: levels {stray} are not on its grid {list(grid)}.")
        indexes = tuple(position[float(level)] for level in body["levels"].values())
        return cls(grid, indexes, tuple(body["levels"]), body["bank"])

    def check_bank(self, bank: str, names: tuple[str, ...]) -> None:
        """ValueError unless the genome was made for the bank with this fingerprint and names."""
        if self.bank != bank or self.names != names:
            raise ValueError(
                f"the genome belongs to bank {self.bank!r} ({len(self.names)} matrices), got bank "
                f"{bank!r} ({len(names)} matrices); search again on this bank."
            )


def in_use(
    genome: Genome, matrices: list[Matrix], sizing: Sizing, groups: Sequence[Matrix] = ()
) -> dict[Matrix, int | None]:
    """What makes up the model of a genome, with its rank; None is the dense matrix.

    groups: siblings that may share one V. A group with a rank stands for its members, whose own
    levels have no say; one at level 1 leaves them to themselves.
    """
    levels = genome.levels
    ranks = {m: sizing.rank(m, levels[m.name]) for m in (*matrices, *groups)}
    joint = [group for group in groups if ranks[group] is not None]
    covered = {name for group in joint for name in group.members}
    return {m: ranks[m] for m in (*(m for m in matrices if m.name not in covered), *joint)}


def kept_parameters(
    genome: Genome, matrices: list[Matrix], sizing: Sizing, groups: Sequence[Matrix] = ()
) -> int:
    """Numbers stored for all prunable matrices under a genome."""
    used = in_use(genome, matrices, sizing, groups)
    return sum(sizing.kept(matrix, rank) for matrix, rank in used.items())


def kept_fraction(
    genome: Genome, matrices: list[Matrix], sizing: Sizing, groups: Sequence[Matrix] = ()
) -> float:
    """Kept fraction of the prunable parameters, 1 for the dense model."""
    size = sum(matrix.size for matrix in matrices)
    return kept_parameters(genome, matrices, sizing, groups) / size
