"""Weights in 8 bits: as near as their scales say, smaller by what is said, the same when loaded."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from models import tiny_gpt2, tiny_llama, tiny_phi3, tiny_qwen2, tiny_tokenizer
from runs import finished, make_world, run_sieve
from safetensors import safe_open
from sieved import banked, logits, mixed, uniform
from torch import nn

import sieve
from sieve.bank.genome import unneeded
from sieve.bank.switch import Switch
from sieve.config import QuantizationConfig
from sieve.factorized.modeling_layers import FactorizedLinear
from sieve.model.quantized import is_quantized, parts
from sieve.quantization import Quantized, quantize, smallest_form, stored_bytes

INT8 = QuantizationConfig("int8")
STRANGER = """
import sys
sys.modules["sieve"] = None
import torch
from transformers import AutoModelForCausalLM
ids = torch.load(sys.argv[1] + ".ids.pt")
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True, dtype="float32")
with torch.no_grad():
    torch.save(model(input_ids=ids).logits, sys.argv[1] + ".logits.pt")
"""


def switched(model: Any, level: float | None = None, **options: Any) -> tuple[Switch, list[str]]:
    """A model of wide enough factors, mixed levels by default, and the names of its matrices."""
    bank = banked(model, **options)
    switch = Switch(model, bank).to(mixed(bank) if level is None else uniform(bank, level))
    return switch, [matrix.name for matrix in bank.matrices]


def quantized(
    model: Any, level: float | None = None, **options: Any
) -> tuple[Switch, list[str], Quantized]:
    switch, names = switched(model, level, **options)
    return switch, names, quantize(model, names, INT8, torch.float32)


@pytest.mark.parametrize("storage", ["plain", "pivoted"])
def test_each_weight_is_within_half_a_step_of_what_it_was(storage: str) -> None:
    model = tiny_llama()
    _, names = switched(model, storage=storage)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    quantize(model, names, INT8, torch.float16)
    found = {k: v for k, v in model.named_parameters() if is_quantized(v)}
    assert found
    for name, weight in found.items():
        step = before[name].abs().amax(1, keepdim=True) / 127.5
        assert ((weight.dequantize() - before[name]).abs() <= step * 0.51).all(), name
    kept = {k: v for k, v in model.state_dict().items() if k not in found}
    assert all(torch.equal(value, before[name]) for name, value in kept.items())


def test_only_prunable_matrices_are_touched_and_thin_ones_stay() -> None:
    model = tiny_llama()
    _, names = switched(model)
    quantize(model, names, INT8, torch.float16)
    assert not is_quantized(model.lm_head.weight)
    assert not is_quantized(model.get_input_embeddings().weight)
    for name in names:
        layer = model.get_submodule(name)
        factors = [layer]
        if isinstance(layer, FactorizedLinear):
            factors = [layer.factor_in, layer.factor_out]
        for linear in factors:
            rows, columns = linear.weight.shape
            assert is_quantized(linear.weight) == (rows > 0 and columns > 5), name


def test_a_switch_brings_the_weights_back() -> None:
    model = tiny_qwen2()
    dense = logits(model)
    switch, names = switched(model)
    plain = logits(model)
    quantize(model, names, INT8, torch.float16)
    assert not torch.equal(logits(model), plain)
    ranks = {name: layer_rank(model, name) for name in names}
    switch.set_ranks(ranks)
    torch.testing.assert_close(logits(model), plain)
    switch.restore()
    assert torch.equal(logits(model), dense)


def layer_rank(model: nn.Module, name: str) -> int | None:
    layer = model.get_submodule(name)
    return layer.factor_in.out_features if isinstance(layer, FactorizedLinear) else None


@pytest.mark.parametrize("storage", ["plain", "pivoted"])
@pytest.mark.parametrize("build", [tiny_llama, tiny_phi3, tiny_qwen2, tiny_gpt2])
def test_an_export_is_the_model_in_memory(build: Any, storage: str, tmp_path: Path) -> None:
    model = build()
    quantized(model, storage=storage)
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "export")
    loaded, _ = sieve.load(folder)
    assert any(is_quantized(parameter) for parameter in loaded.parameters())
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=1e-5)
    again = sieve.export(loaded, tiny_tokenizer(), tmp_path / "again")
    torch.testing.assert_close(logits(sieve.load(again)[0]), logits(model), rtol=0, atol=1e-5)


def test_the_configuration_names_every_linear_that_is_not_quantized(tmp_path: Path) -> None:
    model = tiny_llama()
    _, names = switched(model)
    quantize(model, names[:5], INT8, torch.float16)
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "export")
    linears = {n: m for n, m in sieve.load(folder)[0].named_modules() if isinstance(m, nn.Linear)}
    plain = {n for n, m in linears.items() if m.weight.numel() and not is_quantized(m.weight)}
    assert len(plain) > 1 and len(plain) < len(linears)
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert set(config["modules_to_not_convert"]) == plain


def test_siblings_of_one_factor_share_it_quantized_and_loaded_again(tmp_path: Path) -> None:
    model = tiny_llama()
    _, names, found = quantized(model, 0.6, storage="pivoted", joint=True)
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "export")
    loaded, _ = sieve.load(folder)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=1e-5)
    assert found.bytes_after == on_disk(folder, names)


@pytest.mark.slow
def test_an_export_loads_where_sieve_is_absent(tmp_path: Path) -> None:
    model = tiny_llama()
    quantized(model, storage="pivoted")
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "export")
    torch.save(torch.arange(3, 27).reshape(2, 12), f"{folder}.ids.pt")
    subprocess.run([sys.executable, "-c", STRANGER, str(folder)], check=True)
    found = torch.load(f"{folder}.logits.pt", weights_only=True)
    wanted = logits(model, torch.arange(3, 27).reshape(2, 12))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("storage", ["plain", "pivoted"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_bytes_said_are_those_of_the_file(
    dtype: torch.dtype, storage: str, tmp_path: Path
) -> None:
    model = tiny_llama()
    switch, names = switched(model, storage=storage)
    ranks = {name: layer_rank(model, name) for name in names}
    bank = switch.bank
    idle = unneeded(ranks, bank.matrices)
    kept = sum(bank.sizing.kept(m, ranks[m.name]) for m in bank.matrices if m.name not in idle)
    orders = 4 * sum(
        m.d_out for m in bank.matrices if storage == "pivoted" and ranks[m.name] not in (None, 0)
    )
    assert stored_bytes(model, names, dtype) == kept * dtype.itemsize + orders
    found = quantize(model, names, INT8, dtype)
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "export", dtype=dtype)
    assert found.bytes_before == kept * dtype.itemsize + orders
    assert found.bytes_after == on_disk(folder, names) < found.bytes_before
    assert found.quantized > 0 and found.left > 0


def on_disk(folder: Path, names: list[str]) -> int:
    """Bytes of what the file holds under the names of matrices."""
    total = 0
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        for key in file.keys():
            if any(key.startswith(f"{name}.") for name in names):
                tensor = file.get_tensor(key)
                total += tensor.numel() * tensor.element_size()
    return total


def test_a_loaded_export_asks_for_gradients_of_what_is_not_quantized(tmp_path: Path) -> None:
    model = tiny_llama()
    quantized(model, storage="pivoted")
    loaded, _ = sieve.load(sieve.export(model, tiny_tokenizer(), tmp_path / "export"))
    for parameter in loaded.parameters():
        assert parameter.requires_grad != is_quantized(parameter)


def test_a_damaged_scale_is_seen_on_loading(tmp_path: Path) -> None:
    model = tiny_llama()
    quantized(model)
    weight = next(p for p in model.parameters() if is_quantized(p))
    parts(weight)[1].fill_(float("nan"))
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "export")
    with pytest.raises(ValueError, match="are not finite"):
        sieve.load(folder)


def test_four_bits_are_refused_on_a_processor_in_one_sentence() -> None:
    model = tiny_llama()
    _, names = switched(model)
    with pytest.raises(ValueError, match="needs a GPU, got a cpu; set quantization"):
        quantize(model, names, QuantizationConfig("int4"), torch.float16)


@pytest.mark.parametrize(
    ("rows", "columns", "sizes"),
    [  # Of torchao's own tensors, in bytes: bfloat16, int8, int4 in groups of 32.
        (4096, 64, (524_288, 282_624, 2_621_440)),
        (4096, 256, (2_097_152, 1_069_056, 2_621_440)),
        (4096, 512, (4_194_304, 2_117_632, 2_621_440)),
        (512, 4096, (4_194_304, 2_099_712, 1_310_720)),
        (300, 5, (3_000, 3_000, None)),
        (300, 6, (3_600, 3_300, None)),
        (7, 0, (0, 35, None)),
        (0, 7, (0, 0, None)),
    ],
)
def test_a_weight_takes_the_form_of_the_fewest_bytes(
    rows: int, columns: int, sizes: tuple[int, ...]
) -> None:
    forms = ("none", "int8", "int4")
    for method, offered in (("int8", 2), ("int4", 3)):
        known = [size for size in sizes[:offered] if size is not None]
        form = smallest_form(rows, columns, QuantizationConfig(method), torch.bfloat16)
        assert form == forms[known.index(min(known))]


def test_a_dense_layer_that_torchao_cannot_quantize_is_counted() -> None:
    model = tiny_gpt2()
    _, names, found = quantized(model)
    dense = [n for n in names if not isinstance(model.get_submodule(n), FactorizedLinear)]
    assert dense and found.quantized + found.left == len(dense) + 2 * (len(names) - len(dense))


def test_quantized_weights_are_not_taken_for_others(tmp_path: Path) -> None:
    model = tiny_llama()
    _, names, _ = quantized(model)
    with pytest.raises(ValueError, match="got a model whose weights are quantized"):
        quantize(model, names, INT8, torch.float32)
    for form in ("dense", "onnx"):
        with pytest.raises(ValueError, match="got a model whose weights are quantized"):
            sieve.export(model, tiny_tokenizer(), tmp_path / form, form)
    assert not list(tmp_path.iterdir())


def test_without_torchao_the_sentence_says_what_to_install(monkeypatch: Any) -> None:
    model = tiny_llama()
    _, names = switched(model)
    monkeypatch.setattr("sieve.quantization.is_torchao_available", lambda: False)
    with pytest.raises(ValueError, match=r"pip install 'sieve-llm\[quantization\]'"):
        quantize(model, names, INT8, torch.float16)


def test_a_run_reports_bytes_and_accuracy_and_exports_what_it_measured(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    common = ("search=uniform", "search.levels=[1,.6]", "tolerance=.9", "projection.refit=false")
    plain = finished(world, "plain", *common)
    result = finished(world, "small", *common, "quantization=int8")
    assert plain["quantization"] is None
    found = result["quantization"]
    assert found["accuracy_before"] == plain["pruned"]["accuracy"]
    assert found["accuracy_after"] == result["pruned"]["accuracy"]
    saved = found["bytes_before"] - found["bytes_after"]
    assert saved == plain["bytes"]["pruned"] - result["bytes"]["pruned"] > 0
    assert found["saved"] == pytest.approx(1 - found["bytes_after"] / found["bytes_dense"])
    model, _ = sieve.load(world / "small" / "export")
    assert sum(is_quantized(parameter) for parameter in model.parameters()) == found["quantized"]
    assert "int8" in (world / "small" / "report.html").read_text()


@pytest.mark.parametrize(
    "overrides, sentence",
    [
        (["quantization=int4"], "quantization=int4 needs a GPU"),
        (["quantization=int8", "export=dense"], "set export=factorized, or quantization=none"),
        (["quantization.method=int3"], "expected one of none, int8, int4"),
        (["quantization=int4", "quantization.group_size=48"], "expected one of 32, 64, 128, 256"),
    ],
)
def test_bad_input_gets_one_sentence(overrides: list[str], sentence: str, tmp_path: Path) -> None:
    world = make_world(tmp_path)
    done = run_sieve(world, world / "bad", *overrides)
    assert done.status == 1
    assert sentence in done.stderr and "Traceback" not in done.stderr
