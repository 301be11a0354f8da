"""Exports load as blocks without a head, the form that vLLM reads."""

import json
import subprocess
import sys

import pytest
import torch
from models import FAMILIES, tiny_llama, tiny_tokenizer
from sieved import banked, mixed, tokens, uniform
from torch import distributed, nn
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

import sieve
from sieve.factorized.modeling_layers import Absent, FactorizedLinear


def in_vllm(config: PreTrainedConfig) -> PreTrainedModel:
    """The blocks as vLLM builds them."""
    AttentionInterface.register("vllm", lambda *args, **kwargs: None)
    config._attn_implementation = "vllm"
    try:
        return AutoModel.from_config(config)
    finally:
        AttentionInterface._global_mapping.pop("vllm")


def test_vllm_finds_no_linear_without_weights(exported) -> None:
    _, folder = exported("llama")
    for layer in in_vllm(AutoConfig.from_pretrained(folder)).modules():
        if isinstance(layer, FactorizedLinear):
            kind = nn.Linear if layer.factor_in.out_features else Absent
            assert isinstance(layer.factor_in, kind) and isinstance(layer.factor_out, kind)


def test_modules_in_vllm_have_a_class_for_each_choice_of_factorized_projections(exported) -> None:
    _, folder = exported("llama")
    for module in in_vllm(AutoConfig.from_pretrained(folder)).modules():
        parts = dict(module.named_children()).values()
        native = type(module).__mro__[1].__name__ == type(module).__name__
        assert native == any(isinstance(part, FactorizedLinear) for part in parts)


def test_an_entry_of_a_later_version_is_ignored(exported) -> None:
    _, folder = exported("llama")
    config = AutoConfig.from_pretrained(folder)
    config.sieve["unheard_of"] = {"x": 1}
    assert AutoModelForCausalLM.from_config(config).config.sieve["unheard_of"] == {"x": 1}


@pytest.mark.slow
def test_blocks_that_are_asked_for_first_are_blocks(exported, tmp_path) -> None:
    _, folder = exported("llama")
    first = """
import sys, torch
from transformers import AutoConfig
from transformers.dynamic_module_utils import get_class_from_dynamic_module as found
blocks = found("modeling_sieve.SieveLlamaModel", sys.argv[1])
config = AutoConfig.from_pretrained(sys.argv[1], trust_remote_code=True)
print(type(blocks.from_pretrained(sys.argv[1], config=config)).__name__)
"""
    done = subprocess.run(
        [sys.executable, "-c", first, folder], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout == "SieveLlamaModel\n", done.stderr


@pytest.mark.parametrize("family", [*FAMILIES, "mixtral"])
def test_blocks_compute_what_they_compute_below_a_head(exported, family: str) -> None:
    _, folder = exported(family)
    whole = AutoModelForCausalLM.from_pretrained(folder)
    blocks = AutoModel.from_pretrained(folder)
    name = json.loads((folder / "config.json").read_text())["auto_map"]["AutoModel"]
    assert name == f"modeling_sieve.{type(blocks).__name__}"
    with torch.no_grad():
        expected = whole.base_model(tokens()).last_hidden_state
        assert torch.equal(blocks(tokens()).last_hidden_state, expected)
    layers = [m for m in blocks.modules() if isinstance(m, FactorizedLinear)]
    assert len(layers) == sum(isinstance(m, FactorizedLinear) for m in whole.base_model.modules())


@pytest.mark.parametrize("level", [0.5, 0.0])
def test_blocks_share_the_factors_that_the_whole_model_shares(tmp_path, level: float) -> None:
    model = tiny_llama()
    bank = banked(model, storage="pivoted", joint=True)
    levels = [level if "+" in name else 0.5 for name in bank.names]
    sieve.apply(model, bank, mixed(bank, levels))
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "export")
    blocks = AutoModel.from_pretrained(folder)
    assert blocks.config.sieve["shared"]
    with torch.no_grad():
        expected = model.base_model(tokens()).last_hidden_state
        assert torch.allclose(blocks(tokens()).last_hidden_state, expected, atol=1e-5)
    in_vllm(blocks.config)  # can be built, too


def test_plain_factors_split_over_devices_as_their_matrix_does(tmp_path) -> None:
    model = tiny_llama()
    bank = banked(model)  # plain factors
    sieve.apply(model, bank, mixed(bank))
    blocks = AutoModel.from_pretrained(sieve.export(model, tiny_tokenizer(), tmp_path / "export"))
    for name in (name.removeprefix("model.") for name in blocks.config.sieve["ranks"]):
        reads = name.endswith(("o_proj", "down_proj"))
        assert blocks.tp_plan[f"{name}.factor_in"] == ("rowwise" if reads else "replicate")
        assert blocks.tp_plan[f"{name}.factor_out"] == ("replicate" if reads else "colwise")
    assert blocks.tp_plan["layers.*.self_attn.q_proj"] == "colwise"
    assert list(blocks.tp_plan)[-1] == list(tiny_llama().model.tp_plan)[-1]  # Own names come first.


def test_vllm_is_refused_what_it_cannot_split_or_replace(tmp_path, monkeypatch) -> None:
    model = tiny_llama()
    bank = banked(model, storage="pivoted")
    sieve.apply(model, bank, uniform(bank, 0.5))
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "export")
    plain = sieve.export(model, tiny_tokenizer(), tmp_path / "plain", storage="plain")
    config = AutoConfig.from_pretrained(folder)
    config.sieve["ranks"]["lm_head"] = 4
    with pytest.raises(ValueError, match="itself, and lm_head .*export.merge_head=true"):
        in_vllm(config)
    config.sieve["ranks"].pop("lm_head")
    in_vllm(config)
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="is pivoted; use .*=1, or .* export.storage=plain"):
        in_vllm(config)
    config = AutoConfig.from_pretrained(plain)
    in_vllm(config)
    config.sieve["ranks"]["model.layers.0.mlp.up_proj"] = 0
    with pytest.raises(ValueError, match="up_proj over devices: it has rank 0; use .*=1.$"):
        in_vllm(config)


def test_matrices_of_a_removed_attention_need_not_be_split(tmp_path, monkeypatch) -> None:
    model = tiny_llama()
    bank = banked(model)
    sieve.apply(model, bank, mixed(bank, (0.0, 0.0, 0.0, 0.0, 0.6, 0.6, 0.6)))
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "export")
    config = AutoConfig.from_pretrained(folder)
    assert len(config.sieve["skipped"]) == 2
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    in_vllm(config)
    config.sieve.pop("skipped")
    with pytest.raises(ValueError, match="q_proj over devices: it has rank 0"):
        in_vllm(config)
