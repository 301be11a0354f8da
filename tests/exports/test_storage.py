"""Factors are exported in the form that was asked for: the same outputs, and the bytes it says."""

from pathlib import Path

import pytest
import torch
from exporting import pruned
from models import FAMILIES, tiny_llama, tiny_tokenizer
from safetensors import safe_open
from sieved import banked, logits, mixed, uniform
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel

import sieve
from sieve.config import QuantizationConfig
from sieve.exports.storage import storage_size
from sieve.factorized.modeling_layers import FactorizedLinear
from sieve.quantization import quantize

FORMS = ("plain", "pivoted")


def weight_bytes(folder: Path) -> int:
    """Bytes of the weights in a file, without its header."""
    file = folder / "model.safetensors"
    return file.stat().st_size - 8 - int.from_bytes(file.read_bytes()[:8], "little")


def pivoted_layers(model: torch.nn.Module) -> int:
    layers = [module for module in model.modules() if isinstance(module, FactorizedLinear)]
    return sum(layer.order is not None for layer in layers)


@pytest.mark.parametrize("storage", FORMS)
@pytest.mark.parametrize("own", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_either_form_has_the_logits_of_the_model(
    family: str, own: str, storage: str, tmp_path: Path
) -> None:
    model = pruned(FAMILIES[family](), storage=own)
    expected, before = logits(model), pivoted_layers(model)
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "export", storage=storage)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert (pivoted_layers(loaded) == 0) == (storage == "plain")
    torch.testing.assert_close(logits(loaded), expected, rtol=0, atol=1e-5)
    assert pivoted_layers(model) == before and torch.equal(logits(model), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("storage", [*FORMS, None])
@pytest.mark.parametrize("own", FORMS)
@pytest.mark.parametrize("options", [{}, {"joint": True}], ids=["own", "joint"])
def test_the_bytes_said_of_either_form_are_those_on_disk(
    options: dict, own: str, storage: str | None, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = tiny_llama()
    bank = banked(model, storage=own, **options)
    sieve.apply(model, bank, mixed(bank))
    said = storage_size(model, dtype, storage)
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "a", dtype=dtype, storage=storage)
    assert said is not None and said.form == (storage or own)
    assert said.bytes[said.form] == weight_bytes(folder)
    # What is said of the form that was not written holds, too.
    [other] = {*FORMS} - {said.form}
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "b", dtype=dtype, storage=other)
    assert said.bytes[other] == weight_bytes(folder)


@pytest.mark.parametrize("storage", FORMS)
@pytest.mark.parametrize("own", FORMS)
def test_factors_that_siblings_share_stay_shared(own: str, storage: str, tmp_path: Path) -> None:
    model = tiny_llama(hidden_size=64, intermediate_size=96)
    bank = banked(model, "affine", storage=own, joint=True)
    sieve.apply(model, bank, uniform(bank, 0.6))
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "export", storage=storage)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.config.sieve["shared"]
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=1e-5)


def test_a_matrix_stays_plain_where_indices_would_take_more_than_the_form_saves(
    tmp_path: Path,
) -> None:
    model = tiny_llama()
    bank = banked(model)
    sieve.apply(model, bank, mixed(bank))
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "a", storage="pivoted")
    entry = AutoConfig.from_pretrained(folder).sieve
    assert entry["pivoted"] and {*entry["pivoted"]} < {n for n, r in entry["ranks"].items() if r}
    for name, rank in entry["ranks"].items():
        outputs = next(matrix.d_out for matrix in bank.matrices if matrix.name == name)
        assert (name in entry["pivoted"]) == (rank**2 * 4 > outputs * 4), name


def test_an_export_is_rewritten_in_the_other_form(tmp_path: Path) -> None:
    first = sieve.export(
        pruned(tiny_llama(), storage="pivoted"), tiny_tokenizer(), tmp_path / "first"
    )
    second = sieve.export(*sieve.load(first), tmp_path / "second", storage="plain")
    third = sieve.export(*sieve.load(second), tmp_path / "third", storage="pivoted")
    expected = logits(AutoModelForCausalLM.from_pretrained(first))
    for folder in (second, third):
        loaded = AutoModelForCausalLM.from_pretrained(folder)
        torch.testing.assert_close(logits(loaded), expected, rtol=0, atol=1e-5)
    with safe_open(second / "model.safetensors", "pt") as file:
        assert not any(name.endswith(".order") for name in file.keys())


def test_plain_factors_of_pivoted_ones_split_over_devices(tmp_path: Path) -> None:
    model = pruned(tiny_llama(), storage="pivoted", levels=(0.6,))
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "export", storage="plain")
    blocks = AutoModel.from_pretrained(folder)
    assert blocks.tp_plan["layers.0.self_attn.q_proj.factor_out"] == "colwise"
    assert blocks.tp_plan["layers.0.mlp.down_proj.factor_in"] == "rowwise"


def eight_bits() -> PreTrainedModel:
    model = tiny_llama()
    bank = banked(model)
    sieve.apply(model, bank, mixed(bank))
    quantize(model, bank.names, QuantizationConfig("int8"), torch.float32)
    return model


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (tiny_llama, {"storage": "zip"}, "got storage 'zip', expected one of plain, pivoted"),
        (tiny_llama, {"storage": "plain", "format": "dense"}, "use export=factorized"),
        (eight_bits, {"storage": "pivoted"}, "quantized, .*run without quantization"),
    ],
)
def test_a_form_that_cannot_be_written_is_refused(build, options, message, tmp_path) -> None:
    with pytest.raises(ValueError, match=message):
        sieve.export(build(), tiny_tokenizer(), tmp_path / "export", **options)
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize("storage", [None, "plain"])
def test_a_quantized_export_has_and_says_the_bytes_of_its_own_form(
    storage: str | None, tmp_path: Path
) -> None:
    model = eight_bits()
    said = storage_size(model, torch.float32, storage)
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "export", storage=storage)
    assert said is not None and said.bytes == {"plain": weight_bytes(folder)}


def test_a_model_without_factors_has_no_form() -> None:
    assert storage_size(tiny_llama(), torch.float32) is None
