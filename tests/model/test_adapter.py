"""A PEFT adapter is merged once, as by hand, or refused in a sentence that names both models."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from models import tiny_gpt2, tiny_llama, tiny_llama_tied, tiny_qwen3, tiny_tokenizer
from safetensors.torch import load_file, save_file
from sieved import logits
from transformers import (
    AutoModelForSequenceClassification,
    LlamaForSequenceClassification,
    PreTrainedModel,
)

from sieve.config import ModelConfig
from sieve.model import prepared
from sieve.model.backbone import Backbone, load_backbone
from sieve.model.prepared import check_source, describe, prepare
from sieve.runtime.artifacts import Cache

peft = pytest.importorskip("peft", exc_type=ImportError)

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT's, while a test makes an adapter
MATRICES = ["q_proj", "v_proj", "down_proj"]
KINDS: dict[str, Callable[[], peft.PeftConfig]] = {
    "lora": lambda: lora(),
    "rslora": lambda: lora(use_rslora=True),
    "dora": lambda: lora(use_dora=True),
    "pissa": lambda: lora(init_lora_weights="pissa"),
    "all_linear": lambda: lora(target_modules="all-linear"),
    "loha": lambda: peft.LoHaConfig(r=4, target_modules=MATRICES),
    "lokr": lambda: peft.LoKrConfig(r=4, target_modules=MATRICES),
    "adalora": lambda: peft.AdaLoraConfig(init_r=4, total_step=10, target_modules=MATRICES),
    "ia3": lambda: peft.IA3Config(target_modules=MATRICES, feedforward_modules=["down_proj"]),
    "oft": lambda: peft.OFTConfig(oft_block_size=8, target_modules=MATRICES),
    "vera": lambda: peft.VeraConfig(r=4, target_modules=["q_proj", "o_proj"]),
    "whole_head": lambda: lora(modules_to_save=["lm_head"]),
    "norms": lambda: peft.LNTuningConfig(target_modules=["input_layernorm"]),
}


def lora(**settings) -> peft.LoraConfig:
    return peft.LoraConfig(**({"r": 4, "lora_alpha": 8, "target_modules": MATRICES} | settings))


def saved_model(folder: Path, model: PreTrainedModel) -> Path:
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def saved_adapter(
    folder: Path, model: PreTrainedModel, settings: peft.PeftConfig, name: str = "org/trained-on"
) -> torch.Tensor:
    """Write an adapter with random weights; returns the logits of the model with it."""
    settings.task_type = settings.task_type or "CAUSAL_LM"
    adapted = peft.get_peft_model(model, settings)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    adapted.peft_config["default"].base_model_name_or_path = name
    adapted.save_pretrained(folder)
    with torch.no_grad():
        return logits(adapted.eval())


def load(base: Path, adapter: Path, tmp_path: Path, **settings) -> tuple[ModelConfig, Backbone]:
    model = ModelConfig(path=str(base), adapter=str(adapter), dtype="float32", **settings)
    config = prepare(model, Cache(tmp_path / "cache"))
    return config, load_backbone(config, torch.device("cpu"))


def refused(base: Path, adapter: Path, tmp_path: Path) -> str:
    """The one-sentence error of merging an adapter."""
    with pytest.raises(ValueError) as caught:
        load(base, adapter, tmp_path)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    assert not [path for path in (tmp_path / "cache").glob("*") if path.is_dir()]
    return message


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("build", [tiny_llama, tiny_llama_tied])
def test_the_merged_model_has_the_logits_of_the_model_with_its_adapter(build, kind, tmp_path):
    base = saved_model(tmp_path / "base", build())
    dense = logits(build())
    adapted = saved_adapter(tmp_path / "adapter", build(), KINDS[kind]())
    assert not torch.allclose(adapted, dense, atol=1e-3)
    config, backbone = load(base, tmp_path / "adapter", tmp_path)
    torch.testing.assert_close(logits(backbone.model), adapted, rtol=0, atol=1e-5)
    assert config.adapter is None and backbone.name == "base-adapter"
    assert not hasattr(backbone.model, "peft_config")


@pytest.mark.parametrize("storage", [torch.bfloat16, torch.float16])
def test_merging_into_a_model_in_half_precision_rounds_nothing(storage, tmp_path):
    base = saved_model(tmp_path / "base", tiny_llama().to(storage))
    adapted = saved_adapter(tmp_path / "adapter", tiny_llama(), lora())
    _, backbone = load(base, tmp_path / "adapter", tmp_path)
    torch.testing.assert_close(logits(backbone.model), adapted, rtol=0, atol=1e-5)
    assert backbone.storage_dtype == torch.float32


def test_an_adapter_of_the_head_unties_it_from_the_embedding(tmp_path):
    base = saved_model(tmp_path / "base", tiny_llama_tied())
    settings = lora(target_modules=["lm_head"])
    adapted = saved_adapter(tmp_path / "adapter", tiny_llama_tied(), settings)
    _, backbone = load(base, tmp_path / "adapter", tmp_path)
    torch.testing.assert_close(logits(backbone.model), adapted, rtol=0, atol=1e-5)
    assert not backbone.model.config.tie_word_embeddings


def test_other_adapters_leave_tied_embeddings_tied(tmp_path):
    base = saved_model(tmp_path / "base", tiny_llama_tied())
    saved_adapter(tmp_path / "adapter", tiny_llama_tied(), lora())
    model = load(base, tmp_path / "adapter", tmp_path)[1].model
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_an_adapter_merges_into_fused_transposed_layers(tmp_path):
    base = saved_model(tmp_path / "base", tiny_gpt2())
    settings = lora(target_modules=["c_attn"], fan_in_fan_out=True)
    adapted = saved_adapter(tmp_path / "adapter", tiny_gpt2(), settings)
    _, backbone = load(base, tmp_path / "adapter", tmp_path)
    torch.testing.assert_close(logits(backbone.model), adapted, rtol=0, atol=1e-5)


def test_an_adapter_of_a_classifier_merges_into_a_classifier(tmp_path):
    config = tiny_llama().config
    config.num_labels = 3
    model = LlamaForSequenceClassification(config).eval()
    base = saved_model(tmp_path / "base", model)
    adapted = saved_adapter(tmp_path / "adapter", model, lora(task_type="SEQ_CLS"))
    config, backbone = load(base, tmp_path / "adapter", tmp_path)
    torch.testing.assert_close(logits(backbone.model), adapted, rtol=0, atol=1e-5)
    assert AutoModelForSequenceClassification.from_pretrained(config.path).num_labels == 3


def test_merging_happens_once_per_model_and_adapter(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "sieve")
    base = saved_model(tmp_path / "base", tiny_llama())
    saved_adapter(tmp_path / "adapter", tiny_llama(), lora())
    first, before = load(base, tmp_path / "adapter", tmp_path)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(file).items()}, file)
    second, after = load(base, tmp_path / "adapter", tmp_path)
    assert second.path != first.path and after.fingerprint != before.fingerprint
    monkeypatch.setattr(prepared, "merge", lambda *_: pytest.fail("merged again"))
    assert load(base, tmp_path / "adapter", tmp_path)[0].path == second.path
    assert f"The dense model is {base}, with {tmp_path / 'adapter'} merged" in caplog.text
    assert describe(ModelConfig(path=str(base))) == ""


def test_the_tokenizer_is_the_adapter_s_if_it_has_one(tmp_path):
    base = saved_model(tmp_path / "base", tiny_llama())
    saved_adapter(tmp_path / "adapter", tiny_llama(), lora())
    assert load(base, tmp_path / "adapter", tmp_path)[1].tokenizer.chat_template is None
    tiny_tokenizer(chat_template="own").save_pretrained(tmp_path / "adapter")
    assert load(base, tmp_path / "adapter", tmp_path)[1].tokenizer.chat_template == "own"


def test_an_adapter_merges_into_a_gguf_file(tmp_path):
    pytest.importorskip("gguf")
    from gguf_writer import write_gguf

    model = write_gguf(tmp_path / "tiny.gguf", kind="Q8_0")
    adapted = saved_adapter(tmp_path / "adapter", model, lora())
    config, backbone = load(tmp_path / "tiny.gguf", tmp_path / "adapter", tmp_path)
    torch.testing.assert_close(logits(backbone.model), adapted, rtol=0, atol=1e-5)
    original = ModelConfig(path=str(tmp_path / "tiny.gguf"), adapter="lora")
    assert describe(original).endswith("tiny.gguf, dequantized and with lora merged")


@pytest.mark.parametrize(
    ("trained", "reason"),
    [
        (lambda: tiny_llama(hidden_size=64), "has the shape [4, 64], and the model needs [4, 32]"),
        (lambda: tiny_llama(num_hidden_layers=3), "the model has no place for"),
        (lambda: tiny_llama(num_hidden_layers=1), "the adapter lacks"),
        (lambda: tiny_gpt2(), "Target modules"),
    ],
)
def test_an_adapter_of_another_model_is_refused_with_both_names(trained, reason, tmp_path):
    base = saved_model(tmp_path / "base", tiny_llama())
    model = trained()
    modules = ["c_attn"] if model.config.model_type == "gpt2" else MATRICES
    saved_adapter(tmp_path / "adapter", model, lora(target_modules=modules))
    said = refused(base, tmp_path / "adapter", tmp_path)
    assert reason in said and "'org/trained-on'" in said and f"'{base}'" in said


def test_a_base_of_another_name_is_taken_if_the_adapter_fits(tmp_path):
    base = saved_model(tmp_path / "base", tiny_qwen3())
    saved_adapter(tmp_path / "adapter", tiny_qwen3(), lora(), name="/elsewhere/unknown")
    assert load(base, tmp_path / "adapter", tmp_path)[1].name == "base-adapter"


@pytest.mark.parametrize(
    "settings",
    [
        lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    ],
)
def test_an_adapter_that_changes_no_weights_is_refused(settings, tmp_path):
    base = saved_model(tmp_path / "base", tiny_llama())
    peft.get_peft_model(tiny_llama(), settings()).save_pretrained(tmp_path / "adapter")
    said = refused(base, tmp_path / "adapter", tmp_path)
    assert "changes no weights, so it cannot be merged" in said


def test_an_adapter_for_another_kind_of_task_is_refused(tmp_path):
    base = saved_model(tmp_path / "base", tiny_llama())
    saved_adapter(tmp_path / "adapter", tiny_llama(), lora())
    edit(tmp_path / "adapter", task_type="SEQ_CLS")
    said = refused(base, tmp_path / "adapter", tmp_path)
    assert "task type SEQ_CLS" in said and "CAUSAL_LM" in said


def edit(adapter: Path, **settings: object) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def test_an_adapter_of_an_unknown_kind_is_refused(tmp_path):
    base = saved_model(tmp_path / "base", tiny_llama())
    saved_adapter(tmp_path / "adapter", tiny_llama(), lora())
    edit(tmp_path / "adapter", peft_type="ZORK")
    assert "ZORK" in refused(base, tmp_path / "adapter", tmp_path)


@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"peft_type": null}'])
def test_damaged_settings_are_refused(content, tmp_path):
    base = saved_model(tmp_path / "base", tiny_llama())
    saved_adapter(tmp_path / "adapter", tiny_llama(), lora())
    (tmp_path / "adapter" / "adapter_config.json").write_text(content)
    assert "adapter_config.json" in refused(base, tmp_path / "adapter", tmp_path)


@pytest.mark.parametrize("size", [0, 100, -100])
def test_damaged_weights_are_refused(size, tmp_path):
    base = saved_model(tmp_path / "base", tiny_llama())
    saved_adapter(tmp_path / "adapter", tiny_llama(), lora())
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    assert f"{file} is damaged" in refused(base, tmp_path / "adapter", tmp_path)


def test_weights_stored_as_pickle_are_refused_before_a_model_is_loaded(tmp_path, monkeypatch):
    base = saved_model(tmp_path / "base", tiny_llama())
    saved_adapter(tmp_path / "adapter", tiny_llama(), lora())
    (tmp_path / "adapter" / "adapter_model.safetensors").rename(
        tmp_path / "adapter" / "adapter_model.bin"
    )
    with pytest.raises(ValueError, match=r"only adapter_model.bin, a pickle, which can run code"):
        check_source(ModelConfig(path=str(base), adapter=str(tmp_path / "adapter")))


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file_is_named(missing, tmp_path):
    base = saved_model(tmp_path / "base", tiny_llama())
    saved_adapter(tmp_path / "adapter", tiny_llama(), lora())
    (tmp_path / "adapter" / missing).unlink()
    assert missing in refused(base, tmp_path / "adapter", tmp_path)


def test_an_adapter_as_the_model_is_told_to_be_the_adapter(tmp_path):
    saved_adapter(tmp_path / "adapter", tiny_llama(), lora())
    with pytest.raises(ValueError, match=rf"set model.adapter={tmp_path / 'adapter'}"):
        check_source(ModelConfig(path=str(tmp_path / "adapter")))
