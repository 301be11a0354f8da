"""One line loads an export; what is missing, cut or mixed up gets one sentence."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models import tiny_gpt2, tiny_llama, tiny_tokenizer
from sieved import banked, logits, mixed, uniform

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


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change config.json."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def name_of(config: dict[str, Any]) -> str:
    """A matrix that has a rank to lose."""
    return next(name for name, rank in config["sieve"]["ranks"].items() if rank > 1)


def halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("format", ["factorized", "dense"])
@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda folder: halve(folder / "model.safetensors"), "are damaged"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: halve(folder / "config.json"), "not a valid JSON file"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "the tokenizer of"),
        (lambda folder: halve(folder / "tokenizer.json"), "the tokenizer of"),
        (lambda folder: tiny_gpt2().config.save_pretrained(folder), "than its config.json says"),
    ],
    ids=["weights cut", "no config", "config cut", "no tokenizer", "tokenizer cut", "config of "
         "another model"],
)  # fmt: skip
def test_a_file_that_is_missing_cut_or_of_another_model_gets_one_sentence(
    damage: Any, sentence: str, format: str, tmp_path: Path
) -> None:
    model = tiny_llama()
    bank = banked(model)
    sieve.apply(model, bank, uniform(bank, 0.6))
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "export", format)
    sieve.load(folder)
    damage(folder)
    with pytest.raises(ValueError, match=sentence) as caught:
        sieve.load(folder)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["sieve"]["ranks"].update({name_of(c): c["sieve"]["ranks"][name_of(c)] - 1}),
        lambda c: c["sieve"]["ranks"].update({name_of(c): -3}),
        lambda c: c["sieve"]["ranks"].update({name_of(c): "many"}),
        lambda c: c["sieve"]["ranks"].update({"model.layers.7.mlp.up_proj": 3}),
        lambda c: c["sieve"]["ranks"].pop(name_of(c)),
        lambda c: c["sieve"].update(pivoted=[]),
        lambda c: c["sieve"].update(biases=list(c["sieve"]["ranks"])),
        lambda c: c["sieve"].update(architecture="GPT2LMHeadModel"),
        lambda c: c["sieve"].pop("ranks"),
        lambda c: c.update(sieve="none"),
    ],
    ids=["rank lower", "rank negative", "rank a word", "matrix unknown", "matrix left out",
         "pivots forgotten", "biases invented", "another architecture", "no ranks", "a word"],
)  # fmt: skip
def test_an_entry_that_does_not_fit_the_weights_gets_one_sentence(
    change: Any, folder: Path
) -> None:
    edit(folder, change)
    with pytest.raises(ValueError) as caught:
        sieve.load(folder)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
