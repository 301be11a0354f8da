"""Whole runs with the task's vocabulary: the dense model stays the original one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import finished, make_world, write_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

DENSE = ("search=uniform", "search.levels=[1]", "confidence=null")
QUICK = ("search.levels=[1,.6]", "calibration.tokens=2000", "projection.rank_multiple=2")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model and a data set; some test rows have a word that no other row has."""
    root = make_world(tmp_path_factory.mktemp("world"))
    file = root / "data" / "test.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    words = (" good", " movie", " film", " false")
    write_rows(file, [row | {"text": row["text"] + words[i % 4]} for i, row in enumerate(rows)])
    file = root / "data" / "train.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    write_rows(file, [row | {"text": f"{row['text']} good"} for row in rows])
    return root


@pytest.fixture(scope="module")
def cut(world: Path) -> dict[str, Any]:
    """A run that cuts the vocabulary and prunes nothing."""
    return finished(world, "cut", "vocabulary=task", *DENSE, "export=dense")


def test_rows_without_other_tokens_have_the_same_answer(cut: dict[str, Any]) -> None:
    vocabulary = cut["vocabulary"]
    assert vocabulary["tokens"] < vocabulary["dense_tokens"]
    assert 0 < vocabulary["rows_kept"] < vocabulary["rows"] == cut["examples"]
    assert vocabulary["same_kept"] == vocabulary["rows_kept"]


def test_sizes_count_the_tokens_that_left(world: Path, cut: dict[str, Any]) -> None:
    model = AutoModelForCausalLM.from_pretrained(world / "cut" / "export")
    parameters = sum(weight.numel() for weight in model.parameters())
    assert cut["parameters"]["model_kept"] == parameters < cut["parameters"]["model_dense"]
    original = AutoModelForCausalLM.from_pretrained(world / "model").num_parameters()
    assert cut["parameters"]["model_dense"] == original and cut["bytes"]["dense"] == original * 4
    assert cut["kept_fraction"]["prunable"] == 1 > cut["kept_fraction"]["model"]
    assert cut["bytes"]["pruned"] == parameters * 4


def test_an_export_is_an_ordinary_model_with_an_ordinary_tokenizer(world: Path) -> None:
    folders = world / "cut" / "export", world / "model"
    models = [AutoModelForCausalLM.from_pretrained(folder) for folder in folders]
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in folders]
    text = json.loads((world / "data" / "train.jsonl").read_text().splitlines()[0])["text"]
    rows = [tokenizer(text, return_tensors="pt")["input_ids"] for tokenizer in tokenizers]
    new_ids = tokenizers[0].get_vocab()
    old = [tokenizers[1].get_vocab()[token] for token in sorted(new_ids, key=new_ids.__getitem__)]
    with torch.no_grad():
        logits = [model(input_ids=row).logits for model, row in zip(models, rows, strict=True)]
    assert torch.allclose(logits[0], logits[1][..., old], atol=1e-5)
    other = "Ünïcode 漢字 🙂 \x00"
    assert tokenizers[0].decode(tokenizers[0](other)["input_ids"]) == other


@pytest.mark.slow
def test_a_run_prunes_trains_and_exports_with_the_tasks_vocabulary(
    world: Path, cut: dict[str, Any]
) -> None:
    result = finished(
        *(world, "trained", "vocabulary=task", "recovery=lora", "recovery.steps=4", *QUICK),
        *("recovery.short_steps=2", "recovery.check_every=2", "recovery.tries=1"),
        *("export.check_rows=8", "curve=[.6]", "confidence=null", "tolerance=.3"),
    )
    assert result["export"]["check"]["same_answer"] == result["export"]["check"]["rows"]
    assert result["baseline"] == cut["baseline"]
    assert result["speed"]["decode_ratio"] > 0
