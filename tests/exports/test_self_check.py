"""An export that a fresh process loads in its own dtype must agree with the model in memory."""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from exporting import pruned
from models import tiny_llama, tiny_odd, tiny_tokenizer
from runs import make_world, run_sieve
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel
from written import choices, texts, writer

import sieve
from sieve.config import ExportConfig
from sieve.data.generation import writing_batches
from sieve.data.scored import ScoredBatch
from sieve.exports.self_check import (
    Agreement,
    FreshProcess,
    answer_logprobs,
    check_export,
    compare,
    load_as_users_do,
    load_batches,
    save_batches,
    without_writing,
)
from sieve.model.backbone import place
from sieve.stages.export import can_check, report_agreement
from sieve.tasks import Example

CHOICES = ((" good", " bad"), (" A", " B", " C"))
ROWS = [
    Example(f"film {number} is" + " the" * (number % 5), CHOICES[number % 2], 0, references=("a",))
    for number in range(16)
]


def written(rows: Sequence[Example]) -> Sequence[ScoredBatch]:
    return without_writing(writing_batches(rows, writer(max_new_tokens=3), batch_tokens=64))


def expected_of(model: PreTrainedModel, batches: Sequence[ScoredBatch]) -> list[Tensor]:
    return [answer_logprobs(model, batch) for batch in batches]


@pytest.mark.parametrize("batches", [choices, texts, written])
def test_batches_survive_their_file_with_the_same_log_likelihoods(batches, tmp_path: Path) -> None:
    model = tiny_llama()
    save_batches(batches(ROWS), str(tmp_path / "rows"))
    loaded = load_batches(str(tmp_path / "rows"))
    for ours, theirs in zip(
        expected_of(model, batches(ROWS)), expected_of(model, loaded), strict=True
    ):
        assert torch.equal(ours, theirs) and ours.isfinite().any(1).all()


@pytest.mark.slow
def test_a_fresh_process_agrees_with_an_export_in_bfloat16_and_refuses_a_damaged_one(
    tmp_path: Path,
) -> None:
    model = pruned(tiny_llama(), storage="pivoted")
    place(model, None, torch.bfloat16)
    batches = choices(ROWS)
    expected = expected_of(model, batches)
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "export")
    with FreshProcess() as process:
        agreement = check_export(process, folder, batches, expected, model.device)
    assert (agreement.dtype, agreement.rows, agreement.not_finite) == ("bfloat16", 16, 0)
    assert agreement.different == 0 and agreement.same_answer >= 15

    path = folder / "model.safetensors"
    weights = load_file(path)
    name = next(key for key in weights if key.endswith("factor_out.weight"))
    weights[name][0, 0] = math.nan
    save_file(weights, path, metadata={"format": "pt"})
    with FreshProcess() as process, pytest.raises(RuntimeError, match="16 have numbers that are n"):
        check_export(process, folder, batches, expected, model.device)


