"""The bank: nested factors of every matrix of a model, in memory and on disk.

The best rank-r factors are the first r columns, so every genome is a slice of one bank. Each pair
is cut at the break-even rank: the bank weighs what the dense weights weigh.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sieve.bank.files import FORMAT, BankFactors, header_of, read_bank, write_bank, write_index
from sieve.bank.genome import Genome, Sizing, get_storage, in_use, kept_fraction, kept_parameters
from sieve.distributed.sharding import is_sharded, whole_weight
from sieve.model.matrices import Matrix, block_of, find_matrices, siblings
from sieve.projections import Factors, get_projection
from sieve.projections.joint import stacked
from sieve.projections.moments import Moment, MomentSource
from sieve.runtime.artifacts import fingerprint
from sieve.runtime.memory import lean
from sieve.runtime.progress import track

__all__ = ["FORMAT", "Bank", "BankFactors", "Solver", "fit", "fit_blocks", "stored"]
INDEX_BYTES = torch.int32.itemsize


@dataclass(frozen=True)
class Bank:
    """Factors of every prunable matrix, how they are sized, and the key that genomes name."""

    factors: Mapping[str, BankFactors]
    matrices: list[Matrix]
    sizing: Sizing
    projection: str
    dtype: torch.dtype
    fingerprint: str
    groups: list[Matrix] = field(default_factory=list)  # siblings that may share one V

    @property
    def genes(self) -> list[Matrix]:
        """What has a level in a genome, in order: the matrices, then the groups of siblings."""
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
        """Rank of every matrix and group under a genome; None is the dense matrix.

        None is a group whose members go their own ways; the members of another have no say.
        """
        levels = genome.levels
        return {m.name: self.sizing.rank(m, levels[m.name]) for m in self.genes}

    def in_use(self, genome: Genome) -> dict[Matrix, int | None]:
        """What makes up the model of a genome, with its rank: groups in place of their members."""
        return in_use(genome, self.matrices, self.sizing, self.groups)

    def kept_parameters(self, genome: Genome) -> int:
        """Numbers stored for the prunable matrices under a genome."""
        return kept_parameters(genome, self.matrices, self.sizing, self.groups)

    def kept_fraction(self, genome: Genome) -> float:
        """Kept fraction of the prunable parameters under a genome."""
        return kept_fraction(genome, self.matrices, self.sizing, self.groups)

    def index_bytes(self, genome: Genome) -> int:
        """Bytes of the rows' order under a genome, which pivoted matrices store beside numbers."""
        if self.sizing.storage != "pivoted":
            return 0
        return sum(INDEX_BYTES * m.d_out for m, rank in self.in_use(genome).items() if rank)

    def only(self, genome: Genome) -> "Bank":
        """The bank with no more directions than a genome's ranks take."""
        ranks = {matrix.name: rank for matrix, rank in self.in_use(genome).items()}
        factors = {}
        for name, held in self.factors.items():
            rank = ranks.get(name) or 0
            factors[name] = held.cut(min(rank, held.rank))
        return replace(self, factors=factors)

    def save(self, path: Path) -> None:
        """Write one safetensors file, whole or not at all."""
        header = header_of(self.genes, self.sizing, self.projection, self.dtype, self.fingerprint)
        write_bank(path, self.factors, header)

    @classmethod
    def load(cls, path: Path) -> "Bank":
        """Open what `save` or `fit_blocks` wrote; numbers are read once they are used.

        Raises ValueError when a file is damaged or something else.
        """
        header, genes, factors = read_bank(Path(path))
        matrices, groups = ([m for m in genes if bool(m.members) == k] for k in (False, True))
        try:
            sizing, dtype = Sizing(**header["sizing"]), getattr(torch, header["dtype"])
        except (TypeError, AttributeError) as error:
            raise ValueError(f"{path} is damaged ({error}); delete it and run again.") from error
        return cls(
            factors, matrices, sizing, header["projection"], dtype, header["fingerprint"], groups
        )


