"""result.json: the figures of a run under stable keys, gathered from its stages."""

import platform
from collections import defaultdict
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from sieve.bank.bank import Bank
from sieve.bank.genome import Genome
from sieve.evaluation.speed import describe_machine

SPECTRUM_POINTS = 64


def sizes(
    bank: Bank,
    genome: Genome,
    model_parameters: int,
    dtype: torch.dtype,
    merged: bool = False,
    saved_bytes: int = 0,
) -> dict[str, Any]:
    """Kept fractions, parameter counts and bytes of weights on disk.

    model_parameters: of the dense model; dtype: of its checkpoint; merged: whether the pruned one
    is written as dense weights, which takes the dense model's room; saved_bytes: by quantization.
    """
    kept = bank.kept_parameters(genome)
    # Beside factors of its own a tied matrix's table stays.
    used = bank.in_use(genome)
    beside = sum(m.size for m, rank in used.items() if m.tied and rank is not None)
    model_kept = model_parameters - bank.size + kept + beside
    return {
        "kept_fraction": {"prunable": kept / bank.size, "model": model_kept / model_parameters},
        "parameters": {
            "prunable_dense": bank.size,
            "prunable_kept": kept,
            "model_dense": model_parameters,
            "model_kept": model_kept,
        },
        "bytes": {
            "dense": model_parameters * dtype.itemsize,
            "pruned": (model_parameters + beside) * bank.dtype.itemsize
            if merged
            else model_kept * bank.dtype.itemsize + bank.index_bytes(genome) - saved_bytes,
        },
    }


def matrix_table(bank: Bank, genome: Genome) -> list[dict[str, Any]]:
    """One row per matrix: where it stands, its level, rank (null: dense) and kept fraction.

    Those that share one V have its rank and level, and bear its numbers by their size.
    """
    used = {m: (m, rank) for m, rank in bank.in_use(genome).items()}
    by_name = {name: pair for m, pair in used.items() for name in (m.members or (m.name,))}
    levels = genome.levels
    return [
        {
            "name": matrix.name,
            "kind": matrix.kind,
            "layer": matrix.layer,
            "d_out": matrix.d_out,
            "d_in": matrix.d_in,
            "level": levels[whole.name],
            "rank": rank,
            "kept_fraction": bank.sizing.kept(whole, rank) / whole.size,
            "shared_with": [name for name in whole.members if name != matrix.name],
        }
        for matrix in bank.matrices
        for whole, rank in (by_name[matrix.name],)
    ]


def spectrum(bank: Bank) -> dict[str, Any]:
    """Per kind, the share of energy left to pay at each fraction of full rank, mean over layers."""
    grid = np.linspace(0, 1, SPECTRUM_POINTS)
    curves = defaultdict(list)
    for matrix in bank.matrices:
        energy = bank.factors[matrix.name].energy.double().numpy()
        if (total := energy.sum()) > 0:
            left = np.concatenate([[1.0], 1 - np.cumsum(energy) / total]).clip(min=0)
            curves[matrix.kind].append(np.interp(grid, np.linspace(0, 1, len(left)), left))
    return {
        kind: {"rank_fraction": grid.tolist(), "energy_left": np.mean(lines, axis=0).tolist()}
        for kind, lines in curves.items()
    }


def provenance(command: str, device: torch.device) -> dict[str, Any]:
    """What produced a result: versions, command, date and device."""
    packages = ("torch", "lightning", "hydra-core", "transformers", "datasets")
    return {
        "sieve_version": version("sieve-llm"),
        "command": command,
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "device": describe_machine(device),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
    }