def test_an_export_that_the_process_cannot_load_is_refused_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A process that ends as `load_as_users_do` does, without the imports that take seconds.
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nread -r request\necho 'KeyError: model_type' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(python))
    reason = r"could not be loaded in a fresh process \(KeyError: model_type\), so it was deleted"
    with FreshProcess() as process, pytest.raises(RuntimeError, match=reason):
        process.answers(tmp_path, choices(ROWS), torch.device("cpu"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises((ValueError, TypeError, KeyError)):
        load_as_users_do(tmp_path, "cpu")


def test_a_check_that_fails_leaves_no_directory_and_an_older_export(tmp_path: Path) -> None:
    def refuse(folder: Path) -> None:
        assert (folder / "model.safetensors").is_file() and (folder / "tokenizer.json").is_file()
        raise RuntimeError("no")

    path = tmp_path / "export"
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no"):
            sieve.export(pruned(tiny_llama()), tiny_tokenizer(), path, check=refuse)
        files = sorted(file.name for file in tmp_path.rglob("*.safetensors"))
        assert [file.name for file in tmp_path.iterdir()] == [path.name] * bool(files)
        sieve.export(tiny_llama(), tiny_tokenizer(), path)
    assert "lm_head.weight" in load_file(path / "model.safetensors")


def scores(rows: int = 64, seed: int = 0) -> Tensor:
    """Log-likelihoods of two choices that typically differ by two nats."""
    generator = torch.Generator().manual_seed(seed)
    return torch.log_softmax(2 * torch.randn(rows, 2, generator=generator), 1)


def noise(size: float) -> Tensor:
    return size * torch.randn(64, 2, generator=torch.Generator().manual_seed(9))


def test_rounding_is_not_a_difference_and_another_model_is() -> None:
    before = scores()
    rounded = compare([before], [before + noise(0.2)], torch.bfloat16)
    assert rounded.different == 0 and 54 <= rounded.same_answer < 64
    other = compare([before], [scores(seed=1)], torch.bfloat16)
    assert other.different > 16 and other.same_answer < 48
    # A model that prefers one choice everywhere, and one whose answers are all the other choice.
    assert compare([before], [before + torch.tensor([9.0, 0.0])], torch.bfloat16).different == 64
    assert compare([before], [before.flip(1)], torch.bfloat16).same_answer == 0


def test_single_answers_are_compared_by_their_log_likelihood() -> None:
    before = scores()[:, :1] - 3
    assert compare([before], [before + noise(0.05)[:, :1]], torch.bfloat16).different == 0
    assert compare([before], [before - 4], torch.bfloat16).different == 64


def test_rows_that_are_not_finite_are_counted_and_missing_choices_are_not() -> None:
    before = torch.cat([scores(), torch.full((64, 1), -math.inf)], 1)
    after = before.clone()
    assert compare([before], [after], torch.float32).not_finite == 0
    after[3, 1], after[7, 0] = math.nan, -math.inf
    assert compare([before], [after], torch.float32).not_finite == 2


def test_a_model_that_is_not_finite_on_one_row_is_compared_on_the_others() -> None:
    before, after = scores(), scores(seed=1)
    before[3, 1] = math.nan
    agreement = compare([before], [after], torch.float32)
    assert agreement.not_finite == 1 and agreement.different > 16


def test_answers_that_rounding_changes_are_warned_of_where_dtypes_differ(
    caplog: pytest.LogCaptureFixture,
) -> None:
    agreement = Agreement("bfloat16", 64, 0, 0, 61)
    with caplog.at_level(logging.INFO, "sieve"):
        report_agreement(agreement, torch.bfloat16)
        report_agreement(replace(agreement, same_answer=62), torch.float32)
        assert [record.levelno for record in caplog.records] == [logging.INFO] * 2
        report_agreement(agreement, torch.float32)
    assert "rounding changes 3 of 64 answers" in caplog.text
    assert "model.dtype=bfloat16" in caplog.text


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"rows": 0}, ""),
        ({"leads": False}, ""),
        ({"sharded": True}, "the model is split over ranks"),
        ({"form": "onnx_int8"}, "8-bit weights change its numbers"),
        ({"form": "gguf"}, ""),
        ({"form": "gguf", "gguf_dtype": "q8_0"}, "8-bit weights change its numbers"),
        ({"model": tiny_odd}, "transformers alone does not load OddForCausalLM"),
    ],
)
def test_an_export_that_cannot_be_compared_says_why(
    changes: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    setting = {"rows": 64, "leads": True, "sharded": False, "form": "dense", "model": tiny_llama}
    setting |= {"gguf_dtype": "auto"} | changes
    export = ExportConfig(
        setting["form"], check_rows=setting["rows"], gguf_dtype=setting["gguf_dtype"]
    )
    run: Any = SimpleNamespace(
        config=SimpleNamespace(export=export),
        backbone=SimpleNamespace(model=setting["model"]()),
        leads=setting["leads"],
        sharded=setting["sharded"],
    )
    with caplog.at_level(logging.INFO, "sieve"):
        assert can_check(run) == (not changes or changes == {"form": "gguf"})
    assert reason in caplog.text and bool(caplog.records) == bool(reason)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model and a data set, whose cache the runs share."""
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["factorized", "onnx", "gguf"])  # Each is loaded in its own way.
def test_a_run_checks_its_export_in_every_format(form: str, world: Path) -> None:
    if form in ("onnx", "gguf"):
        package = "onnxruntime" if form == "onnx" else "gguf"
        pytest.importorskip(package, reason=f"{package} is not installed")
    settings = ["projection.refit=false", "speed.enabled=false", "tolerance=.5"]
    done = run_sieve(world, world / form, f"export={form}", "export.check_rows=24", *settings)
    assert done.status == 0, done.stderr
    result = json.loads((world / form / "result.json").read_text())
    rows = {"dtype": "float32", "rows": 20, "not_finite": 0, "different": 0, "same_answer": 20}
    assert result["export"]["check"] == rows
    assert result["pruned"]["not_finite"] == result["baseline"]["not_finite"] == 0
