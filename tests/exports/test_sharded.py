"""An export of a model that is sharded over ranks has the same bytes as of the whole model."""

import json
from pathlib import Path

import pytest
import torch
from models import tiny_gpt2, tiny_llama, tiny_llama_tied, tiny_mixtral, tiny_tokenizer
from ranked import on_ranks, position, sharded
from sieved import banked, logits, mixed
from transformers import AutoModelForCausalLM

from sieve.bank.bank import Bank
from sieve.bank.switch import Switch
from sieve.exports import sharded as sharded_export
from sieve.exports.export import export
from sieve.factorized.modeling_layers import FactorizedLinear

FAMILIES = {"llama": tiny_llama, "tied": tiny_llama_tied, "gpt2": tiny_gpt2, "moe": tiny_mixtral}
LEVELS = (0.6, 1.0, 0.3)  # Level 0 needs biases, which a dense Llama lacks.


def exported(family: str, bank: Bank, folder: Path, form: str, file_bytes: int) -> None:
    sharded_export.FILE_BYTES = file_bytes
    written(sharded(FAMILIES[family]()), bank, folder, form)


def exported_by_rank_0(family: str, bank: Bank, folder: Path, file_bytes: int) -> int:
    sharded_export.FILE_BYTES = file_bytes
    held = torch.device("cpu" if position()[0] == 0 else "meta")
    model = sharded(FAMILIES[family]())
    with Switch(model, bank, held=held).to(mixed(bank, LEVELS)):
        layers = [m for m in model.modules() if isinstance(m, FactorizedLinear)]
        numbers = [tensor for m in layers for tensor in m.state_dict().values()]
        export(model, tiny_tokenizer(), folder, "factorized", torch.bfloat16)
        return sum(tensor.numel() for tensor in numbers if not tensor.is_meta)


def written(model, bank: Bank, folder: Path, form: str) -> None:
    with Switch(model, bank).to(mixed(bank, LEVELS)):
        export(model, tiny_tokenizer(), folder, form, torch.bfloat16)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "form", "world"),
    [
        ("llama", "factorized", 4),
        ("tied", "dense", 2),
        ("gpt2", "dense", 2),
        ("moe", "factorized", 2),
    ],
)
def test_ranks_write_the_same_files_as_one_process(tmp_path, family, form, world):
    model = FAMILIES[family]()
    bank = banked(model, storage="pivoted" if family == "llama" else "plain")
    written(model, bank, tmp_path / "alone", form)
    on_ranks(exported, world, family, bank, tmp_path / "sharded", form, 10**9)
    assert files_of(tmp_path / "sharded") == files_of(tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.parametrize(("family", "storage"), [("llama", "pivoted"), ("moe", "plain")])
def test_only_rank_0_needs_the_numbers_of_factors(tmp_path, family, storage):
    model = FAMILIES[family]()
    bank = banked(model, "affine", storage=storage)
    written(model, bank, tmp_path / "alone", "factorized")
    held = on_ranks(exported_by_rank_0, 2, family, bank, tmp_path / "sharded", 10**9)
    assert files_of(tmp_path / "sharded") == files_of(tmp_path / "alone")
    assert held[0] > 0 and held[1] == 0


@pytest.mark.slow
def test_a_large_model_is_written_in_files_of_a_bounded_size(tmp_path):
    model, limit = tiny_llama_tied(), 40_000
    bank = banked(model)
    on_ranks(exported, 2, "tied", bank, tmp_path / "sharded", "factorized", limit)
    files = list((tmp_path / "sharded").glob("model-*.safetensors"))
    assert len(files) > 1 and all(file.stat().st_size < limit + 4096 for file in files)
    index = json.loads((tmp_path / "sharded/model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {file.name for file in files}
    assert "lm_head.weight" not in index["weight_map"]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "sharded", dtype=torch.float32)
    with Switch(model, bank).to(mixed(bank, LEVELS)):
        torch.testing.assert_close(logits(loaded), logits(model), rtol=0.1, atol=0.1)


def refusals(bank: Bank, folder: Path) -> list[str]:
    model, messages = sharded(tiny_mixtral()), []
    for form in ("dense", "onnx"):
        with pytest.raises(ValueError) as error:
            written(model, bank, folder, form)
        messages.append(str(error.value))
    return messages


@pytest.mark.slow
def test_formats_that_need_a_whole_model_are_refused_and_leave_nothing(tmp_path):
    for dense, graph in on_ranks(refusals, 2, banked(tiny_mixtral()), tmp_path / "sharded"):
        assert "use export=factorized" in dense and "trainer=cpu" in dense
        assert "use export=factorized or export=dense" in graph
    assert not list(tmp_path.iterdir())
