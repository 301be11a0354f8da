"""`inspect=true` lists the prunable matrices from a configuration alone."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from families import EVERY
from models import OddConfig, OddForCausalLM, tiny_llama_tied
from rich.console import Console
from runs import make_world, run_sieve
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import LlamaConfig

from sieve.config import Config, ModelConfig
from sieve.costs.inspection import NAME, inspect
from sieve.model.matrices import find_matrices
from sieve.tasks import TaskConfig


def config(folder: Path, **projection: object) -> Config:
    settings = Config(TaskConfig("toy"), ModelConfig(path=str(folder)))
    settings.projection = replace(settings.projection, **projection)
    return settings


def only_config(model, folder: Path) -> Path:
    """A directory of a model's configuration, without weights."""
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    return folder


def text_of(config: Config, folder: Path) -> str:
    console = Console(width=100, file=io.StringIO())
    console.print(inspect(config, folder))
    return console.file.getvalue()


@pytest.mark.parametrize("family", EVERY)
def test_the_matrices_equal_those_of_the_model_with_weights(family, tmp_path):
    model = EVERY[family]()
    text_of(config(only_config(model, tmp_path)), tmp_path)
    record = json.loads((tmp_path / NAME).read_text())
    matrices = find_matrices(model)
    assert [row["name"] for row in record["matrices"]] == [m.name for m in matrices]
    for row, matrix in zip(record["matrices"], matrices, strict=True):
        assert (row["kind"], row["d_out"], row["d_in"]) == (matrix.kind, matrix.d_out, matrix.d_in)
        assert (row["has_bias"], row["source"]) == (matrix.has_bias, matrix.source)
    assert record["parameters"] == sum(p.numel() for p in model.parameters())
    assert record["prunable"] == sum(matrix.size for matrix in matrices)


def test_the_table_marks_tied_and_shared_matrices(tmp_path):
    folder = only_config(tiny_llama_tied(), tmp_path / "llama")
    text = text_of(config(folder, prune_head=True, storage="plain"), tmp_path)
    lines = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert "tied" in lines["lm_head"] and "head" in lines["lm_head"]
    assert "with q_proj" in lines["self_attn.k_proj"] and "16×32" in lines["self_attn.k_proj"]
    # 32 · 48 / (32 + 48) = 19.2
    assert lines["mlp.down_proj"].split()[1:6] == ["down", "32×48", "2", "3,072", "19"]


@pytest.mark.slow
def test_a_large_model_takes_no_memory(tmp_path):
    LlamaConfig(
        architectures=["LlamaForCausalLM"],
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
    ).save_pretrained(tmp_path)
    text = text_of(config(tmp_path), tmp_path)
    assert f"{80 * (2 * 8192**2 + 2 * 8192 * 1024 + 3 * 8192 * 28672):,} of 68," in text


def test_a_model_that_cannot_run_without_weights_is_searched_for_matrices(tmp_path):
    with FakeTensorMode():
        model = OddForCausalLM(OddConfig())
        assert len(find_matrices(model)) == 8


@pytest.mark.slow
def test_a_run_shows_the_table_and_ends(tmp_path):
    world = make_world(tmp_path)
    (world / "model" / "model.safetensors").unlink()
    done = run_sieve(world, world / "run", "inspect=true", "task.data_dir=nowhere")
    assert done.status == 0, done.stderr
    assert (world / "run" / NAME).is_file() and not (world / "run" / "result.json").exists()
    (world / "model" / "config.json").unlink()
    done = run_sieve(world, world / "run2", "inspect=true")
    assert done.status == 1 and "has no config.json" in done.stderr
