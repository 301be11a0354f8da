"""What a graph on the disk scores stands in the result; one that has lost too much is warned of."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from models import VOCAB_SIZE, tiny_qwen3, tiny_tokenizer
from runs import finished, make_world, run_sieve
from transformers.modeling_outputs import CausalLMOutput

import sieve
from sieve.exports.task_file import read_task
from sieve.stages.export import export_accuracy, warn_of_loss
from sieve.tasks import Example
from sieve.tasks.metrics import ACCURACY, Metric

CHOICES = (" negative", " positive")
ROWS = [Example(f"{'a ' * index}film", CHOICES, int(index < 3)) for index in range(5)]


class Graph:
    """A model that likes " negative" by some value over all else."""

    def __init__(self, value: float) -> None:
        self.value = value

    def forward(self, input_ids: torch.Tensor, logits_to_keep: int) -> CausalLMOutput:
        made = torch.zeros(len(input_ids), logits_to_keep, VOCAB_SIZE)
        [token] = tiny_tokenizer()(CHOICES[0]).input_ids
        made[:, :, token] = self.value
        return CausalLMOutput(logits=made)

    def __call__(self, use_cache: bool = False, **inputs: Any) -> CausalLMOutput:
        return self.forward(**inputs)


@pytest.mark.parametrize(("value", "accuracy"), [(1.0, 2 / 5), (-1.0, 3 / 5), (float("nan"), 0.0)])
def test_the_graph_is_scored_on_every_test_row(value: float, accuracy: float) -> None:
    batches = sieve.scoring_batches(ROWS, tiny_tokenizer(), batch_tokens=16)
    assert len(batches) > 1
    run: Any = SimpleNamespace(
        data=SimpleNamespace(scoring={"test": batches}.__getitem__),
        task=SimpleNamespace(writing=None, metric=ACCURACY, splits={"test": ROWS}),
    )
    assert export_accuracy(Graph(value), run) == accuracy


def test_a_graph_that_lost_more_than_the_tolerance_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "sieve"):
        warn_of_loss(0.875, 0.9375, 0.0625, ACCURACY)
        assert not caplog.records
        warn_of_loss(0.875, 0.9375, 0.03125, ACCURACY)
        assert "accuracy 0.875 on the test rows" in caplog.text and "6.2 points" in caplog.text
        caplog.clear()
        perplexity = Metric("perplexity", "perplexity", 0.0)
        warn_of_loss(20.0, 19.5, 0.05, perplexity)
        assert not caplog.records
        warn_of_loss(21.0, 19.5, 0.05, perplexity)
    assert "7.7 %" in caplog.text


@pytest.mark.slow
def test_a_run_says_how_large_its_gguf_file_is_and_what_8_bits_score(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    world = make_world(tmp_path)
    settings = ("projection.refit=false", "tolerance=.5", "speed.enabled=false")
    found = finished(world, "small", "export=gguf", "export.gguf_dtype=q8_0", *settings)
    export, file = found["export"], world / "small/export/model.gguf"
    assert export["gguf"]["dtype"] == "Q8_0"
    assert export["gguf"]["bytes"] < export["gguf"]["dense_bytes"]
    assert found["bytes"]["pruned"] == file.stat().st_size > export["gguf"]["bytes"]
    assert abs(export["accuracy"] - found["pruned"]["accuracy"]) <= 0.1
    assert export["server"] == "sieve.serve" and export["check"] is None


@pytest.mark.slow
def test_a_run_says_what_its_graph_scores_and_none_of_other_formats(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    settings = ("projection.refit=false", "tolerance=.5", "speed.enabled=false")
    found = finished(world, "int8", "export=onnx_int8", *settings)
    assert found["export"]["format"] == "onnx_int8"
    assert abs(found["export"]["accuracy"] - found["pruned"]["accuracy"]) <= 0.1
    for form, server in (("factorized", "sieve.serve"), ("none", "")):
        said = finished(world, form, f"export={form}", *settings)["export"]
        assert said.pop("storage") is None  # No matrix has kept a rank.
        assert said == {"format": form, "server": server, "accuracy": None, "check": None}


@pytest.mark.slow
def test_a_run_writes_plain_factors_and_says_the_bytes_of_both_forms(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    settings = ("projection.refit=false", "tolerance=.5", "speed.enabled=false")
    settings += ("search.levels=[1,.6]", "export.check_rows=16")
    own = finished(world, "own", *settings)
    found = finished(world, "plain", "export.storage=plain", *settings)
    said, folder = found["export"]["storage"], world / "plain/export"
    assert said["form"] == "plain" and own["export"]["storage"]["form"] == "pivoted"
    assert said["bytes"] == own["export"]["storage"]["bytes"]
    assert json.loads((folder / "task.json").read_text())["storage"] == said
    assert found["bytes"]["pruned"] == said["bytes"]["plain"] == weight_bytes(folder)
    assert own["bytes"]["pruned"] == said["bytes"]["pivoted"] == weight_bytes(world / "own/export")
    assert found["export"]["check"]["different"] == 0
    assert found["kept_fraction"] == own["kept_fraction"]
    assert read_task(folder) == read_task(world / "own/export")


def weight_bytes(folder: Path) -> int:
    """Bytes of the weights in a file, without its header."""
    file = folder / "model.safetensors"
    return file.stat().st_size - 8 - int.from_bytes(file.read_bytes()[:8], "little")


@pytest.mark.slow
def test_what_gguf_cannot_hold_of_a_qwen3_is_said_before_the_search(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    world = make_world(tmp_path)
    tiny_qwen3().save_pretrained(world / "model")
    done = run_sieve(world, world / "a", "export=gguf", "search.alleles=structural")
    assert done.status == 1 and "one shape and no biases" in done.stderr
    assert "calibrate" not in done.stdout
    done = run_sieve(world, world / "b", "export=gguf", "until=fit")
    assert done.status == 0 and "If the search removes one" in done.stdout + done.stderr
