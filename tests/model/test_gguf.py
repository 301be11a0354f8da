"""A GGUF file is dequantized once, into a checkpoint with its numbers, or refused in a sentence."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from models import tiny_gpt2, tiny_llama, tiny_llama_tied, tiny_tokenizer
from sieved import logits
from transformers import AutoModelForCausalLM

from sieve.config import ModelConfig
from sieve.model import prepared
from sieve.model.backbone import load_backbone
from sieve.model.checkpoint_files import find_model
from sieve.model.prepared import check_source, describe, prepare
from sieve.runtime.artifacts import Cache

pytest.importorskip("gguf")
pytest.importorskip("accelerate", reason="transformers reads GGUF with accelerate")
from gguf_writer import CHAT, write_gguf  # noqa: E402


def loaded(path: Path, folder: Path, **settings):
    model = ModelConfig(path=str(path), dtype="float32", **settings)
    config = prepare(model, Cache(folder / "cache"))
    return config, load_backbone(config, torch.device("cpu"))


def refused(path: Path | str, folder: Path) -> str:
    """The one-sentence error of loading a path."""
    with pytest.raises(ValueError) as caught:
        loaded(Path(path), folder)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    return message


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("F32", "bfloat16"), ("F16", "bfloat16"), ("Q8_0", "float32"), ("Q4_1", "float32")],
)
def test_a_file_gives_the_logits_of_its_dequantized_weights(kind, dtype, tmp_path):
    model = write_gguf(tmp_path / "tiny.gguf", kind=kind)
    config, backbone = loaded(tmp_path / "tiny.gguf", tmp_path)
    torch.testing.assert_close(logits(backbone.model), logits(model), rtol=0, atol=1e-5)
    # The tiny weights are exact in bfloat16 until they are quantized.
    assert backbone.storage_dtype == getattr(torch, dtype)
    assert backbone.name == "tiny.gguf" and config.path.startswith(str(tmp_path / "cache"))


def test_float16_weights_that_bfloat16_would_round_stay_float16(tmp_path):
    model = tiny_llama(intermediate_size=64)
    model.lm_head.weight[0, 0] = 1 + 2**-10
    write_gguf(tmp_path / "tiny.gguf", model, kind="F16")
    assert loaded(tmp_path / "tiny.gguf", tmp_path)[1].storage_dtype == torch.float16


def test_the_tokenizer_and_its_chat_template_come_from_the_file_alone(tmp_path):
    write_gguf(tmp_path / "tiny.gguf")
    tiny_tokenizer(chat_template="another").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    tokenizer = loaded(tmp_path, tmp_path)[1].tokenizer
    text = "the review: a good movie, no?"
    assert tokenizer(text)["input_ids"] == tiny_tokenizer()(text)["input_ids"]
    assert tokenizer.chat_template == CHAT and tokenizer.eos_token == "<eos>"


def test_the_checkpoint_loads_in_transformers_and_is_not_called_quantized(tmp_path):
    model = write_gguf(tmp_path / "tiny.gguf", tiny_llama_tied(intermediate_size=64), kind="Q8_0")
    config, backbone = loaded(tmp_path / "tiny.gguf", tmp_path)
    assert not hasattr(backbone.model.config, "quantization_config")
    again = AutoModelForCausalLM.from_pretrained(config.path, dtype="float32")
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=1e-5)
    assert again.lm_head.weight is again.model.embed_tokens.weight


def test_a_file_is_dequantized_once_wherever_it_lies(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "sieve")
    write_gguf(tmp_path / "tiny.gguf")
    first, _ = loaded(tmp_path / "tiny.gguf", tmp_path)
    (tmp_path / "other").mkdir()
    shutil.copy(tmp_path / "tiny.gguf", tmp_path / "other")
    monkeypatch.setattr(prepared, "load_model", lambda *_: pytest.fail("read again"))
    again, _ = loaded(tmp_path / "other", tmp_path)
    assert again.path == first.path
    said = [record.message for record in caplog.records if "The dense model is" in record.message]
    assert len(said) == 2 and all("dequantized, stored in" in line for line in said)


def test_another_file_of_the_same_name_is_another_model(tmp_path):
    write_gguf(tmp_path / "tiny.gguf")
    first, before = loaded(tmp_path / "tiny.gguf", tmp_path)
    write_gguf(tmp_path / "tiny.gguf", kind="Q8_0")
    second, after = loaded(tmp_path / "tiny.gguf", tmp_path)
    assert first.path != second.path and before.fingerprint != after.fingerprint


def test_a_failure_leaves_no_checkpoint_behind(tmp_path, monkeypatch):
    write_gguf(tmp_path / "tiny.gguf")
    monkeypatch.setattr(type(tiny_tokenizer()), "save_pretrained", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        loaded(tmp_path / "tiny.gguf", tmp_path)
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_safetensors_are_preferred_to_a_gguf_file_beside_them(tmp_path):
    model = tiny_gpt2()
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    write_gguf(tmp_path / "tiny.gguf")
    config, backbone = loaded(tmp_path, tmp_path)
    assert config.path == str(tmp_path) and type(backbone.model) is type(model)
    assert describe(config) == ""


def test_several_files_are_listed(tmp_path):
    for name in ("a.gguf", "b.gguf"):
        write_gguf(tmp_path / name)
    said = refused(tmp_path, tmp_path)
    assert "2 GGUF files (a.gguf, b.gguf)" in said and f"{tmp_path / 'a.gguf'}" in said


def test_a_part_of_a_split_model_is_to_be_joined_first(tmp_path):
    for part in (1, 2):
        write_gguf(tmp_path / f"m-0000{part}-of-00002.gguf")
    for path in (tmp_path, tmp_path / "m-00002-of-00002.gguf"):
        assert "llama-gguf-split --merge m-00001-of-00002.gguf" in refused(path, tmp_path)
    write_gguf(tmp_path / "whole-00001-of-00001.gguf")
    assert loaded(tmp_path / "whole-00001-of-00001.gguf", tmp_path)


def test_an_architecture_that_transformers_does_not_know_is_named(tmp_path):
    write_gguf(tmp_path / "tiny.gguf", architecture="zork")
    said = refused(tmp_path / "tiny.gguf", tmp_path)
    assert "architecture zork" in said and "set model.path to the same model in safetensors" in said


@pytest.mark.parametrize("size", [3, 40, 4000, -500])
def test_a_truncated_file_is_refused(size, tmp_path):
    file = tmp_path / "tiny.gguf"
    write_gguf(file)
    file.write_bytes(file.read_bytes()[:size])
    assert str(file) in refused(file, tmp_path)


def test_a_file_without_some_weights_is_refused(tmp_path):
    file = tmp_path / "tiny.gguf"
    model = tiny_llama(intermediate_size=64)
    del model.model.layers[1].mlp.up_proj.weight
    write_gguf(file, model)
    assert "model.layers.1.mlp.up_proj.weight are missing" in refused(file, tmp_path)


def test_something_else_with_the_name_of_a_gguf_file_is_refused_before_it_is_read(tmp_path):
    (tmp_path / "fake.gguf").write_text("<html>")
    with pytest.raises(ValueError, match="does not begin like a GGUF file"):
        find_model(str(tmp_path / "fake.gguf"))


def test_a_file_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match="no such directory or GGUF file"):
        check_source(ModelConfig(path="absent.gguf"))


def test_numbers_that_transformers_leaves_out_are_said(tmp_path, caplog):
    write_gguf(tmp_path / "tiny.gguf", extra={"rope_freqs.weight": np.ones(4, np.float32)})
    loaded(tmp_path / "tiny.gguf", tmp_path)
    assert "does not read 4 numbers of tiny.gguf" in caplog.text
