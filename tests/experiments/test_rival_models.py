"""The rivals of a sieved model, made from the embedded model on a small task."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType as Form

from experiments import rivals
from experiments.claims import real
from experiments.claims import rivals as claim
from experiments.jobs import Job, composed
from experiments.reproduce import merged
from sieve import stages
from sieve.stages.run import Run

ROWS = ("task.max_rows.calibration=120", "task.max_rows.selection=40", "task.max_rows.test=40")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    overrides = ["+task=almanac_reviews", "model=embedded", "export=none", "confidence=null"]
    config = composed([*overrides, *(f"++{row}" for row in ROWS)], tmp_path)
    with stages.opened(config, tmp_path / "run") as opened:
        yield opened


def share(run: Run, rival: rivals.Rival) -> float:
    rows = run.task.splits["test"]
    return float(np.mean(rival.answers(rows) == np.array([row.answer for row in rows])))


def test_rivals_read_the_rows_as_the_run_does(run: Run) -> None:
    """A chat template that the task turns off changed their prompts before."""
    rows = run.task.splits["test"]
    run.backbone.tokenizer.chat_template = "{{ messages[0].content }} Zebras answer:"
    run.task = replace(run.task, chat="never")
    [batch, *_] = rivals._batches(run, rows[:1])
    ids = batch.input_ids[0, batch.attention_mask[0].bool()].tolist()
    assert "Zebras" not in run.backbone.tokenizer.decode(ids)
    assert ids == run.data.scoring_batches(rows[:1])[0].input_ids[0, -len(ids) :].tolist()


def test_classifiers_use_only_labels_and_the_dense_model_is_better(run: Run) -> None:
    dense = rivals.dense(run)
    assert share(run, dense) >= 0.95
    common = rivals.majority(run)
    assert common.bytes == 0 and 0.3 < share(run, common) < 0.7
    for maker in (rivals.words, rivals.static, rivals.probe):
        rival = maker(run)
        assert 0 < rival.bytes < dense.bytes and rival.labels >= 120
        assert share(run, rival) > 0.3


@pytest.mark.slow
def test_a_record_counts_right_answers_and_times_one_row_and_a_batch(run: Run) -> None:
    rival = rivals.dense(run)
    record = rivals.record(rival, run.task.splits["test"], 60.0)
    assert record["accuracy"] == share(run, rival)
    assert set(record["ms"]) == {"1", "32"} and record["ms"]["1"] > 0
    assert record["minutes"] == 1.0 and record["rows"] == 40


def test_eight_bits_take_about_half_of_the_bytes_and_keep_the_answers(run: Run) -> None:
    dense = rivals.dense(run).bytes
    eight = rivals.eight_bits(run)
    assert 0.4 * dense < eight.bytes < 0.7 * dense
    assert share(run, eight) >= 0.95


def test_a_gguf_form_takes_its_bits_a_weight_and_has_no_speed_of_its_own(run: Run) -> None:
    dense = rivals.dense(run)
    before = run.backbone.model.lm_head.weight.detach().clone()
    four = rivals.gguf_form(run, Form.Q4_1)
    assert 5 / 16 < four.bytes / dense.bytes < 10 / 16  # rows of 688 stay in 16 bits
    assert not torch.equal(run.backbone.model.lm_head.weight, before)
    assert rivals.record(four, run.task.splits["test"], 0.0)["ms"] == {}


def test_dropped_blocks_come_back_and_the_rest_stays_within_the_tolerance(run: Run) -> None:
    blocks = run.backbone.model.config.num_hidden_layers
    dense = rivals.dense(run)
    rival = rivals.fewer_blocks(run)
    kept = int(rival.note.split()[0])
    assert 1 <= kept <= blocks and (rival.bytes < dense.bytes) == (kept < blocks)
    assert len(run.backbone.model.base_model.layers) == blocks
    batches = rivals._batches(run, run.task.splits["selection"])
    with rivals._blocks(run.backbone.model, range(blocks)):
        assert rivals._share(run.backbone.model, batches) >= 0.9


def test_the_jobs_of_one_task_on_the_real_model_run_one_after_another() -> None:
    lanes = {job.lane for job in (*real.jobs(), *claim.jobs()) if "trec" in job.name}
    assert lanes == {"smollm2_trec"}
    assert all(job.real and job.shared for job in real.jobs())
    assert not Job("kept", (("subject", "trec"),)).real


def test_a_long_claim_keeps_committed_cells_that_were_not_measured_again() -> None:
    old = {"tasks": {"a": {"x": {"value": 1, "low": 0, "high": 2}, "y": 3}}}
    new = {"tasks": {"a": {"x": {"value": 5, "low": 4, "high": 6}}, "b": {}}}
    assert merged(old, new) == {"tasks": {"a": {"x": new["tasks"]["a"]["x"], "y": 3}, "b": {}}}
