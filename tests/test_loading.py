"""One line loads an export; what is missing, cut or mixed up gets one sentence."""

import json
from pathlib import Path

import pytest
import torch
from models import tiny_llama, tiny_tokenizer
from sieved import banked, logits, mixed

import sieve


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tiny_llama()
    bank = banked(model, storage="pivoted")
    sieve.apply(model, bank, mixed(bank))
    torch.save(logits(model), tmp_path / "logits")
    return sieve.export(model, tiny_tokenizer(), tmp_path / "export")


def test_an_export_is_loaded_in_one_line(folder: Path) -> None:
    model, tokenizer = sieve.load(folder)
    wanted = torch.load(folder.parent / "logits", weights_only=True)
    torch.testing.assert_close(logits(model), wanted)
    assert not model.training and all(p.requires_grad for p in model.parameters())
    assert tokenizer("a b").input_ids == tiny_tokenizer()("a b").input_ids


def test_a_missing_or_damaged_export_gets_one_sentence(folder: Path) -> None:
    with pytest.raises(ValueError, match="there is no such directory"):
        sieve.load(folder.parent / "nowhere")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="are damaged"):
        sieve.load(folder)
    weights.unlink()
    with pytest.raises(ValueError, match="safetensors"):
        sieve.load(folder)


def test_weights_of_another_genome_are_refused(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    name = next(name for name, rank in config["sieve"]["ranks"].items() if rank > 1)
    config["sieve"]["ranks"][name] -= 1
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError):
        sieve.load(folder)
