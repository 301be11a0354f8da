"""A GGUF export computes what the pruned model does, and is smaller by what was removed."""

import math

import pytest
import torch
from exporting import greedy
from gguf_samples import ARCHITECTURES, FIVE, MODELS, PARTS, without
from models import tiny_gpt2, tiny_llama, tiny_llama_tied, tiny_qwen3, tiny_tokenizer
from sieved import banked, logits, mixed, tokens, uniform

import sieve
from sieve.exports.gguf_architecture import check_removals
from sieve.exports.gguf_size import GgufSettings, gguf_size
from sieve.factorized.modeling_layers import FactorizedLinear

gguf = pytest.importorskip("gguf")
TEXT = "the movie, a question: yes"
ANY_SIZE = GgufSettings(allow_larger=True)


def fields(folder):
    reader = gguf.GGUFReader(folder / "model.gguf")
    return {key: field.contents() for key, field in reader.fields.items()}


def tensors(folder):
    return {t.name: t for t in gguf.GGUFReader(folder / "model.gguf").tensors}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_file_computes_what_the_model_does(name, tmp_path):
    model = MODELS[name]()
    before = logits(model)
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "export", "gguf", gguf=ANY_SIZE)
    assert torch.equal(logits(model), before), "the model in memory is unchanged"
    loaded, tokenizer = sieve.load(folder)
    torch.testing.assert_close(logits(loaded), before, rtol=0, atol=3e-5)
    ids = tokens(2, 9)
    assert torch.equal(greedy(loaded, ids), greedy(model, ids))
    assert tokenizer(TEXT).input_ids == tiny_tokenizer()(TEXT).input_ids
    architecture = ARCHITECTURES.get(name, "deci")
    assert fields(folder)["general.architecture"] == architecture
    assert gguf_size(model, ANY_SIZE, torch.float32).architecture == architecture


def test_layers_of_the_file_have_the_shapes_that_pruning_left(tmp_path):
    folder = sieve.export(MODELS["llama, without parts"](), tiny_tokenizer(), tmp_path, "gguf")
    settings, stored = fields(folder), tensors(folder)
    assert settings["deci.block_count"] == 4
    assert settings["deci.attention.head_count"] == [1, 4, 4, 0]
    assert settings["deci.attention.head_count_kv"] == [1, 2, 2, 0]
    assert settings["deci.feed_forward_length"] == [48, 1, 48, 48]
    # llama.cpp drops the attention of a layer without an MLP, and a bias of a removed attention.
    assert {name for name in stored if name.endswith("bias")} == {
        "blk.0.attn_output.bias",
        "blk.1.ffn_down.bias",
        "blk.2.ffn_down.bias",
    }
    for name in ("blk.0.attn_q.weight", "blk.0.attn_output.weight", "blk.1.ffn_up.weight"):
        assert not stored[name].data.any()


def test_constants_of_removed_parts_are_the_biases(tmp_path):
    model = MODELS["llama, without parts"]()
    folder = sieve.export(model, tiny_tokenizer(), tmp_path, "gguf")
    stored, layers = tensors(folder), model.model.layers
    first, second = layers[0].self_attn.o_proj, layers[1].mlp.down_proj
    third = layers[2].self_attn.o_proj.factor_out.bias + layers[2].mlp.down_proj.factor_out.bias
    expected = {
        "blk.0.attn_output.bias": first.factor_out.bias,
        "blk.1.ffn_down.bias": second.factor_out.bias + third,
        "blk.2.ffn_down.bias": layers[4].self_attn.o_proj.factor_out.bias,
    }
    for name, bias in expected.items():
        torch.testing.assert_close(torch.from_numpy(stored[name].data.copy()), bias)


