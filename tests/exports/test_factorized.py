"""A factorized export is the model in memory, for transformers after `import sieve`."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from exporting import greedy, pruned
from models import FAMILIES, tiny_gpt2, tiny_llama, tiny_mixtral, tiny_odd, tiny_tokenizer
from safetensors.torch import load_file
from sieved import banked, logits, mixed, tokens, uniform
from transformers import AutoModelForCausalLM, AutoTokenizer

import sieve


@pytest.mark.parametrize("family", [*FAMILIES, "mixtral"])
def test_an_export_loads_without_missing_weights_and_computes_the_same_logits(family, exported):
    model, folder = exported(family)
    loaded, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("build", "projection", "dtype"),
    [(tiny_llama, "output", torch.float16), (tiny_gpt2, "affine", torch.bfloat16)],
)
@pytest.mark.parametrize("storage", ["plain", "pivoted"])
def test_factors_in_half_precision_are_stored_without_another_rounding(
    build, projection, dtype, storage, tmp_path
):
    model = pruned(build(), projection, dtype=dtype, storage=storage)
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "export", dtype=dtype)
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    weights = loaded.state_dict()
    for name, weight in model.state_dict().items():
        assert torch.equal(weights[name], weight), name
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=1e-5)


def test_tied_embeddings_stay_tied_and_are_stored_once(exported):
    _, folder = exported("llama_tied")
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.lm_head.weight.data_ptr() == loaded.model.embed_tokens.weight.data_ptr()
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")


def test_an_export_has_the_tokenizer(exported):
    _, folder = exported("llama")
    text = "Review: a good movie\nSentiment: positive"
    loaded = AutoTokenizer.from_pretrained(folder)
    assert loaded(text).input_ids == tiny_tokenizer()(text).input_ids


def test_factors_of_a_class_outside_of_transformers_are_refused(tmp_path):
    with pytest.raises(ValueError, match="got a OddForCausalLM.*use export=dense"):
        sieve.export(pruned(tiny_odd()), tiny_tokenizer(), tmp_path / "export")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("family", ["gpt2", "mixtral"])
def test_a_loaded_export_can_be_exported_again_in_either_format(family, tmp_path):
    model = {"gpt2": tiny_gpt2, "mixtral": tiny_mixtral}[family]()
    bank = banked(model)
    sieve.apply(model, bank, mixed(bank, (0.6, 1.0, 0.3)))
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "first")
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    for format in ("factorized", "dense"):
        path = sieve.export(loaded, tiny_tokenizer(), tmp_path / format, format)
        second = AutoModelForCausalLM.from_pretrained(path)
        torch.testing.assert_close(logits(second), logits(model), rtol=0, atol=1e-4)
    config = json.loads((tmp_path / "dense" / "config.json").read_text())
    assert config["model_type"] == model.config.model_type
    assert not {"sieve", "auto_map"} & config.keys()
    assert not (tmp_path / "dense" / "modeling_sieve.py").exists()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_export_runs_with_rank_0_in_every_matrix_and_fitted_biases(family, tmp_path):
    model = FAMILIES[family]()
    bank = banked(model, "affine")
    sieve.apply(model, bank, uniform(bank, 0.0))
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "export")
    loaded, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.isfinite(logits(loaded)).all()
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=1e-5)
    assert torch.equal(greedy(loaded, tokens()), greedy(model, tokens()))


@pytest.mark.parametrize("build", [tiny_gpt2, tiny_llama])
def test_affine_biases_are_exported_whether_or_not_the_layer_had_a_bias(build, tmp_path):
    model = build()
    bank = banked(model, "affine")
    sieve.apply(model, bank, uniform(bank, 0.6))
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "export")
    state = load_file(folder / "model.safetensors")
    assert all(f"{name}.factor_out.bias" in state for name in bank.names)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=1e-5)


def test_the_configuration_names_the_modeling_file_beside_it(exported):
    _, folder = exported("gpt2")
    config = json.loads((folder / "config.json").read_text())
    assert config["auto_map"] == {
        "AutoConfig": "modeling_sieve.SieveGPT2Config",
        "AutoModel": "modeling_sieve.SieveGPT2Model",
        "AutoModelForCausalLM": "modeling_sieve.SieveGPT2LMHeadModel",
    }
    source = Path(sieve.factorized.modeling_sieve.__file__).read_text()
    assert (folder / "modeling_sieve.py").read_text() == source


def test_factors_that_are_views_of_one_buffer_are_stored_separately(tmp_path):
    model = tiny_llama()
    bank = banked(model)
    parts = [part for f in bank.factors.values() for part in (f.u, f.v)]
    buffer = torch.cat([part.flatten() for part in parts])
    views = iter(buffer.split([part.numel() for part in parts]))
    for name, factors in bank.factors.items():
        u, v = next(views).view_as(factors.u), next(views).view_as(factors.v)
        bank.factors[name] = dataclasses.replace(factors, u=u, v=v)
    sieve.apply(model, bank, mixed(bank))
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "export")
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=1e-5)
    storages = {p.untyped_storage().nbytes() for p in loaded.parameters()}
    assert max(storages) < buffer.untyped_storage().nbytes()
