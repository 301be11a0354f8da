"""Genomes: a level per matrix, its rank and its cost. Pure functions of integers.

A level is the kept fraction of a matrix's parameters, on a grid; 1 is the dense matrix itself and 0
its mean output alone. A genome names the bank it belongs to.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sieve.model.matrices import Matrix
from sieve.runtime.artifacts import read_json, write_json_atomic

FORMAT = 1


class PlainStorage:
    """Two plain matrices, (d_out, r) and (r, d_in)."""

    name = "plain"

    def cost(self, d_out: int, d_in: int, rank: int) -> int:
        """Numbers to store at a rank."""
        return rank * (d_out + d_in)

    def largest_rank(self, d_out: int, d_in: int, budget: float) -> int:
        """The largest rank that costs at most `budget` numbers."""
        return max(0, int(budget // (d_out + d_in)))


class PivotedStorage(PlainStorage):
    """r rows of the product, (r, d_in), and the coefficients (d_out − r, r) of all other rows.

    These are the degrees of freedom of a rank-r matrix (PIFA, arXiv:2501.19090). The order of the
    rows, an integer per output, counts in bytes but not as a parameter.
    """

    name = "pivoted"

    def cost(self, d_out: int, d_in: int, rank: int) -> int:
        """Numbers to store at a rank."""
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


class NeuronStorage(PlainStorage):
    """The columns of w neurons, (d_out, w), of a matrix of `narrowed`."""

    name = "neurons"

    def cost(self, d_out: int, d_in: int, rank: int) -> int:
        """Numbers to store for `rank` neurons."""
        return rank * d_out

    def largest_rank(self, d_out: int, d_in: int, budget: float) -> int:
        """The most neurons, at least one and at most all but one, that `budget` numbers hold.

        An MLP without neurons is a unit that was removed, not a narrow one.
        """
        return max(1, min(int(budget // d_out), d_in - 1))


NEURONS = NeuronStorage()
STORAGES = {storage.name: storage for storage in (PlainStorage(), PivotedStorage())}


def get_storage(name: str) -> PlainStorage:
    """Look up a storage form by name; ValueError lists the names."""
    if name not in STORAGES:
        raise ValueError(f"got storage {name!r}, expected one of {', '.join(STORAGES)}.")
    return STORAGES[name]


STEPS = 8  # the smallest rank in units of its step
# Of the neurons of a large MLP: formats of 8 bits and fewer store blocks of 32 numbers.
NEURON_STEP = 32


@dataclass(frozen=True)
class Sizing:
    """How levels become ranks and ranks become numbers, the same for a whole bank.

    Args:
        rank_multiple: round ranks down to multiples of it: matrix units compute multiples of 8 or
            16 fastest. A rank below eight multiples is rounded to a half, a quarter ... of it, so
            that no rank loses more than an eighth.
        fits_bias: every factorized matrix has a bias, which counts where the dense one had none.
    """

    storage: str = "plain"
    rank_multiple: int = 1
    fits_bias: bool = False

    def rank(self, matrix: Matrix, level: float) -> int | None:
        """Largest rank within `level` of the dense size; None is the dense matrix (level 1)."""
        if level >= 1:
            return None
        # The level of a rank must give that rank again, in spite of rounding.
        budget = level * matrix.size * (1 + 1e-12)
        budget -= self._bias_cost(matrix) if self.fits_bias else 0
        rank = self._storage(matrix).largest_rank(matrix.d_out, matrix.d_in, budget)
        rounded = self.rounded(min(rank, self.top_rank(matrix)), matrix)
        return max(rounded, self.step(1, matrix)) if matrix.neurons else rounded

    def _storage(self, matrix: Matrix) -> PlainStorage:
        return NEURONS if matrix.neurons else get_storage(self.storage)

    def step(self, rank: int, matrix: Matrix | None = None) -> int:
        """The number that a rank is rounded down to a multiple of."""
        step = self.rank_multiple
        if matrix is not None and matrix.neurons and matrix.d_in >= STEPS * NEURON_STEP:
            return NEURON_STEP
        while step > 1 and rank < STEPS * step:
            step //= 2
        return step

    def rounded(self, rank: int, matrix: Matrix | None = None) -> int:
        """The largest allowed rank up to `rank`."""
        return rank - rank % self.step(rank, matrix)

    def top_rank(self, matrix: Matrix) -> int:
        """Break-even: the largest rank that costs no more than the dense matrix."""
        storage = self._storage(matrix)
        largest = storage.largest_rank(matrix.d_out, matrix.d_in, matrix.size)
        return largest if storage is NEURONS else min(largest, matrix.d_out, matrix.d_in)

    def level(self, matrix: Matrix, rank: int | None) -> float:
        """The level that gives `rank`."""
        if rank is None:
            return 1.0
        return self.kept(matrix, rank) / matrix.size if rank else 0.0

    def kept(self, matrix: Matrix, rank: int | None) -> int:
        """Numbers to store for a matrix at a rank, including new biases."""
        if rank is None:
            return matrix.size
        bias = self._bias_cost(matrix) if self.fits_bias or rank == 0 else 0
        return self._storage(matrix).cost(matrix.d_out, matrix.d_in, rank) + bias

    @staticmethod
    def _bias_cost(matrix: Matrix) -> int:
        return 0 if matrix.has_bias else matrix.outputs


@dataclass(frozen=True)
class Genome:
    """One level index per matrix: `grid[indexes[i]]` is the level of matrix `names[i]`.

    `bank` is the fingerprint of the bank that it belongs to.
    """

    grid: tuple[float, ...]
    indexes: tuple[int, ...]
    names: tuple[str, ...]
    bank: str

    @property
    def levels(self) -> dict[str, float]:
        """Level of every matrix by name."""
        return {n: self.grid[i] for n, i in zip(self.names, self.indexes, strict=True)}

    def save(self, path: Path, **extra: object) -> None:
        """Write readable JSON, whole or not at all; `extra` are more keys beside the levels."""
        body = {"format": FORMAT, "bank": self.bank, "grid": list(self.grid), "levels": self.levels}
        write_json_atomic(path, body | extra)

    @classmethod
    def load(cls, path: Path) -> "Genome":
        """Read a file of `save`; ValueError when it is not a genome or a level is off its grid."""
        body = read_json(path)
        if not isinstance(body, dict) or body.get("format") != FORMAT or "levels" not in body:
            raise ValueError(f"{path} is not a genome of this version of Sieve; search again.")
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


def ranks_of(
    genome: Genome, matrices: Sequence[Matrix], sizing: Sizing, groups: Sequence[Matrix] = ()
) -> dict[str, int | None]:
    """Rank of every matrix and group; see `in_use`. A matrix that is not needed has rank 0.

    A group is None where its members share no factor, or lose no neurons. Members that lose
    neurons are dense otherwise.
    """
    levels = genome.levels
    ranks = {m.name: sizing.rank(m, levels[m.name]) for m in (*matrices, *groups)}
    narrow = {n for g in groups if g.neurons and ranks[g.name] is not None for n in g.members}
    ranks |= dict.fromkeys(narrow)
    ranks |= {g.name: None for g in groups if not (g.neurons or narrow.isdisjoint(g.members))}
    idle = unneeded(ranks, matrices, groups)
    groups_off = {g.name: None for g in groups if idle.issuperset(g.members)}
    return ranks | dict.fromkeys(idle, 0) | groups_off


def unneeded(
    ranks: Mapping[str, int | None], matrices: Sequence[Matrix], groups: Sequence[Matrix] = ()
) -> set[str]:
    """The matrices that feed only a matrix of rank 0, so that their outputs do not count."""
    shared = {n: rank for g in groups if (rank := ranks[g.name]) is not None for n in g.members}
    removed = {m.name for m in matrices if shared.get(m.name, ranks[m.name]) == 0}
    return {matrix.name for matrix in matrices if matrix.feeds in removed}


def in_use(
    genome: Genome, matrices: list[Matrix], sizing: Sizing, groups: Sequence[Matrix] = ()
) -> dict[Matrix, int | None]:
    """The matrices and groups in the model of a genome with their ranks; None is the dense matrix.

    Matrices that feed only a matrix of rank 0 are not in use.

    Args:
        groups: siblings that may share one V. A group with a rank replaces its members, whatever
            their levels; a group at level 1 is not in use.
    """
    ranks = ranks_of(genome, matrices, sizing, groups)
    joint = [group for group in groups if ranks[group.name] is not None]
    covered = {name for group in joint for name in group.members}
    covered |= unneeded(ranks, matrices, groups)
    return {m: ranks[m.name] for m in (*(m for m in matrices if m.name not in covered), *joint)}


def kept_parameters(
    genome: Genome, matrices: list[Matrix], sizing: Sizing, groups: Sequence[Matrix] = ()
) -> int:
    """Numbers to store for all prunable matrices under a genome."""
    used = in_use(genome, matrices, sizing, groups)
    return sum(sizing.kept(matrix, rank) for matrix, rank in used.items())


def kept_fraction(
    genome: Genome, matrices: list[Matrix], sizing: Sizing, groups: Sequence[Matrix] = ()
) -> float:
    """Kept fraction of the prunable parameters, 1 for the dense model."""
    size = sum(matrix.size for matrix in matrices)
    return kept_parameters(genome, matrices, sizing, groups) / size