def test_the_file_shrinks_by_the_removed_parameters(tmp_path):
    dense, model = tiny_llama_tied(**FIVE), without(tiny_llama_tied(**FIVE), PARTS)
    whole = sieve.export(dense, tiny_tokenizer(), tmp_path / "whole", "gguf", gguf=ANY_SIZE)
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "export", "gguf")
    heads, width = 2 * 32 * 32 + 2 * 32 * 16, 3 * 32 * 48  # parameters of an attention, an MLP
    # Three attentions and two MLPs less, norms of two blocks less, and what holds constants.
    removed = 3 * heads + 2 * width + 3 * 32 - (4 * 8 * 32 + 3 * 32 + 3 * 32)
    stored = [sum(int(t.n_bytes) for t in tensors(f).values()) for f in (whole, folder)]
    assert stored[0] - stored[1] == 4 * removed
    size = gguf_size(model, GgufSettings(), torch.float32)
    assert (size.dense_bytes, size.bytes) == tuple(stored) and size.merged == 0


def test_the_size_of_the_file_on_disk_follows_what_was_removed(tmp_path):
    wide = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 8} | FIVE
    parts = (("down", 0), ("down", 2), ("o", 2), ("o", 4))
    models = {"whole": tiny_llama(**wide), "small": without(tiny_llama(**wide), parts)}
    parameters = [sum(p.numel() for p in model.parameters()) for model in models.values()]
    sizes = [
        (
            sieve.export(model, tiny_tokenizer(), tmp_path / name, "gguf", gguf=ANY_SIZE)
            / "model.gguf"
        )
        .stat()
        .st_size
        for name, model in models.items()
    ]
    removed = 4 * (parameters[0] - parameters[1])
    assert sizes[0] - sizes[1] == pytest.approx(removed, rel=0.02)


def test_factors_alone_are_refused_with_the_figures(tmp_path):
    model = tiny_llama(hidden_size=64, intermediate_size=96)
    bank = banked(model)
    sieve.apply(model, bank, uniform(bank, 0.3))
    dense = sum(p.numel() for p in tiny_llama(hidden_size=64, intermediate_size=96).parameters())
    kept = sum(p.numel() for p in model.parameters())
    with pytest.raises(ValueError) as caught:
        sieve.export(model, tiny_tokenizer(), tmp_path / "export", "gguf")
    message = str(caught.value)
    assert f"would have {4 * dense / 1e6:,.1f} MB" in message and "14 of them" in message
    assert f"export=factorized ({4 * kept / 1e6:,.1f} MB)" in message
    assert "export.allow_larger=true" in message and list(tmp_path.iterdir()) == []
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "export", "gguf", gguf=ANY_SIZE)
    torch.testing.assert_close(logits(sieve.load(folder)[0]), logits(model), rtol=0, atol=1e-4)
    assert any(isinstance(module, FactorizedLinear) for module in model.modules())


def test_tokens_that_left_the_vocabulary_count_as_removed():
    model = tiny_llama()
    assert gguf_size(model, ANY_SIZE, torch.float16).bytes == (
        gguf_size(model, GgufSettings(removed=3200), torch.float16).dense_bytes - 6400
    )


@pytest.mark.parametrize(
    ("dtype", "kind", "error"),
    [("float16", "F16", 0), ("bfloat16", "BF16", 0), ("q8_0", "Q8_0", 0.1)],
)
def test_matrices_have_the_dtype_that_was_asked_for(dtype, kind, error, tmp_path):
    model = without(tiny_llama(**FIVE), PARTS)
    settings = GgufSettings(dtype=dtype)
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "export", "gguf", gguf=settings)
    stored = tensors(folder)
    assert stored["blk.1.attn_q.weight"].tensor_type.name == kind
    assert stored["blk.1.ffn_down.bias"].tensor_type.name == "F32"
    # A row of 48 numbers is no whole number of blocks.
    assert stored["blk.0.ffn_down.weight"].tensor_type.name == kind.replace("Q8_0", "F16")
    size = sum(int(tensor.n_bytes) for tensor in stored.values())
    assert size == gguf_size(model, settings, torch.float32).bytes
    loaded, _ = sieve.load(folder, dtype="float32")
    difference = (logits(loaded) - logits(model)).abs().max() / logits(model).abs().max()
    # The tiny weights are exact in 16 bits.
    assert difference < max(error, 1e-5) and (not error or difference > 1e-4)


