"""The bank: nested factors of every matrix of a model, in memory and on disk.

The best rank-r factors are the first r columns, so every genome is a slice of one bank. Each pair
is cut at the break-even rank: the bank weighs what the dense weights weigh.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from sieve.artifacts import fingerprint, written_beside
from sieve.genome import Genome, Sizing, get_storage, in_use, kept_fraction, kept_parameters
from sieve.matrices import Matrix, find_matrices, siblings
from sieve.moments import Moment, MomentSource
from sieve.progress import track
from sieve.projections import Factors, get_projection
from sieve.projections.joint import stacked
from sieve.sharding import whole_weight

FORMAT = 2
INDEX_BYTES = torch.int32.itemsize


@dataclass(frozen=True)
class BankFactors(Factors):
    """Factors as a bank stores them: u, v in the storage dtype, the rest in float32."""

    def to(self, device: torch.device, dtype: torch.dtype) -> "BankFactors":
        """The factors on a device and in the dtype a model computes in."""
        offset = None if self.offset is None else self.offset.to(device, dtype)
        return BankFactors(
            self.u.to(device, dtype), self.v.to(device, dtype),
            self.energy, self.mean.to(device, dtype), offset,
        )  # fmt: skip


@dataclass(frozen=True)
class Bank:
    """Factors of every prunable matrix, how they are sized, and the key that genomes name."""

    factors: dict[str, BankFactors]
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
            cut = held.cut(min(rank, held.rank))
            factors[name] = BankFactors(cut.u, cut.v, cut.energy, cut.mean, cut.offset)
        return replace(self, factors=factors)

    def save(self, path: Path) -> None:
        """Write one safetensors file, whole or not at all."""
        tensors: dict[str, Tensor] = {}
        for name, factors in self.factors.items():
            for part in ("u", "v", "energy", "mean", "offset"):
                tensor = getattr(factors, part)
                if tensor is not None:
                    tensors[f"{name}|{part}"] = tensor.cpu().contiguous()
        header = {
            "format": FORMAT,
            "matrices": [asdict(matrix) for matrix in self.genes],
            "sizing": asdict(self.sizing),
            "projection": self.projection,
            "dtype": str(self.dtype).removeprefix("torch."),
            "fingerprint": self.fingerprint,
        }
        with written_beside(path) as partial:
            save_file(tensors, partial, metadata={"sieve_bank": json.dumps(header)})

    @classmethod
    def load(cls, path: Path) -> "Bank":
        """Read what `save` wrote; ValueError when the file is damaged or something else."""
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {}).get("sieve_bank", "null"))
                if not header or header["format"] != FORMAT:
                    raise ValueError(f"{path} holds no bank; delete it and run again.")
                held = {key: file.get_tensor(key) for key in file.keys()}
                genes = [
                    Matrix(**entry | {"members": tuple(entry["members"])})
                    for entry in header["matrices"]
                ]
                factors = {
                    m.name: BankFactors(
                        held[f"{m.name}|u"],
                        held[f"{m.name}|v"],
                        held[f"{m.name}|energy"],
                        held[f"{m.name}|mean"],
                        held.get(f"{m.name}|offset"),
                    )
                    for m in genes
                }
                matrices, groups = (
                    [m for m in genes if bool(m.members) == k] for k in (False, True)
                )
                return cls(
                    factors, matrices, Sizing(**header["sizing"]), header["projection"],
                    getattr(torch, header["dtype"]), header["fingerprint"], groups,
                )  # fmt: skip
        except (SafetensorError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is damaged ({error}); delete it and run again.") from error


@torch.no_grad()
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
    Raises ValueError
    for an unknown projection or storage, moments of another model, or numbers that are not finite.
    """
    project = get_projection(projection, damping)
    if project.learned:
        raise ValueError(
            f"{projection} has no closed form; see `learn` and `learned_bank` of sieve.learning."
        )
    get_storage(storage)
    dtype = dtype or model.dtype
    matrices = find_matrices(model, prune_head)
    # Solved where the model stands, unless that has no float64; the bank stays on the CPU.
    device = model.device if model.device.type == "cuda" else torch.device("cpu")
    sizing = Sizing(storage, rank_multiple, fits_bias=False)
    factors = {}
    groups = siblings([m for m in matrices if m.layer is not None]) if joint else []
    for matrix in track([*matrices, *groups], "Fitting"):
        try:
            weight, moment = _given(model, moments, matrix, matrices)
            _check_finite(weight, moment)
            solved = project(weight.to(device), moment.to(device))
        except ValueError as error:
            raise ValueError(f"{matrix.name}: {error}") from error
        factors[matrix.name] = stored(solved.cut(sizing.top_rank(matrix)), dtype, matrix.name)
        sizing = replace(sizing, fits_bias=solved.fits_bias)
    if key is None:
        digests = {name: _digest(stored) for name, stored in factors.items()}
        key = fingerprint(moments.fingerprint, digests, projection, storage, rank_multiple)
    return Bank(factors, matrices, sizing, projection, dtype, key, groups)


def _given(
    model: PreTrainedModel, moments: MomentSource, matrix: Matrix, matrices: list[Matrix]
) -> tuple[Tensor, Moment]:
    """Weight and moment of a matrix, or of a group as one."""
    if not matrix.members:
        return whole_weight(model.get_submodule(matrix.name)), moments.of(matrix)
    members = [m for m in matrices if m.name in matrix.members]
    weights = [whole_weight(model.get_submodule(m.name)) for m in members]
    return stacked(weights, [moments.of(m) for m in members])


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
    """Factors rounded for storage; ValueError when a number does not fit the dtype."""
    offset = None if factors.offset is None else factors.offset.float().cpu()
    stored = BankFactors(
        factors.u.to("cpu", dtype), factors.v.to("cpu", dtype), factors.energy.float().cpu(),
        factors.mean.to("cpu", dtype).float(), offset,
    )  # fmt: skip
    if not all(torch.isfinite(part).all() for part in (stored.u, stored.v, stored.mean)):
        raise ValueError(f"{name}: factors do not fit {dtype}; set projection.dtype=float32.")
    return stored
