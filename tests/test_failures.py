"""A full disk, and numbers that are not finite: said in a sentence, and what was finished stays."""

import errno
import json
import logging
import math
import os
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from models import tiny_llama, tiny_tokenizer
from runs import make_world, read_result, run_sieve
from sieved import banked, tokens, uniform
from torch import Tensor

from sieve.bank.bank import BankFactors
from sieve.bank.switch import Switch
from sieve.calibration.calibration import calibrate
from sieve.calibration.faults import find_fault
from sieve.config import LoggerConfig, RecoveryConfig
from sieve.data.choices import scoring_batches
from sieve.distributed.trainer import make_trainer
from sieve.recovery.module import RecoveryModule
from sieve.recovery.recovery import numbered, recover
from sieve.runtime.artifacts import append_line, whole_lines
from sieve.search import objective as module
from sieve.search.objective import Objective
from sieve.stages.genetic import score_file
from sieve.tasks.example import Example
from sieve.tasks.scores import Scores
from sieve.tracking.logger import RunLogger

EXAMPLES = [Example(f"film {i} is", (" good", " bad"), i % 2) for i in range(8)]
WHAT_TO_DO = "could not be written .No space left on device.. Free space on its disk"


def refuse(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_line_that_does_not_fit_leaves_the_lines_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lines.jsonl"
    append_line(path, "1", sync=True)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", refuse)
        with pytest.raises(OSError, match=f"lines.jsonl {WHAT_TO_DO}"):
            append_line(path, "2", sync=True)
    assert path.read_text() == "1\n"
    append_line(path, "3", sync=True)
    assert whole_lines(path) == ["1", "3"]


def test_what_a_killed_process_left_of_a_line_goes_before_the_next(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    for left in ('{"a": 1}\n{"b"', '{"a": 1}\n' + "x" * 10_000, "y" * 10_000, ""):
        path.write_text(left)
        before = whole_lines(path)
        append_line(path, "new")
        assert whole_lines(path) == [*before, "new"] and path.read_text().endswith("new\n")
    assert whole_lines(tmp_path / "nothing") == []


def test_a_log_onto_a_full_disk_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    logger = RunLogger(tmp_path, LoggerConfig(wandb=False), {}, "title")
    with pytest.raises(OSError, match=f"metrics.jsonl {WHAT_TO_DO}"):
        logger.log_metrics({"fit/seconds": 1.0})
    logger.close(failed=True)


@pytest.mark.slow
def test_a_run_on_a_full_disk_goes_on_where_it_ended_once_there_is_room(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    ends = []
    for limit in (30_000, 100_000):  # Bytes that a file may have: less than moments, than the bank.
        done = run_sieve(world, world / "run", file_size=limit)
        assert done.status == 1 and "Traceback" not in done.stderr
        assert "could not be written" in done.stderr and "Free space on its disk" in done.stderr
        ends.append({path.name.partition("-")[0] for path in (world / "cache").iterdir()})
        assert not [path for path in world.rglob("*.partial")]
    assert "moments" not in ends[0]
    assert run_sieve(world, world / "run").status == 0
    result = read_result(world / "run")
    for stage, files in (("calibrate", {"moments", "calibration"}), ("fit", {"bank"})):
        assert result["cached"][stage] == (files <= ends[1])


def test_a_shard_goes_on_behind_half_a_line(tmp_path: Path) -> None:
    model = tiny_llama()
    bank = banked(model)
    objective = Objective(model, bank, scoring_batches(EXAMPLES, tiny_tokenizer()))
    results, path = tmp_path / "0.jsonl", tmp_path / "0.json"
    genomes = [[level] * len(bank.names) for level in (0.6, 0.3)]
    shard = {"names": bank.names, "genomes": genomes, "results": str(results)}
    path.write_text(json.dumps(shard | {"prepared": {"cost_model": None}, "limit": None}))
    score_file(objective, path)
    whole = results.read_text()
    for cut in (-1, -20):
        results.write_text(whole[:cut])
        score_file(objective, path)
        assert results.read_text() == whole


def batches() -> list[dict[str, Tensor]]:
    """Three batches; row 2 of the second has a token that no other has, in its middle."""
    made = [{"input_ids": tokens(4, 12, seed) % 300} for seed in range(3)]
    made[1]["input_ids"][2, 5] = 350
    for batch in made:
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        batch["attention_mask"][0, :4] = 0
    return made


@pytest.mark.parametrize(
    ("projection", "options"),
    [("output", {}), ("loss_aware", {}), ("loss_aware", {"answers": "sampled"})],
)
def test_a_batch_that_is_not_finite_in_calibration_is_named_with_its_rows(
    projection: str, options: dict[str, Any]
) -> None:
    model = tiny_llama()
    model.get_input_embeddings().weight[350] = float("inf")
    first = r"calibration batch 1: the activations at model.layers.0.self_attn.q_proj are not fin"
    with pytest.raises(ValueError, match=rf"{first}ite in 1 of 4 rows \(row 2, counted from 0\)"):
        calibrate(model, batches(), projection=projection, **options)
    assert not any(m._forward_hooks for m in model.modules())


def test_the_first_matrix_that_is_not_finite_is_named() -> None:
    model = tiny_llama()
    model.model.layers[1].mlp.up_proj.weight.fill_(1e38)
    with pytest.raises(ValueError, match=r"batch 0: the activations at model.layers.1.mlp.up_pro"):
        calibrate(model, batches())


def test_padding_that_is_not_finite_does_not_count() -> None:
    model, batch = tiny_llama(), batches()[0]
    logits = torch.zeros(4, 12, 8)
    logits[0, :4] = math.nan
    assert find_fault(model, [], batch, logits) is None
    logits[3, 11] = math.nan
    told = find_fault(model, [], batch, logits)
    assert told and told.startswith("the logits are not finite in 1 of 4 rows (row 3,")


def test_a_genome_with_scores_that_are_not_finite_is_infeasible_and_told_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_llama()
    bank = banked(model)

    def scripted(*_: Any) -> Scores:
        losses = np.zeros(8)
        if dense.pop() == "pruned":
            losses[3] = math.nan  # The others are all right, so that it would be feasible.
        return Scores(np.zeros(8, np.int64), np.ones(8), losses, np.zeros(8))

    dense = ["pruned", "pruned", "dense"]
    monkeypatch.setattr(module, "score", scripted)
    objective = Objective(model, bank, scoring_batches(EXAMPLES, tiny_tokenizer()), tolerance=0.5)
    found = [objective.score(uniform(bank, level)) for level in (0.6, 0.3)]
    assert [score.feasible for score in found] == [False, False]
    assert all(math.isfinite(score.margin) and math.isfinite(score.loss) for score in found)
    told = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert len(told) == 1 and "not finite on 1 of 8 rows" in told[0]


def test_factors_that_overflow_make_a_genome_infeasible_and_leave_the_model_well() -> None:
    model = tiny_llama()
    bank = banked(model)
    objective = Objective(model, bank, scoring_batches(EXAMPLES, tiny_tokenizer()), tolerance=1.0)
    name = next(name for name in bank.names if name.endswith("down_proj"))
    held = bank.factors[name]
    broken = BankFactors(held.u * math.inf, held.v, held.energy, held.mean, held.offset)
    objective.switch.replace(name, broken, 1)
    objective.switch.restore()
    found = objective.score(uniform(bank, 0.3))
    assert not found.feasible and found.divergence == pytest.approx(100)
    assert objective.score(uniform(bank, 1.0)).feasible


def test_a_dense_model_whose_scores_are_not_finite_is_refused() -> None:
    model = tiny_llama()
    bank = banked(model)
    model.get_input_embeddings().weight[tiny_tokenizer()(EXAMPLES[3].prompt).input_ids[-3]] = (
        math.nan
    )
    with pytest.raises(ValueError, match=r"on \d of 8 rows\. Load the model in another dtype"):
        Objective(model, bank, scoring_batches(EXAMPLES, tiny_tokenizer()))


@pytest.mark.parametrize("what", ["loss", "look"])
def test_a_training_that_is_not_finite_ends_with_the_best_state_so_far(
    what: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_llama()
    bank = banked(model)
    genome = uniform(bank, 0.6)
    settings = RecoveryConfig("full", steps=8, check_every=1, patience=8, learning_rate=1e-2)
    trained = RecoveryModule(Switch(model, bank, as_stored=False), genome, settings)
    loss, steps, states = trained.loss, [0], list[dict[str, Tensor]]()

    def failing(batch: Any) -> Tensor:
        steps[0] += 1
        return loss(batch) * (math.nan if what == "loss" and steps[0] == 4 else 1)

    def look() -> tuple[float, float]:
        states.append({n: p.detach().clone() for n, p in trained.trained().items()})
        accuracy = (0.5, 0.6, 0.7, 0.65, 0.9)[len(states) - 1]
        return accuracy, math.nan if what == "look" and len(states) == 5 else 0.0

    def trainer(callbacks: list[L.Callback], count: int) -> L.Trainer:
        return make_trainer({"max_steps": count, "max_epochs": -1}, callbacks)

    monkeypatch.setattr(trained, "loss", failing)
    data = [{"input_ids": tokens(4, 16, seed)} for seed in range(8)]
    result = recover(trained, numbered(data), look, trainer)
    assert steps == [4] and result.taken
    assert [entry["accuracy"] for entry in result.history] == [0.5, 0.6, 0.7, 0.65]
    for name, parameter in trained.trained().items():
        assert torch.equal(parameter, states[2][name])
    told = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert len(told) == 1 and "not finite at step 4" in told[0] and "of step 2" in told[0]
