"""Exports whose pruned output head and embedding are dense matrices, as vLLM needs them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from models import tiny_llama, tiny_llama_tied, tiny_tokenizer
from sieved import banked, logits, tokens, uniform
from test_blocks import in_vllm
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import sieve
from sieve.calibration.calibration import calibrate
from sieve.factorized.modeling_layers import FactorizedLinear
from sieve.model.matrices import find_matrices

ENDS = ("head", "embedding")
PARTS = {
    "head": {"prune_head": True},
    "embedding": {"prune_embedding": True},
    "both": {"prune_head": True, "prune_embedding": True},
}


def pruned_with_ends(build: Callable[..., PreTrainedModel], parts: str) -> PreTrainedModel:
    model = build()
    batches = [{"input_ids": tokens(4, 16, seed)} for seed in (1, 2)]
    matrices = find_matrices(model, *(f"prune_{end}" in PARTS[parts] for end in ENDS))
    moments = calibrate(model, batches, matrices, projection="loss_aware")
    bank = sieve.fit(model, moments, "loss_aware", "pivoted", **PARTS[parts])
    sieve.apply(model, bank, uniform(bank, 0.5))
    return model


@pytest.mark.parametrize(
    ("build", "parts"),
    [
        *((tiny_llama, parts) for parts in PARTS),
        (tiny_llama_tied, "head"),
        (tiny_llama_tied, "both"),
    ],
)
def test_the_ends_are_dense_and_the_answers_the_same(build, parts: str, tmp_path: Path) -> None:
    model = pruned_with_ends(build, parts)
    before, expected = [*model.state_dict()], logits(model)
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "export", merge_head=True)
    entry = AutoConfig.from_pretrained(folder)
    assert entry.sieve["ranks"] and all(".layers." in name for name in entry.sieve["ranks"])
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(logits(loaded), expected, rtol=0, atol=1e-5)
    in_vllm(entry)  # does not refuse it
    assert [*model.state_dict()] == before
    assert isinstance(model.get_submodule("model.layers.0.mlp.up_proj"), FactorizedLinear)


def test_a_model_with_dense_ends_is_written_as_ever(tmp_path: Path) -> None:
    model = tiny_llama()
    bank = banked(model)
    sieve.apply(model, bank, uniform(bank, 0.5))
    folders = [tmp_path / "plain", tmp_path / "merged"]
    for folder, merge in zip(folders, (False, True), strict=True):
        sieve.export(model, tiny_tokenizer(), folder, merge_head=merge)
    one, other = (folder.joinpath("model.safetensors").read_bytes() for folder in folders)
    assert one == other
