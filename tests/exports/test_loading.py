"""One line loads an export; a missing, damaged or foreign file is named in one sentence."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from exporting import pruned
from models import tiny_gpt2, tiny_llama, tiny_tokenizer
from sieved import banked, logits, uniform

import sieve

Edit = Callable[[Path], object]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a factorized and a dense export, which tests only copy."""
    root = tmp_path_factory.mktemp("loading")
    model = pruned(tiny_llama(), storage="pivoted")
    torch.save(logits(model), root / "logits")
    sieve.export(model, tiny_tokenizer(), root / "factorized")
    dense = tiny_llama()
    bank = banked(dense)
    sieve.apply(dense, bank, uniform(bank, 0.6))
    sieve.export(dense, tiny_tokenizer(), root / "dense", "dense")
    return root


def message_of(folder: Path) -> str:
    """The single sentence with which loading a directory fails."""
    with pytest.raises(ValueError) as error:
        sieve.load(folder)
    message = str(error.value)
    assert "\n" not in message and message.endswith(".")
    return message


def test_an_export_is_loaded_in_one_line(originals: Path) -> None:
    model, tokenizer = sieve.load(originals / "factorized")
    expected = torch.load(originals / "logits", weights_only=True)
    torch.testing.assert_close(logits(model), expected)
    assert not model.training and all(p.requires_grad for p in model.parameters())
    assert tokenizer("a b").input_ids == tiny_tokenizer()("a b").input_ids


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    assert "there is no such directory" in message_of(tmp_path / "nowhere")


def halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "message", "format"),
    [
        (lambda path: halve(path / "model.safetensors"), "are damaged", "factorized"),
        (lambda path: halve(path / "model.safetensors"), "are damaged", "dense"),
        (lambda path: (path / "model.safetensors").unlink(), "safetensors", "factorized"),
        (lambda path: (path / "config.json").unlink(), "has no config.json", "factorized"),
        (lambda path: halve(path / "config.json"), "not a valid JSON file", "dense"),
        (lambda path: (path / "tokenizer.json").unlink(), "the tokenizer of", "factorized"),
        (lambda path: halve(path / "tokenizer.json"), "the tokenizer of", "dense"),
        (tiny_gpt2().config.save_pretrained, "than its config.json says", "factorized"),
        (tiny_gpt2().config.save_pretrained, "than its config.json says", "dense"),
    ],
)
def test_a_missing_damaged_or_foreign_file_is_named(
    damage: Edit, message: str, format: str, originals: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "export"
    shutil.copytree(originals / format, folder)
    damage(folder)
    assert message in message_of(folder)


def first_matrix(config: dict[str, dict[str, dict[str, int]]]) -> str:
    """The name of a matrix whose rank can be lowered."""
    return next(name for name, rank in config["sieve"]["ranks"].items() if rank > 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["sieve"]["ranks"].update({first_matrix(c): 1}),
        lambda c: c["sieve"]["ranks"].update({first_matrix(c): -3}),
        lambda c: c["sieve"]["ranks"].update({first_matrix(c): "many"}),
        lambda c: c["sieve"]["ranks"].update({"model.layers.7.mlp.up_proj": 3}),
        lambda c: c["sieve"]["ranks"].pop(first_matrix(c)),
        lambda c: c["sieve"].update(pivoted=[]),
        lambda c: c["sieve"].update(biases=list(c["sieve"]["ranks"])),
        lambda c: c["sieve"].update(architecture="GPT2LMHeadModel"),
        lambda c: c["sieve"].pop("ranks"),
        lambda c: c.update(sieve="none"),
    ],
)
def test_an_entry_that_does_not_fit_the_weights_gets_one_sentence(
    change: Callable[[dict[str, dict[str, object]]], object], originals: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "export"
    shutil.copytree(originals / "factorized", folder)
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    message_of(folder)