def test_numbers_that_float16_cannot_hold_are_refused(tmp_path):
    model = tiny_llama()
    model.lm_head.weight[0, 0] = 1e5
    settings = GgufSettings(dtype="float16", allow_larger=True)
    with pytest.raises(ValueError, match=r"output\.weight has numbers .*gguf_dtype=bfloat16"):
        sieve.export(model, tiny_tokenizer(), tmp_path / "export", "gguf", gguf=settings)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (tiny_gpt2, "got a GPT2LMHeadModel, expected one of LlamaForCausalLM"),
        (lambda: tiny_llama(hidden_act="gelu"), "activation gelu, expected silu"),
        (
            lambda: tiny_llama(
                rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
            ),
            "rotary positions of type 'dynamic'",
        ),
        (lambda: without(tiny_qwen3(**FIVE), PARTS), "qwen3 holds none.*export=factorized"),
    ],
)
def test_a_model_that_llama_cpp_cannot_hold_is_refused(build, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        sieve.export(build(), tiny_tokenizer(), tmp_path / "export", "gguf")


def test_what_a_search_must_not_remove_of_a_qwen3_is_said_before_it():
    with pytest.raises(ValueError, match="one shape and no biases.*set export=factorized"):
        check_removals(tiny_qwen3(), structural=True, removes=True)
    assert "ends without an export" in check_removals(tiny_qwen3(), structural=False, removes=True)
    assert check_removals(tiny_qwen3(), structural=False, removes=False) == ""
    for other in (tiny_llama(), tiny_gpt2()):  # GPT-2 is refused elsewhere.
        assert check_removals(other, structural=True, removes=True) == ""


def test_an_unknown_dtype_is_refused(tmp_path):
    with pytest.raises(ValueError, match="dtype 'q4_k', expected one of auto, float32"):
        settings = GgufSettings(dtype="q4_k")
        sieve.export(tiny_llama(), tiny_tokenizer(), tmp_path / "export", "gguf", gguf=settings)


def test_a_damaged_file_is_named(tmp_path):
    model = without(tiny_llama(**FIVE), PARTS)
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "export", "gguf")
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="model.gguf or a file beside it is damaged"):
        sieve.load(folder)


def test_a_file_that_is_cut_off_is_named(tmp_path):
    model = without(tiny_llama(**FIVE), PARTS)
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "export", "gguf")
    path = folder / "model.gguf"
    for content in (path.read_bytes()[:900], b"GGUF" + bytes(3), b"something else"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="model.gguf or a file beside it is damaged"):
            sieve.load(folder)


def test_end_tokens_are_those_of_the_model(tmp_path):
    model = without(tiny_llama(**FIVE), PARTS)
    model.generation_config.eos_token_id = [2, 7]
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "export", "gguf")
    assert sieve.load(folder)[0].generation_config.eos_token_id == [2, 7]


def test_the_context_ends_where_the_sliding_window_does(tmp_path):
    model = MODELS["mistral, without parts"]()
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "export", "gguf")
    assert fields(folder)["deci.context_length"] == 64
    assert math.isclose(fields(folder)["deci.rope.freq_base"], 10000.0)


def test_the_file_alone_loads_too_and_an_older_export_is_replaced(tmp_path):
    model = without(tiny_llama(**FIVE), PARTS)
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "export", "gguf")
    again = sieve.export(model, tiny_tokenizer(), folder, "gguf")
    loaded, _ = sieve.load(again / "model.gguf", dtype="bfloat16")
    assert loaded.dtype == torch.bfloat16


def test_mixed_ranks_without_removed_parts_stay_factors_in_the_size():
    model = tiny_llama()
    bank = banked(model, storage="pivoted")
    genome = mixed(bank, (0.6, 1.0, 0.3))
    sieve.apply(model, bank, genome)
    size = gguf_size(model, ANY_SIZE, torch.float32)
    assert size.factored_bytes == 4 * sum(p.numel() for p in model.parameters())
    assert size.bytes == size.dense_bytes
