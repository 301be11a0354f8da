"""Factors of one matrix, or of a group of matrices, from its weights and moments."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sieve.bank.files import BankFactors
from sieve.bank.genome import Sizing, get_storage
from sieve.distributed.sharding import is_sharded, whole_weight
from sieve.model.groups import narrowed, siblings
from sieve.model.matrices import Matrix, find_matrices
from sieve.projections import Factors, get_projection
from sieve.projections.factors import finite
from sieve.projections.joint import stacked
from sieve.projections.linear_algebra import one_thread_each
from sieve.projections.moments import Moment, MomentSource
from sieve.projections.neurons import by_neuron, kept_neurons, neurons, unfolded

CENTERED = ("affine", "loss_aware_affine")  # projections that fit a bias
FLOAT64 = 8  # bytes
NEURON_BYTES = 48  # of float64 matrices (d_ff, d_ff) while neurons are ordered
AT_ONCE = 2**30  # bytes that matrices solved at the same time take together
Blocks = Mapping[str, Sequence[Matrix]]  # matrices and groups by the module path of their block


@dataclass(frozen=True)
class Solver:
    """Solves matrices of `model` for every rank at once, in closed form; see `fit` for the options.

    Raises ValueError for an unknown projection or storage, or a projection without a closed form.

    Args:
        device: where to solve, by default the model's device.
        matrix_list: the prunable matrices, by default the result of `find_matrices`.
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
    prune_embedding: bool = False
    narrow: bool = False
    device: torch.device | None = None
    matrix_list: Sequence[Matrix] | None = None

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
        return list(
            self.matrix_list or find_matrices(self.model, self.prune_head, self.prune_embedding)
        )

    @cached_property
    def groups(self) -> list[Matrix]:
        """Siblings that may share one V, and neurons."""
        joint = siblings([m for m in self.matrices if m.layer is not None]) if self.joint else []
        return joint + (narrowed(self.matrices) if self.narrow else [])

    @property
    def sizing(self) -> Sizing:
        """How levels become ranks, without the biases that a projection may add."""
        return Sizing(self.storage, self.rank_multiple, fits_bias=False)

    @property
    def stored_dtype(self) -> torch.dtype:
        """The dtype that factors are rounded to."""
        return self.dtype or self.model.dtype

    @property
    def runs_on(self) -> torch.device:
        """The device that solves: a GPU of CUDA, or the CPU, as others may have no float64."""
        device = self.device or self.model.device
        return device if device.type == "cuda" else torch.device("cpu")

    @torch.no_grad()
    def solve(self, gene: Matrix, weights: list[Tensor] | None = None) -> BankFactors:
        """Factors of a matrix or a group, on the CPU.

        Args:
            weights: the weights of the matrix or of the members. Without them the model's are
                used; all processes must then solve a sharded matrix together.
        """
        device = self.runs_on
        try:
            weights = weights or self.weights(gene)
            if gene.neurons:
                return self._neurons(gene, [weight.to(device) for weight in weights], device)
            weight, moment = self._inputs(gene, weights)
            _check_finite(weight, moment)
            project = get_projection(self.projection, self.damping)
            rank = self.sizing.top_rank(gene)
            solved = project(weight.to(device), moment.to(device), rank)
        except ValueError as error:
            raise ValueError(f"{gene.name}: {error}") from error
        return stored(solved, self.stored_dtype, gene.name)

    def _neurons(self, gene: Matrix, weights: list[Tensor], device: torch.device) -> BankFactors:
        """The neurons of a group in order; the last of its members is the writer."""
        *feeders, writer = weights
        moment = self.moments.of(self._members(gene)[-1]).to(device)
        _check_finite(torch.cat([weight.flatten() for weight in weights]), moment)
        incoming = torch.cat([by_neuron(feeder, gene.d_in) for feeder in feeders])
        centered = self.projection in CENTERED
        solved = neurons(incoming, writer, moment, self.damping, centered)
        solved = solved.cut(self.sizing.top_rank(gene))
        return stored(solved, self.stored_dtype, gene.name, torch.float32)

    @torch.no_grad()
    def solve_again(self, gene: Matrix, trained: BankFactors) -> BankFactors:
        """Order the neurons that a trained MLP has kept, on the CPU.

        trained: the factors of a training, cut to these neurons.
        """
        moment = self.moments.of(self._members(gene)[-1])
        order = kept_neurons(trained.v)
        gradient = moment.gradient
        if gradient is not None and gradient.side == "input":
            gradient = replace(gradient, second=gradient.second[order][:, order])
        second, mean = moment.second[order][:, order], moment.mean[order]
        moment = replace(moment, second=second, mean=mean, gradient=gradient)
        written = len(trained.u) - gene.outputs
        weight = trained.u[written:].double() @ trained.v.double()[:, order]
        solved = neurons(trained.u[:written], weight, moment, self.damping)
        solved = unfolded(solved, order, gene.d_in)
        return stored(solved, self.stored_dtype, gene.name, torch.float32)

    def _members(self, gene: Matrix) -> list[Matrix]:
        by_name = {matrix.name: matrix for matrix in self.matrices}
        return [by_name[name] for name in gene.members] or [gene]

    def weights(self, gene: Matrix) -> list[Tensor]:
        """The weight of a matrix, or of each member; on all ranks at once if sharded."""
        return [whole_weight(self.model.get_submodule(m.name)) for m in self._members(gene)]

    def _inputs(self, gene: Matrix, weights: list[Tensor]) -> tuple[Tensor, Moment]:
        """Weight and moment of a matrix, or of a group as one."""
        moments = [self.moments.of(m) for m in self._members(gene)]
        return stacked(weights, moments) if gene.members else (weights[0], moments[0])


