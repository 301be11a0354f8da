"""fit: moments and weights to bank.safetensors, nested factors of every matrix."""

from pathlib import Path

import torch

import sieve.projections
from sieve.artifacts import fingerprint, hash_files
from sieve.bank import FORMAT, Bank
from sieve.bank import fit as fit_bank
from sieve.moments import Moments
from sieve.stages.calibrate import Calibrated
from sieve.stages.run import Run


def fit(run: Run, calibrated: Calibrated) -> Bank:
    """Nested factors of every matrix."""
    settings = run.config.projection
    projections = hash_files(list(Path(sieve.projections.__file__).parent.glob("*.py")))
    key = fingerprint(
        "bank", FORMAT, calibrated.key, settings.name, settings.storage, settings.rank_multiple,
        settings.dtype, settings.damping, projections, str(run.backbone.storage_dtype),
    )  # fmt: skip
    path = run.cache.path("bank", key, "safetensors")
    with run.stage("fit", cached=path.exists()):
        if not path.exists() and run.leads:
            moments = Moments.load(calibrated.path)
            projection = run.config.projection
            fit_bank(
                run.backbone.model, moments, projection.name, projection.storage,
                projection.rank_multiple, _bank_dtype(run), key, projection.damping,
            ).save(path)  # fmt: skip
    return Bank.load(path)


def _bank_dtype(run: Run) -> torch.dtype:
    name = run.config.projection.dtype
    return run.backbone.storage_dtype if name == "auto" else getattr(torch, name)
