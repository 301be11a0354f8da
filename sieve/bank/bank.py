"""The bank: nested factors of every matrix of a model, in memory and on disk.

The best factors of rank r are the first r directions, so every genome is a slice of one bank. The
factors of a matrix end at the break-even rank, where they have as many numbers as its weight.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sieve.bank.files import FORMAT, BankFactors, header_of, read_bank, write_bank, write_index
from sieve.bank.genome import (
    Genome,
    Sizing,
    in_use,
    kept_fraction,
    kept_parameters,
    ranks_of,
    unneeded,
)
from sieve.bank.solver import Solver, most_bytes, solving
from sieve.distributed.sharding import is_sharded
from sieve.model.matrices import Matrix, block_of
from sieve.projections.moments import MomentSource
from sieve.runtime.artifacts import fingerprint
from sieve.runtime.memory import lean
from sieve.runtime.progress import track

__all__ = ["FORMAT", "Bank", "BankFactors", "fit", "fit_blocks"]
INDEX_BYTES = torch.int32.itemsize
LARGE = 2**28  # bytes of a matrix's solve; below it, `lean` takes a third of the time


@dataclass(frozen=True)
class Bank:
    """Factors of every prunable matrix, how they are sized, and the key that genomes name."""

    factors: Mapping[str, BankFactors]
    matrices: list[Matrix]
    sizing: Sizing
    projection: str
    dtype: torch.dtype
    fingerprint: str
    groups: list[Matrix] = field(default_factory=list)  # siblings that may share one V, and neurons
    structural: bool = False  # only whole units and neurons are removed: no matrix has a rank

    @property
    def genes(self) -> list[Matrix]:
        """Everything with a level in a genome: the matrices, then the groups of siblings."""
        return [*self.matrices, *self.groups]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of matrices, then of groups, in genome order."""
        return tuple(matrix.name for matrix in self.genes)

    @property
    def size(self) -> int:
        """Number of prunable weights of the dense model."""
        return sum(matrix.size for matrix in self.matrices)

    def ranks(self, genome: Genome) -> dict[str, int | None]:
        """Rank of every matrix and group under a genome.

        None is the dense matrix, or a group whose members do not share. A group with a rank
        overrides the ranks of its members. Matrices that feed only one of rank 0 have rank 0.
        """
        return ranks_of(genome, self.matrices, self.sizing, self.groups)

    def unneeded(self, genome: Genome) -> set[str]:
        """Names of the matrices that feed only a matrix of rank 0."""
        return unneeded(self.ranks(genome), self.matrices, self.groups)

    def in_use(self, genome: Genome) -> dict[Matrix, int | None]:
        """The matrices and groups in the model of a genome, with their ranks."""
        return in_use(genome, self.matrices, self.sizing, self.groups)

    def kept_parameters(self, genome: Genome) -> int:
        """Numbers stored for the prunable matrices under a genome."""
        return kept_parameters(genome, self.matrices, self.sizing, self.groups)

    def kept_fraction(self, genome: Genome) -> float:
        """Kept fraction of the prunable parameters under a genome."""
        return kept_fraction(genome, self.matrices, self.sizing, self.groups)

    def index_bytes(self, genome: Genome) -> int:
        """Bytes of the indices that pivoted matrices store beside their factors."""
        if self.sizing.storage != "pivoted":
            return 0
        used = self.in_use(genome).items()
        return sum(INDEX_BYTES * m.d_out for m, rank in used if rank and not m.neurons)

    def only(self, genome: Genome) -> "Bank":
        """The bank cut to the ranks of a genome."""
        ranks = {matrix.name: rank for matrix, rank in self.in_use(genome).items()}
        factors = {
            name: entry.cut(min(ranks.get(name) or 0, entry.rank))
            for name, entry in self.factors.items()
        }
        return replace(self, factors=factors)

    def save(self, path: Path, drop: bool = False) -> None:
        """Write one safetensors file, whole or not at all.

        drop: drop the pages of mapped files after each tensor; what a training wrote to factors
            that are views of a file would be lost.
        """
        header = header_of(self.genes, self.sizing, self.projection, self.dtype, self.fingerprint)
        write_bank(path, self.factors, header | {"structural": self.structural}, drop)

    @classmethod
    def load(cls, path: Path) -> "Bank":
        """Open a bank of `save` or `fit_blocks`; factors are read from disk at their first use.

        Raises ValueError when a file is damaged or is not a bank.
        """
        header, genes, factors = read_bank(Path(path))
        matrices, groups = ([m for m in genes if bool(m.members) == k] for k in (False, True))
        try:
            sizing, dtype = Sizing(**header["sizing"]), getattr(torch, header["dtype"])
        except (TypeError, AttributeError) as error:
            raise ValueError(f"{path} is damaged ({error}); delete it and run again.") from error
        return cls(
            *(factors, matrices, sizing, header["projection"], dtype, header["fingerprint"]),
            groups=groups,
            structural=header.get("structural", False),
        )


