"""Dense and factorized exports: native layout, size and dtype on disk."""

import json

import pytest
import torch
from exporting import pruned
from models import FAMILIES, tiny_gpt2, tiny_llama, tiny_tokenizer
from safetensors.torch import load_file
from sieved import banked, logits, mixed, uniform
from transformers import AutoModelForCausalLM

import sieve
from sieve.factorized.modeling_layers import FactorizedLinear
from sieve.stages.result import sizes


@pytest.mark.parametrize("family", ["llama_tied", "gpt2", "phi3", "gemma2"])
def test_a_dense_export_has_the_native_files_and_the_logits_of_the_factors(family, tmp_path):
    model = FAMILIES[family]()
    native = tmp_path / "native"
    model.save_pretrained(native)
    tiny_tokenizer().save_pretrained(native)
    bank = banked(model, storage="pivoted")
    sieve.apply(model, bank, uniform(bank, 0.6))
    expected = logits(model)
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "dense", "dense")
    names, configs, shapes = [], [], []
    for path in (native, folder):
        names.append(sorted(file.name for file in path.iterdir()))
        configs.append(json.loads((path / "config.json").read_text()))
        weights = load_file(path / "model.safetensors")
        shapes.append({name: weight.shape for name, weight in weights.items()})
    assert names[0] == names[1] and "tokenizer.json" in names[1]
    assert configs[0] == configs[1] and configs[1]["architectures"] == [type(model).__name__]
    assert shapes[0] == shapes[1]
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert type(loaded) is type(model)
    torch.testing.assert_close(logits(loaded), expected, rtol=0, atol=1e-4)
    assert torch.equal(logits(model), expected), "the model in memory keeps its factors"


def test_a_dense_export_that_lacks_a_bias_is_refused_and_leaves_the_model_unchanged(tmp_path):
    model = pruned(tiny_llama(), "affine")
    before = logits(model)
    with pytest.raises(ValueError, match="needs a bias, .*; use export=factorized"):
        sieve.export(model, tiny_tokenizer(), tmp_path / "export", "dense")
    assert list(tmp_path.iterdir()) == []
    assert any(isinstance(module, FactorizedLinear) for module in model.modules())
    assert torch.equal(logits(model), before)


def weight_bytes(folder):
    """Bytes of the weights in a file, without its header."""
    file = folder / "model.safetensors"
    return file.stat().st_size - 8 - int.from_bytes(file.read_bytes()[:8], "little")


@pytest.mark.parametrize(
    ("family", "projection", "dtype"),
    [
        ("llama_tied", "output", torch.float32),
        ("phi3", "output", torch.bfloat16),
        ("gpt2", "affine", torch.bfloat16),
    ],
)
def test_the_bytes_on_disk_shrink_by_the_removed_parameters(family, projection, dtype, tmp_path):
    model = FAMILIES[family]()
    dense_parameters = sum(parameter.numel() for parameter in model.parameters())
    dense = sieve.export(model, tiny_tokenizer(), tmp_path / "dense", "dense", dtype)
    bank = banked(model, projection)
    sieve.apply(model, bank, mixed(bank))
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "export", dtype=dtype)
    parameters = sizes(bank, mixed(bank), dense_parameters, dtype)["parameters"]
    removed = parameters["model_dense"] - parameters["model_kept"]
    assert removed > 0
    assert weight_bytes(dense) - weight_bytes(folder) == removed * dtype.itemsize


@pytest.mark.parametrize(
    ("format", "dtype"), [("factorized", torch.bfloat16), ("dense", torch.float16)]
)
def test_weights_are_stored_and_loaded_in_the_given_dtype(format, dtype, tmp_path):
    model = pruned(tiny_gpt2(), dtype=dtype)
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "export", format, dtype)
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    assert {t.dtype for t in load_file(folder / "model.safetensors").values()} == {dtype}
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == str(dtype).removeprefix("torch.")
    assert model.dtype == torch.float32


@pytest.mark.parametrize("format", ["factorized", "dense"])
def test_an_export_has_the_generation_settings(format, tmp_path):
    model = pruned(tiny_gpt2())
    model.generation_config.update(max_new_tokens=7, do_sample=True, top_k=3)
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "export", format)
    loaded = AutoModelForCausalLM.from_pretrained(folder).generation_config
    assert (loaded.max_new_tokens, loaded.do_sample, loaded.top_k) == (7, True, 3)


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match="got export format 'zip', expected one of fact"):
        sieve.export(tiny_llama(), tiny_tokenizer(), tmp_path / "export", "zip")
