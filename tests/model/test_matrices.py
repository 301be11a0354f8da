"""Matrices are found by structure, and matrices with a common input by the tensor they read."""

import logging

import pytest
import torch
from models import (
    FAMILIES,
    OddBlock,
    OddConfig,
    OddForCausalLM,
    build,
    randomized,
    tiny_gemma2,
    tiny_gpt2,
    tiny_gpt_neox,
    tiny_llama,
    tiny_mixtral,
    tiny_odd,
    tiny_opt,
    tiny_phi3,
    tiny_qwen2,
)
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutput
from transformers.pytorch_utils import Conv1D

from sieve.model.matrices import (
    dense_like,
    dense_weight,
    find_matrices,
    kind_of,
    layer_of,
    unsupported,
)


def by_kind(model):
    """The matrices of the first block by kind."""
    return {m.kind: m for m in find_matrices(model) if m.layer == 0}


@pytest.mark.parametrize("family", FAMILIES)
def test_shape_and_bias_agree_with_the_layer_as_a_map_from_x_to_y(family):
    model = FAMILIES[family]()
    for matrix in find_matrices(model):
        module = model.get_submodule(matrix.name)
        y = module(torch.zeros(3, matrix.d_in))
        assert y.shape == (3, matrix.d_out)
        assert matrix.size == matrix.d_out * matrix.d_in == module.weight.numel()
        assert matrix.has_bias == bool(y.abs().sum() > 0)


def test_qwen2_has_biases_in_q_k_v_alone():
    assert {m.kind for m in find_matrices(tiny_qwen2()) if m.has_bias} == {"q", "k", "v"}


def test_grouped_query_attention_has_narrower_keys_and_values():
    kinds = by_kind(tiny_llama())
    assert (kinds["q"].d_out, kinds["k"].d_out, kinds["v"].d_out) == (32, 16, 16)


@pytest.mark.parametrize("build_model", [tiny_llama, tiny_qwen2, tiny_gemma2])
def test_q_k_v_share_a_source_and_so_do_gate_and_up(build_model):
    kinds = by_kind(build_model())
    assert kinds["k"].source == kinds["v"].source == kinds["q"].source == kinds["q"].name
    assert kinds["up"].source == kinds["gate"].source == kinds["gate"].name
    assert kinds["o"].source == kinds["o"].name
    assert kinds["down"].source == kinds["down"].name


def test_the_first_matrix_in_module_order_names_the_source():
    kinds = by_kind(tiny_opt())  # OPT lists k, v, q.
    assert kinds["q"].source == kinds["v"].source == kinds["k"].name


@pytest.mark.parametrize("build_model", [tiny_phi3, tiny_gpt2, tiny_gpt_neox])
def test_fused_matrices_read_alone(build_model):
    assert all(m.source == m.name for m in find_matrices(build_model()))


def test_parallel_blocks_share_one_source_between_attention_and_mlp():
    model = build("GPTJ", n_embd=32, n_layer=2, n_head=4, n_positions=64, rotary_dim=4)
    kinds = by_kind(model)
    assert kinds["up"].source == kinds["q"].source


@pytest.mark.parametrize("tied", [False, True])
def test_an_unknown_architecture_is_found_by_structure(tied):
    matrices = find_matrices(tiny_odd(tied))
    assert [m.name for m in matrices] == [
        f"rungs.{i}.{leaf}" for i in (0, 1) for leaf in ("alpha", "beta", "squash", "stretch")
    ]
    assert [m.kind for m in matrices[:4]] == ["alpha", "beta", "squash", "stretch"]
    assert matrices[1].source == "rungs.0.alpha"
    assert [m.has_bias for m in matrices[:4]] == [True, False, True, True]


class HeadInAList(OddForCausalLM):
    """A second output head in a list, tied to the embedding; no method returns it."""

    def forward(self, input_ids, attention_mask=None, **_):
        x = super().forward(input_ids)
        return CausalLMOutput(logits=x.logits + self.heads[0](self.table(input_ids)))


def test_a_tied_head_under_a_number_is_not_listed():
    model = randomized(HeadInAList, OddConfig())
    model.heads = nn.ModuleList([nn.Linear(32, 384, bias=False)])
    model.heads[0].weight = model.table.weight
    assert {m.name.split(".")[0] for m in find_matrices(model)} == {"rungs"}