def fit(
    model: PreTrainedModel,
    moments: MomentSource,
    projection: str = "output",
    storage: str = "plain",
    rank_multiple: int = 1,
    dtype: torch.dtype | None = None,
    key: str | None = None,
    damping: float | None = None,
    prune_head: bool = False,
    joint: bool = False,
    prune_embedding: bool = False,
    narrow: bool = False,
) -> Bank:
    """Solve every matrix of `model` for every rank at once, in closed form.

    Raises ValueError for an unknown projection or storage, moments of another model, or numbers
    that are not finite.

    Args:
        moments: in memory, or `StoredMoments`, which reads one matrix at a time.
        dtype: the storage dtype of the factors, by default the model's.
        key: the bank's fingerprint, by default derived from the factors and these settings.
        prune_head: also solve the output head; the moments must include it.
        joint: also solve groups of siblings; this needs moments of the inputs.
        prune_embedding: also solve the input embedding; the moments must include it.
        narrow: also order the neurons of MLPs; this needs moments of the inputs of their writers.
    """
    options = (dtype, damping, prune_head, joint, prune_embedding, narrow)
    solver = Solver(model, moments, projection, storage, rank_multiple, *options)
    blocks, factors = blocks_of_genes(solver), dict[str, BankFactors]()

    def solve(genes: Sequence[Matrix]) -> dict[str, BankFactors]:
        return {gene.name: solver.solve(gene) for gene in genes}

    with solving(solver, blocks) as each:
        for solved in track(each(solve, blocks.values()), "Fitting", len(blocks), "blocks"):
            factors |= solved
    factors = {gene.name: factors[gene.name] for gene in [*solver.matrices, *solver.groups]}
    if key is None:
        digests = {name: stored.digest() for name, stored in factors.items()}
        key = fingerprint(moments.fingerprint, digests, projection, storage, rank_multiple)
    sizing, matrices = sizing_of(solver, factors), solver.matrices
    return Bank(factors, matrices, sizing, projection, solver.stored_dtype, key, solver.groups)


def sizing_of(solver: Solver, factors: Mapping[str, BankFactors]) -> Sizing:
    """How levels become ranks, including the biases of these factors."""
    return replace(solver.sizing, fits_bias=any(one.fits_bias for one in factors.values()))


def fit_blocks(
    solver: Solver,
    folder: Path,
    key: str,
    blocks: Sequence[str],
    rank: int = 0,
    world_size: int = 1,
    loaded: Callable[[str], AbstractContextManager[object]] | None = None,
) -> None:
    """Solve decoder blocks, and write a file for each. Raises as `fit`.

    Call `finish` once all processes are done.

    Args:
        blocks: module paths of the blocks to solve, see `unfinished`.
        rank, world_size: this process solves every `world_size`-th block. Processes of a sharded
            model gather the weights of each other's blocks together.
        loaded: a context that loads the weights of a matrix, by its name: one matrix is in memory
            at a time. None: the model is in memory, and blocks are solved as `solving` says.
    """
    genes_of, load = blocks_of_genes(solver), loaded or (lambda _: nullcontext())

    def write(path: str, weights: Mapping[str, list[Tensor]] | None = None) -> None:
        factors = {}
        for gene in genes_of[path]:
            with ExitStack() as stack:
                for name in gene.members or (gene.name,):
                    stack.enter_context(load(name))
                factors[gene.name] = solver.solve(gene, (weights or {}).get(gene.name))
        sizing = sizing_of(solver, factors)
        header = header_of(genes_of[path], sizing, solver.projection, solver.stored_dtype, key)
        write_bank(_file_of(folder, path), factors, header)

    large = any(most_bytes(gene) > LARGE for genes in genes_of.values() for gene in genes)
    with lean() if large else nullcontext():
        if is_sharded(solver.model):
            for start in track(range(0, len(blocks), world_size), "Fitting", unit="blocks"):
                turn = blocks[start : start + world_size]
                own = turn[rank] if rank < len(turn) else None
                weights = _gathered(solver, turn, own)
                if own is not None:
                    write(own, weights)
            return
        mine = blocks[rank::world_size]
        with solving(solver, genes_of, together=loaded is None) as each:
            for _ in track(each(write, mine), "Fitting", len(mine), "blocks"):
                pass


def _gathered(solver: Solver, blocks: Sequence[str], own: str | None) -> dict[str, list[Tensor]]:
    """The weights of this process's block by matrix and group; all processes gather all blocks."""
    gathered = {}
    for path in blocks:
        for gene in blocks_of_genes(solver)[path]:
            weights = solver.weights(gene)
            if path == own:
                gathered[gene.name] = weights
    return gathered


def unfinished(solver: Solver, folder: Path) -> list[str]:
    """Module paths of the blocks without a file; a killed run leaves the files of whole blocks."""
    return [path for path in blocks_of_genes(solver) if not _file_of(folder, path).is_file()]


def finish(solver: Solver, folder: Path) -> None:
    """Write the index of a folder that has the files of all blocks."""
    files = [_file_of(folder, path).name for path in blocks_of_genes(solver)]
    write_index(folder, files, [*solver.matrices, *solver.groups])


def _file_of(folder: Path, block: str) -> Path:
    return folder / f"{block}.safetensors"


def blocks_of_genes(solver: Solver) -> dict[str, list[Matrix]]:
    """Matrices and groups by the module path of their block; the head is a block of its own."""
    blocks: dict[str, list[Matrix]] = {}
    for gene in [*solver.matrices, *solver.groups]:
        blocks.setdefault(block_of(gene.members[0] if gene.members else gene.name), []).append(gene)
    return blocks
