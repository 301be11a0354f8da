"""Exports load as blocks without a head, the form that vLLM reads."""

import json

import pytest
import torch
from models import FAMILIES, tiny_llama, tiny_tokenizer
from sieved import banked, mixed, tokens, uniform
from torch import distributed, nn
from transformers import AttentionInterface, AutoConfig, AutoModel, AutoModelForCausalLM

import sieve
from sieve.factorized.modeling_layers import Absent, FactorizedLinear


@pytest.mark.parametrize("family", FAMILIES)
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
    for layer in layers:
        kind = nn.Linear if layer.factor_in.out_features else Absent
        assert isinstance(layer.factor_in, kind) and isinstance(layer.factor_out, kind)


def test_blocks_share_the_factors_that_the_whole_model_shares(tmp_path) -> None:
    model = tiny_llama()
    bank = banked(model, storage="pivoted", joint=True)
    sieve.apply(model, bank, uniform(bank, 0.5))
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "export")
    blocks = AutoModel.from_pretrained(folder)
    assert blocks.config.sieve["shared"]
    with torch.no_grad():
        expected = model.base_model(tokens()).last_hidden_state
        assert torch.allclose(blocks(tokens()).last_hidden_state, expected, atol=1e-5)


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
    monkeypatch.setitem(AttentionInterface._global_mapping, "vllm", lambda *args, **kwargs: None)
    config = AutoConfig.from_pretrained(folder)
    config._attn_implementation = "vllm"
    config.sieve["ranks"]["lm_head"] = 4
    with pytest.raises(ValueError, match="lm_head itself, .*projection.prune_head=false"):
        AutoModel.from_config(config)
    config.sieve["ranks"].pop("lm_head")
    AutoModel.from_config(config)
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="pivoted or have rank 0; use tensor_parallel_size=1"):
        AutoModel.from_config(config)
    config.sieve["pivoted"] = []
    AutoModel.from_config(config)
