"""Moments on disk are read for one matrix at a time, from one file or several."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models import tiny_llama
from sieved import tokens

from sieve.bank.bank import fit
from sieve.calibration.calibration import calibrate
from sieve.model.matrices import blocks_of, find_matrices
from sieve.projections.moments import StoredMoments


@pytest.mark.parametrize("projection", ["output", "loss_aware", "asvd"])
def test_a_bank_from_files_per_layer_is_the_bank_from_memory(
    projection: str, tmp_path: Path
) -> None:
    model = tiny_llama()
    batches = [{"input_ids": tokens(4, 16, seed)} for seed in range(3)]
    whole = replace(calibrate(model, batches, projection=projection), fingerprint="key")
    paths = []
    for block, matrices in blocks_of(find_matrices(model)).items():
        paths.append(tmp_path / f"{block}.safetensors")
        calibrate(model, batches, matrices, projection=projection).save(paths[-1])
    stored = StoredMoments(paths, "key")
    ours, theirs = fit(model, stored, projection), fit(model, whole, projection)
    assert ours.fingerprint == theirs.fingerprint  # It is made of every number of the bank.
    for name in ours.names:
        assert torch.equal(ours.factors[name].u, theirs.factors[name].u)


def test_other_models_and_damaged_files_are_refused(tmp_path: Path) -> None:
    model = tiny_llama()
    matrices = find_matrices(model)
    path = tmp_path / "moments.safetensors"
    calibrate(model, [{"input_ids": tokens()}], matrices[:1]).save(path)
    with pytest.raises(ValueError, match="have no entry for"):
        StoredMoments([path]).of(matrices[-1])
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="damaged"):
        StoredMoments([path])