class RewrittenInPlace(OddBlock):
    """The second layer reads the same tensor object after it was changed."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.alpha(x)
        x = x.mul_(2)
        return self.stretch(torch.tanh(self.squash(y + self.beta(x))))


def test_a_tensor_changed_in_place_is_another_input():
    model = tiny_odd()
    model.rungs[0] = RewrittenInPlace(32)
    names = {m.name: m.source for m in find_matrices(model)}
    assert names["rungs.0.beta"] == "rungs.0.beta"


class ByKeyword(OddBlock):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.stretch(input=self.squash(input=self.alpha(input=self.beta(input=x))))


def test_layers_called_with_a_keyword_are_found():
    model = tiny_odd()
    model.rungs[0] = ByKeyword(32)
    assert len(find_matrices(model)) == 8


class SkipsAndRepeats(OddBlock):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.alpha(self.alpha(x)) + self.stretch(self.squash(x))


def test_layers_not_called_exactly_once_stay_dense_and_are_named_in_one_warning(caplog):
    model = tiny_odd()
    model.rungs[0] = SkipsAndRepeats(32)
    with caplog.at_level(logging.WARNING, "sieve"):
        names = {m.name for m in find_matrices(model)}
        find_matrices(model)
    assert names & {"rungs.0.alpha", "rungs.0.beta"} == set()
    assert {"rungs.0.squash", "rungs.0.stretch"} < names
    assert len(caplog.records) == 1
    assert "rungs.0.alpha stays dense (it is called 2 times" in caplog.text
    assert "and so do rungs.0.beta" in caplog.text
    assert unsupported(model)["rungs.0.beta"].startswith("it is called 0 times")


def test_the_router_of_stacked_experts_stays_dense_without_a_warning(caplog):
    model = tiny_mixtral()
    with caplog.at_level(logging.WARNING, "sieve"):
        kinds = {m.kind for m in find_matrices(model)}
    assert kinds == {"q", "k", "v", "o", "expert_gate_up", "expert_down"}
    assert not caplog.records and not unsupported(model)


class ListedExperts(OddBlock):
    """Each token goes to one expert of a list, chosen by a linear router."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.router = nn.Linear(width, 3, bias=False)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(width, width)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        chosen, y = self.router(x).argmax(-1), torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            y[chosen == index] = expert(x[chosen == index])
        return x + y


def test_experts_in_a_list_and_their_router_stay_dense_wherever_tokens_are_routed(caplog):
    model = tiny_odd()
    model.rungs[1] = ListedExperts(32)
    for favorite in range(3):  # This expert sees every token.
        weight = torch.zeros(3, 32)
        model.rungs[1].router.weight = nn.Parameter(weight)
        model.rungs[1].router.bias = nn.Parameter(torch.eye(3)[favorite])
        names = [m.name for m in find_matrices(model)]
        assert len(names) == 8
        assert not any("expert" in name or "router" in name for name in names)
    assert "rungs.1.experts.0.0" in caplog.text


def test_a_layer_with_one_output_is_not_listed():
    model = tiny_odd()
    model.rungs[0].alpha = nn.Linear(32, 1)
    assert "rungs.0.alpha" not in {m.name for m in find_matrices(model)}


def test_a_model_without_prunable_matrix_is_refused_in_one_sentence():
    model = randomized(OddForCausalLM, OddConfig(depth=0))
    with pytest.raises(ValueError, match="OddForCausalLM has no prunable matrix.*choose") as error:
        find_matrices(model)
    assert str(error.value).count(". ") == 0


def test_finding_matrices_changes_no_mode_and_leaves_no_hook():
    model = tiny_llama().train()
    find_matrices(model)
    assert model.training and model.model.layers[0].training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_dense_weight_is_a_view_and_dense_like_builds_the_same_layer():
    x = torch.randn(4, 6, dtype=torch.float64)
    for layer in (Conv1D(5, 6).double(), nn.Linear(6, 5).double(), nn.Linear(6, 5, bias=False)):
        layer = layer.double()
        weight = dense_weight(layer)
        assert weight.shape == (5, 6) and weight.data_ptr() == layer.weight.data_ptr()
        copy = dense_like(layer, weight.clone(), layer.bias)
        assert type(copy) is type(layer)
        assert torch.equal(copy(x), layer(x))


def test_dense_weight_of_another_layer_is_refused():
    with pytest.raises(ValueError, match="got a LayerNorm, expected a Linear, Conv1D or Embedding"):
        dense_weight(nn.LayerNorm(3))


def test_the_weight_of_an_embedding_has_a_column_for_each_token():
    table = nn.Embedding(5, 3)
    assert torch.equal(dense_weight(table), table.weight.T)
    again = dense_like(table, dense_weight(table), None)
    assert isinstance(again, nn.Embedding) and torch.equal(again.weight, table.weight)


@pytest.mark.parametrize(
    ("name", "kind", "layer"),
    [
        ("model.layers.11.self_attn.q_proj", "q", 11),
        ("transformer.h.3.attn.c_proj", "o", 3),
        ("transformer.h.3.mlp.c_proj", "down", 3),
        ("transformer.h.0.self_attention.dense", "o", 0),
        ("encoder.layer.1.attention.self.query", "q", 1),
        ("encoder.layer.1.attention.output.dense", "o", 1),
        ("encoder.layer.1.intermediate.dense", "up", 1),
        ("encoder.layer.1.output.dense", "down", 1),
        ("blocks.2.mlp.0", "mlp.0", 2),
        ("blocks.2.mixer.swirl", "swirl", 2),
        ("lm_head", "lm_head", None),
    ],
)
def test_kind_and_layer_are_read_from_the_path(name, kind, layer):
    assert (kind_of(name), layer_of(name)) == (kind, layer)