@contextmanager
def solving(
    solver: Solver, blocks: Blocks, together: bool = True
) -> Iterator[Callable[..., Iterable[Any]]]:
    """A `map` that solves blocks; on a CPU several at the same time, each in one thread.

    A sharded model's blocks are solved one after another: all processes gather a weight together.

    Args:
        blocks: all blocks of the model, so that the roundings of a block are the same whichever
            blocks this process solves.
        together: False solves them one after another, with the same roundings.
    """
    threads = torch.get_num_threads()
    workers = at_once(blocks, threads)
    if solver.runs_on.type != "cpu" or is_sharded(solver.model) or workers == 1 < threads:
        yield map
        return
    with one_thread_each(), ThreadPoolExecutor(workers) as pool:
        yield pool.map if together and workers > 1 else map


def at_once(blocks: Blocks, threads: int) -> int:
    """How many of these blocks a CPU with so many threads solves at the same time."""
    most = sorted((max(map(most_bytes, genes)) for genes in blocks.values()), reverse=True)
    fitting = sum(1 for taken in accumulate(most) if taken <= AT_ONCE)
    return max(1, min(threads, fitting))


def most_bytes(gene: Matrix) -> int:
    """The most bytes that solving a matrix or group takes."""
    wide, narrow = max(gene.d_out, gene.d_in), min(gene.d_out, gene.d_in)
    if gene.neurons:
        return NEURON_BYTES * gene.d_in**2
    # Head and embedding have moments of hidden states, not of words.
    width = narrow if gene.layer is None and not gene.members else wide
    return FLOAT64 * (4 * gene.size + 2 * width**2 + 6 * narrow**2)


def _check_finite(weight: Tensor, moment: Moment) -> None:
    """ValueError if a number is not finite: not every solver would fail."""
    if not finite(weight):
        raise ValueError(
            "the weights are not finite; the checkpoint is damaged; download it again."
        )
    if not all(finite(part) for part in (moment.second, moment.mean)):
        raise ValueError("the moments are not finite; calibrate again.")


def stored(
    factors: Factors, dtype: torch.dtype, name: str, v_dtype: torch.dtype | None = None
) -> BankFactors:
    """Factors rounded for storage, on the CPU; ValueError where a number overflows the dtype.

    v_dtype: of V, by default `dtype`. The V of neurons is nearly singular, so it stays precise.
    """
    u, mean = (part.to(dtype) for part in (factors.u, factors.mean))
    v = factors.v.to(v_dtype or dtype)
    if not all(finite(part) for part in (u, v, mean)):
        raise ValueError(f"{name}: factors do not fit {dtype}; set projection.dtype=float32.")
    offset = None if factors.offset is None else factors.offset.float().cpu()
    energy = factors.energy.float().cpu()
    return BankFactors(u.cpu(), v.cpu(), energy, mean.float().cpu(), offset)