@dataclass(frozen=True)
class Solver:
    """Solves matrices of `model` for every rank at once, in closed form; see `fit` for the options.

    device: where, by default the model's; known: its matrices, by default found by a pass.
    Raises ValueError for an unknown projection or storage, or one that has no closed form.
    """

    model: PreTrainedModel
    moments: MomentSource
    projection: str = "output"
    storage: str = "plain"
    rank_multiple: int = 1
    dtype: torch.dtype | None = None
    damping: float | None = None
    prune_head: bool = False
    joint: bool = False
    device: torch.device | None = None
    known: Sequence[Matrix] | None = None

    def __post_init__(self) -> None:
        if get_projection(self.projection).learned:
            raise ValueError(
                f"{self.projection} has no closed form; see `learn` and `learned_bank` of "
                "sieve.bank.learned."
            )
        get_storage(self.storage)

    @cached_property
    def matrices(self) -> list[Matrix]:
        """The prunable matrices of the model."""
        return list(self.known or find_matrices(self.model, self.prune_head))

    @cached_property
    def groups(self) -> list[Matrix]:
        """Siblings that may share one V."""
        return siblings([m for m in self.matrices if m.layer is not None]) if self.joint else []

    @property
    def sizing(self) -> Sizing:
        """How ranks are counted, whatever the projection."""
        return Sizing(self.storage, self.rank_multiple, fits_bias=False)

    @property
    def stored_dtype(self) -> torch.dtype:
        """What factors are rounded to."""
        return self.dtype or self.model.dtype

    @torch.no_grad()
    def solve(self, gene: Matrix, weights: list[Tensor] | None = None) -> BankFactors:
        """Factors of a matrix or a group, on the CPU.

        weights: of it, where they are at hand; else ranks that share them must all ask for them.
        """
        # Solved where the model stands, unless that has no float64.
        place = self.device or self.model.device
        device = place if place.type == "cuda" else torch.device("cpu")
        try:
            weight, moment = self._given(gene, weights or self.weights(gene))
            _check_finite(weight, moment)
            project = get_projection(self.projection, self.damping)
            rank = self.sizing.top_rank(gene)
            solved = project(weight.to(device), moment.to(device), rank)
        except ValueError as error:
            raise ValueError(f"{gene.name}: {error}") from error
        return stored(solved, self.stored_dtype, gene.name)

    @property
    def shared(self) -> bool:
        """Whether the weights are shared out over ranks, which must ask for them together."""
        return is_sharded(self.model)

    def _members(self, gene: Matrix) -> list[Matrix]:
        return [m for m in self.matrices if m.name in gene.members] or [gene]

    def weights(self, gene: Matrix) -> list[Tensor]:
        """The weight of a matrix, or those of a group; ranks that share them all have to ask."""
        return [whole_weight(self.model.get_submodule(m.name)) for m in self._members(gene)]

    def _given(self, gene: Matrix, weights: list[Tensor]) -> tuple[Tensor, Moment]:
        """Weight and moment of a matrix, or of a group as one."""
        moments = [self.moments.of(m) for m in self._members(gene)]
        return stacked(weights, moments) if gene.members else (weights[0], moments[0])


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
) -> Bank:
    """Solve every matrix of `model` for every rank at once, in closed form.

    dtype: what the factors are rounded to and stored in, by default the model's own. key: the
    bank's fingerprint; by default derived from the factors and these settings. moments: in memory,
    or `StoredMoments`, of which one matrix's are read at a time. prune_head: the output head too,
    which the moments must hold. joint: groups of siblings too, which needs moments of the inputs.
    Raises ValueError for an unknown projection or storage, moments of another model, or numbers
    that are not finite.
    """
    solver = Solver(
        model, moments, projection, storage, rank_multiple, dtype, damping, prune_head, joint
    )
    factors = {}
    for gene in track([*solver.matrices, *solver.groups], "Fitting"):
        factors[gene.name] = solver.solve(gene)
    if key is None:
        digests = {name: _digest(stored) for name, stored in factors.items()}
        key = fingerprint(moments.fingerprint, digests, projection, storage, rank_multiple)
    return Bank(
        factors, solver.matrices, sizing_of(solver, factors), projection, solver.stored_dtype,
        key, solver.groups,
    )  # fmt: skip


def sizing_of(solver: Solver, factors: Mapping[str, BankFactors]) -> Sizing:
    """How the ranks of factors are counted, biases that they carry included."""
    return replace(solver.sizing, fits_bias=any(one.fits_bias for one in factors.values()))


