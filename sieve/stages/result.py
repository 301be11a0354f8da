"""The parts of result.json that are computed from the bank, the genome and the machine."""

import platform
from collections import defaultdict
from datetime import UTC, datetime
from importlib.metadata import version

import numpy as np
import torch

from sieve.bank.bank import Bank
from sieve.bank.genome import Genome
from sieve.evaluation.speed import describe_machine
from sieve.stages.cached import Record

SPECTRUM_POINTS = 64


def sizes(
    bank: Bank,
    genome: Genome,
    model_parameters: int,
    dtype: torch.dtype,
    merged: bool = False,
    saved_bytes: int = 0,
    removed: int = 0,
) -> Record:
    """Kept fractions, parameter counts and bytes of weights on disk.

    Args:
        model_parameters: of the dense model.
        dtype: of the dense checkpoint.
        merged: whether the export is dense weights, as large as the dense model's.
        saved_bytes: by quantization.
        removed: parameters of tokens that left the vocabulary.
    """
    kept = bank.kept_parameters(genome)
    # A dense model has one table for embedding and head if they are tied, and factors of either
    # come in addition to it.
    tied = [m.size for m, r in bank.in_use(genome).items() if m.tied and r is not None]
    tables = max(tied, default=0)
    unneeded = bank.unneeded(genome)
    biases = sum(m.d_out for m in bank.matrices if m.has_bias and m.name in unneeded)
    biases += _lost_biases(bank, genome)
    model_kept = model_parameters - removed - bank.size + kept + tables - biases
    pruned_bytes = model_kept * bank.dtype.itemsize + bank.index_bytes(genome) - saved_bytes
    if merged:
        pruned_bytes = (model_parameters - removed + tables) * bank.dtype.itemsize
    return {
        "kept_fraction": {"prunable": kept / bank.size, "model": model_kept / model_parameters},
        "parameters": {
            "prunable_dense": bank.size,
            "prunable_kept": kept,
            "model_dense": model_parameters,
            "model_kept": model_kept,
        },
        "bytes": {"dense": model_parameters * dtype.itemsize, "pruned": pruned_bytes},
    }


def _lost_biases(bank: Bank, genome: Genome) -> int:
    """Numbers that the biases of MLPs have lost together with neurons."""
    lost, by_name = 0, {matrix.name: matrix for matrix in bank.matrices}
    for group, count in bank.in_use(genome).items():
        if group.neurons and count is not None:
            for feeder in (by_name[name] for name in group.members[:-1]):
                lost += feeder.has_bias * feeder.d_out * (group.d_in - count) // group.d_in
    return lost


def matrix_table(bank: Bank, genome: Genome) -> list[Record]:
    """One row per matrix: kind, layer, shape, level, rank (None: dense) and kept fraction.

    Siblings that share one V have the level and rank of their group. Matrices that feed only one
    of rank 0 have level 0. Matrices that have lost neurons have no rank but a share of `neurons`.
    """
    in_use = {matrix: (matrix, rank) for matrix, rank in bank.in_use(genome).items()}
    by_name = {name: pair for m, pair in in_use.items() for name in (m.members or (m.name,))}
    rows = []
    unneeded = bank.unneeded(genome)
    for matrix in bank.matrices:
        # The matrix itself, or its group.
        whole, rank = by_name.get(matrix.name, (matrix, 0))
        kept = 0 if matrix.name in unneeded else bank.sizing.kept(whole, rank)
        rows.append(
            {
                "name": matrix.name,
                "kind": matrix.kind,
                "layer": matrix.layer,
                "d_out": matrix.d_out,
                "d_in": matrix.d_in,
                "level": 0.0 if matrix.name in unneeded else genome.levels[whole.name],
                "rank": None if whole.neurons else rank,
                "neurons": rank if whole.neurons else None,
                "kept_fraction": kept / whole.size,
                "shared_with": [n for n in whole.members if n != matrix.name and not whole.neurons],
            }
        )
    return rows


def spectrum(bank: Bank) -> Record:
    """Per kind of matrix, the share of energy beyond fractions of full rank, mean over layers."""
    grid = np.linspace(0, 1, SPECTRUM_POINTS)
    curves = defaultdict(list)
    for matrix in bank.matrices:
        energy = bank.factors[matrix.name].energy.double().numpy()
        if (total := energy.sum()) > 0:
            beyond = np.concatenate([[1.0], 1 - np.cumsum(energy) / total]).clip(min=0)
            curves[matrix.kind].append(np.interp(grid, np.linspace(0, 1, len(beyond)), beyond))
    return {
        kind: {"rank_fraction": grid.tolist(), "energy_left": np.mean(lines, axis=0).tolist()}
        for kind, lines in curves.items()
    }


def provenance(command: str, device: torch.device) -> Record:
    """Versions, command, date and device of a run."""
    packages = ("torch", "lightning", "hydra-core", "transformers", "datasets")
    return {
        "sieve_version": version("sieve-llm"),
        "command": command,
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "device": describe_machine(device),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
    }
