"""Exports of older versions load: their names and forms are written out here, not by `export`."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from models import tiny_llama, tiny_tokenizer
from safetensors.torch import save_file
from sieved import logits
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import sieve
from sieve.exports.task_file import read_task

BLOCK = "model.layers.0"
# Of version 0.1.0 before blocks of their own, skipped modules and narrow layers were known.
ENTRY = {
    "architecture": "LlamaForCausalLM",
    "ranks": {
        f"{BLOCK}.self_attn.q_proj": 4,
        f"{BLOCK}.self_attn.k_proj": 3,
        f"{BLOCK}.self_attn.o_proj": 0,
        f"{BLOCK}.mlp.gate_proj": 5,
        f"{BLOCK}.mlp.up_proj": 5,
    },
    "biases": [f"{BLOCK}.self_attn.{name}_proj" for name in "qko"],
    "pivoted": [f"{BLOCK}.self_attn.k_proj"],
    "shared": {f"{BLOCK}.mlp.up_proj": f"{BLOCK}.mlp.gate_proj"},
}
TASK = {
    "format": 1,
    "task": {
        "name": "reviews",
        "domain": "sentiment",
        "kind": "classification",
        "prompt": "Review: {text}\\nSentiment:",
        "labels": ["negative", "positive"],
        "label_field": "label",
        "fields": {"text": ["text", "review"]},
        "chat": "never",
        "delimiter": " ",
        "normalize": "none",
        "preamble": "",
        "shots": 0,
    },
}


@pytest.fixture
def dense() -> PreTrainedModel:
    """The model that the files below describe, with products in place of factors."""
    return tiny_llama(attention_bias=True)


@pytest.fixture
def older(dense: PreTrainedModel, tmp_path: Path) -> Path:
    """An export as it was written; `dense` gets the weights of its products."""
    folder, state = tmp_path / "older", dict(dense.state_dict())
    sizes = {name: state[f"{name}.weight"].shape for name in ENTRY["ranks"]}
    mixed = {n: sizes[n][0] for n in (f"{BLOCK}.mlp.gate_proj", f"{BLOCK}.mlp.up_proj")}
    tensors = {k: v.clone() for k, v in state.items() if k.rpartition(".")[0] not in sizes}
    reader: Tensor | None = None
    randn = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    for name, rank in ENTRY["ranks"].items():
        d_out, d_in = sizes[name]
        pivoted = name in ENTRY["pivoted"]
        v, u = randn(rank, d_in) / 4, randn(d_out - rank * pivoted, rank) / 4
        reader = v if name.endswith("gate_proj") else reader
        v = reader if name in ENTRY["shared"] and reader is not None else v
        product, bias = u @ v, randn(len(u)) / 4
        tensors[f"{name}.factor_out.weight"] = u
        if name not in ENTRY["shared"]:
            tensors[f"{name}.factor_in.weight"] = v
        if pivoted:
            order, rows_bias = randn(d_out).argsort().int(), randn(rank) / 4
            tensors |= {f"{name}.order": order, f"{name}.factor_in.bias": rows_bias}
            tensors[f"{name}.factor_out.bias"] = bias
            product, bias = (
                torch.cat([v, product])[order],
                torch.cat([rows_bias, bias + u @ rows_bias])[order],
            )
        elif name in ENTRY["biases"]:
            tensors[f"{name}.factor_out.bias"] = bias
        state[f"{name}.weight"] = product
        if name in ENTRY["biases"]:
            state[f"{name}.bias"] = bias
    dense.load_state_dict(state)
    tiny_tokenizer().save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    classes = {"AutoConfig": "Config", "AutoModelForCausalLM": "ForCausalLM"}
    config = dense.config.to_dict() | {
        "architectures": ["SieveLlamaForCausalLM"],
        "auto_map": {auto: f"modeling_sieve.SieveLlama{name}" for auto, name in classes.items()},
        "model_type": "sieve",
        "sieve": ENTRY | {"mixed": mixed},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "task.json").write_text(json.dumps(TASK))
    return folder


def test_an_older_export_computes_what_it_did(older: Path, dense: PreTrainedModel) -> None:
    torch.testing.assert_close(logits(sieve.load(older)[0]), logits(dense), rtol=0, atol=1e-5)
    loaded = AutoModelForCausalLM.from_pretrained(older, dtype="auto")
    torch.testing.assert_close(logits(loaded), logits(dense), rtol=0, atol=1e-5)


@pytest.mark.parametrize("storage", ["plain", "pivoted"])
def test_it_is_written_again_in_todays_form(
    older: Path, dense: PreTrainedModel, storage: str, tmp_path: Path
) -> None:
    folder = sieve.export(*sieve.load(older), tmp_path / "today", storage=storage)
    torch.testing.assert_close(logits(sieve.load(folder)[0]), logits(dense), rtol=0, atol=1e-5)


def test_its_task_is_read(older: Path) -> None:
    question = read_task(older).question({"review": "So dull."})
    assert question.prompt == "Review: So dull.\nSentiment:"
    assert question.choices == (" negative", " positive")