def fit_blocks(
    solver: Solver,
    folder: Path,
    key: str,
    blocks: Sequence[str],
    rank: int = 0,
    world_size: int = 1,
    loaded: Callable[[str], AbstractContextManager[Any]] = nullcontext,
) -> None:
    """Solve blocks (`unfinished`) one after another, and write a file for each.

    The weights of one matrix are in memory at a time. Blocks are dealt to the ranks, which put each
    other's together first where they share out the model. `finish` makes the folder a bank, once
    all ranks are done.
    loaded: brings the weights of a matrix, by its name, for as long as it is entered. Errors as
    `fit`.
    """
    for start in track(range(0, len(blocks), world_size), "Fitting"):
        dealt = blocks[start : start + world_size]
        own = dealt[rank] if rank < len(dealt) else None
        held = _put_together(solver, dealt, own) if solver.shared else {}
        if own is None:
            continue
        genes = blocks_of_genes(solver)[own]
        factors = {}
        with lean():
            for gene in genes:
                with ExitStack() as stack:
                    for name in gene.members or (gene.name,):
                        stack.enter_context(loaded(name))
                    factors[gene.name] = solver.solve(gene, held.get(gene.name))
        sizing = sizing_of(solver, factors)
        header = header_of(genes, sizing, solver.projection, solver.stored_dtype, key)
        write_bank(_file_of(folder, own), factors, header)


def _put_together(
    solver: Solver, blocks: Sequence[str], own: str | None
) -> dict[str, list[Tensor]]:
    """The weights of this rank's block, by matrix and group; all ranks go through all blocks."""
    held = {}
    for path in blocks:
        for gene in blocks_of_genes(solver)[path]:
            weights = solver.weights(gene)
            if path == own:
                held[gene.name] = weights
    return held


def unfinished(solver: Solver, folder: Path) -> list[str]:
    """Module paths of the blocks that have no file yet; what a killed run has finished is kept."""
    return [path for path in blocks_of_genes(solver) if not _file_of(folder, path).is_file()]


def finish(solver: Solver, folder: Path) -> None:
    """Write the index of a folder that has the files of all blocks."""
    files = [_file_of(folder, path).name for path in blocks_of_genes(solver)]
    write_index(folder, files, [*solver.matrices, *solver.groups])


def _file_of(folder: Path, block: str) -> Path:
    return folder / f"{block}.safetensors"


def blocks_of_genes(solver: Solver) -> dict[str, list[Matrix]]:
    """Matrices and groups by the module path of their block; that of the head is its own."""
    blocks: dict[str, list[Matrix]] = {}
    for gene in [*solver.matrices, *solver.groups]:
        blocks.setdefault(block_of(gene.members[0] if gene.members else gene.name), []).append(gene)
    return blocks


def _check_finite(weight: Tensor, moment: Moment) -> None:
    """ValueError that says what is not finite; some solvers would fail, others say nothing."""
    if not torch.isfinite(weight).all():
        raise ValueError("the weights are not finite; the checkpoint is damaged, get it again.")
    if not all(torch.isfinite(part).all() for part in (moment.second, moment.mean)):
        raise ValueError("the moments are not finite; calibrate again.")


def _digest(factors: BankFactors) -> str:
    """Digest of every number stored for a matrix."""
    digest = hashlib.sha256()
    for part in (factors.u, factors.v, factors.energy, factors.mean, factors.offset):
        if part is not None:
            digest.update(part.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def stored(factors: Factors, dtype: torch.dtype, name: str) -> BankFactors:
    """Factors rounded for storage, on the CPU; ValueError when a number does not fit the dtype."""
    u, v, mean = (part.to(dtype) for part in (factors.u, factors.v, factors.mean))
    if not all(torch.isfinite(part).all() for part in (u, v, mean)):  # Where they were solved.
        raise ValueError(f"{name}: factors do not fit {dtype}; set projection.dtype=float32.")
    offset = None if factors.offset is None else factors.offset.float().cpu()
    energy = factors.energy.float().cpu()
    return BankFactors(u.cpu(), v.cpu(), energy, mean.float().cpu(), offset)
