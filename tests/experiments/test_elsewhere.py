"""A model is written in every format that README's table has, with the bytes of its weights."""

import json
from pathlib import Path

import pytest
from models import tiny_llama, tiny_tokenizer
from sieved import banked, mixed

import sieve
from experiments.claims.elsewhere import FORMS, INT8, ROWS, tables, weight_bytes, written
from sieve.config import EXPORTS

RESULT = Path(__file__).parents[2] / "experiments/results/elsewhere.json"


@pytest.mark.slow
def test_every_format_of_the_table_is_written_and_its_bytes_are_counted(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    model = tiny_llama()
    bank = banked(model)
    sieve.apply(model, bank, mixed(bank, (0.0,) * 4 + (0.5,) * 3))
    sieve.export(model, tiny_tokenizer(), tmp_path / "export")
    result = {"matrices": [{"name": matrix.name} for matrix in bank.matrices]}
    sizes = written(tmp_path, result)
    assert sizes.keys() == {*FORMS, INT8}
    assert all(sizes[name] == weight_bytes(tmp_path / name) > 0 for name in sizes)
    assert (tmp_path / "gguf/model.gguf").stat().st_size == sizes["gguf"]
    assert sizes["factorized"] < sizes["onnx"]  # in 16 and in 32 bits


def test_the_table_has_a_row_for_every_export() -> None:
    assert {form for _, _, form, _ in ROWS} == {*EXPORTS, INT8} - {"none"}
    summary = json.loads(RESULT.read_text())
    rows = tables(summary)["elsewhere"].splitlines()
    assert len(rows) == 2 + len(ROWS) and all(row.count("|") == 5 for row in rows)
    assert f"| {summary['exports']['gguf']['bytes'] / 1e6:.1f} |" in rows[5]
