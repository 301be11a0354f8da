"""Tiny models with a bank: what the tests of switching and exporting start from."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel

from sieve.bank.bank import Bank, fit
from sieve.bank.genome import Genome
from sieve.calibration.calibration import calibrate
from sieve.projections import get_projection

GRID = (1.0, 0.6, 0.5, 0.3, 0.0)
LEVELS = (0.6, 1.0, 0.3, 0.0, 0.6)  # from matrix to matrix, again and again


def tokens(rows: int = 2, length: int = 12, seed: int = 0) -> torch.Tensor:
    """Random token ids (rows, length), none of them special."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 256, (rows, length), generator=generator)


def banked(model: PreTrainedModel, projection: str = "output", **options: Any) -> Bank:
    """A bank fitted on a few random sequences."""
    batches = [{"input_ids": tokens(4, 16, seed)} for seed in (1, 2)]
    needs = replace(get_projection(projection).needs, neurons=options.get("narrow", False))
    moments = calibrate(model, batches, needs=needs)
    return fit(model, moments, projection, **options)


def mixed(bank: Bank, levels: Sequence[float] = LEVELS) -> Genome:
    """A genome that goes through `levels` from matrix to matrix."""
    indexes = tuple(GRID.index(levels[i % len(levels)]) for i in range(len(bank.names)))
    return Genome(GRID, indexes, bank.names, bank.fingerprint)


def uniform(bank: Bank, level: float) -> Genome:
    """One level for every matrix."""
    return mixed(bank, (level,))


@torch.no_grad()
def logits(model: PreTrainedModel, ids: torch.Tensor | None = None) -> torch.Tensor:
    """Logits (rows, length, V) over a fixed batch."""
    ids = tokens() if ids is None else ids
    return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
