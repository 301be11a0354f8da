"""A run whose pruned model reads a short prompt and whose dense model reads the long one."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from models import tiny_llama, tiny_tokenizer
from runs import arguments, make_world
from transformers import AutoModelForCausalLM

import sieve
from sieve import stages
from sieve.config import Config
from sieve.conversion import CONF, register_resolvers, to_config
from sieve.evaluation.evaluation import score
from sieve.exports.lm_eval_task import pruned_task
from sieve.exports.task_file import read_task
from sieve.run import run as run_all
from sieve.stages.evaluate import score_test
from sieve.stages.rows import search_objective
from sieve.stages.run import Run

SHOTS = ("task.shots=2", "task.chat=never")
BAKE = ("recovery=bake", "search.rows=60", "recovery.steps=4", "recovery.check_every=2")
TEMPLATE = "{% for m in messages %}[user] {{ m['content'] }}\n{% endfor %}"


@pytest.fixture
def world(tmp_path: Path) -> Path:
    make_world(tmp_path)
    tiny_llama(max_position_embeddings=512).save_pretrained(tmp_path / "model")
    save_tokenizer(tmp_path)
    return tmp_path


def save_tokenizer(world: Path, **options: object) -> None:
    tiny_tokenizer(model_max_length=512, **options).save_pretrained(world / "model")


def settings(world: Path, *overrides: str) -> Config:
    register_resolvers()
    given = arguments(world, world / "run", *overrides)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return to_config(compose("config", [a for a in given if not a.startswith("hydra.")]))


@contextmanager
def session(world: Path, *overrides: str) -> Iterator[Run]:
    with stages.opened(settings(world, *overrides), world / "run") as run:
        yield run


@pytest.mark.slow
def test_the_dense_baseline_is_that_of_the_run_without_baking(world: Path) -> None:
    baselines = []
    for overrides in (SHOTS, (*SHOTS, *BAKE)):
        with session(world, *overrides) as run:
            bank = stages.fit(run, stages.calibrate(run))
            objective = search_objective(run, bank)
            test = score_test(run, run.dense_data)
            baselines.append((objective.baseline.losses.tolist(), test.losses.tolist()))
            prompts = [row.prompt for row in run.task.splits["calibration"]]
            assert (max(map(len, prompts)) < 40) == (run.dense_task is not None)
    assert baselines[0] == baselines[1]


def test_what_both_models_read_is_part_of_every_fingerprint(world: Path) -> None:
    keys = []
    for shots in (2, 3):
        with session(world, *BAKE, "task.chat=never", f"task.shots={shots}") as run:
            keys.append([run.split_key(role) for role in ("selection", "test")])
    assert not set(keys[0]) & set(keys[1])


def test_nothing_to_bake_is_said_once(world: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "sieve"), session(world, *BAKE) as run:
        assert run.dense_task is None and run.dense_data is run.data
    [record] = caplog.records
    assert "is the prompt that the dense model reads too" in record.getMessage()


def test_a_chat_template_is_for_the_dense_model_alone(world: Path) -> None:
    save_tokenizer(world, chat_template=TEMPLATE)
    with session(world, *BAKE, "task.chat=always", "task.shots=2") as run:
        assert run.dense_task is not None and run.dense_task.chat == "always"
        task = run.config.task
        assert (task.chat, task.delimiter, task.shots) == ("never", "", 0)
        assert task.prompt == "{text}\nAnswer:\n" and run.task.chat == "never"
        for row in run.task.splits["test"]:
            assert row.prompt.endswith("Answer:\n") and row.choices == ("no", "yes")


def test_a_task_for_the_harness_has_the_short_prompt(world: Path) -> None:
    config = settings(world, *SHOTS, *BAKE)
    with session(world, *SHOTS, *BAKE) as run:
        short = [row.prompt for row in run.task.splits["test"]]
    assert [row.prompt for row in pruned_task(config).splits["test"]] == short
    with pytest.raises(ValueError, match="task.chat is auto, expected always or never"):
        pruned_task(settings(world, "task.shots=2", *BAKE))


@pytest.mark.slow
def test_the_export_scores_with_its_task_file_what_the_run_says(world: Path) -> None:
    overrides = (*SHOTS, *BAKE, "tolerance=.9", "search.levels=[1,.6,.4]")
    result: dict[str, Any] = run_all(settings(world, *overrides), world / "run")
    prompt = result["prompt"]
    assert prompt["student_prompt"] == "row"
    assert 3 * prompt["pruned_tokens_per_row"] < prompt["dense_tokens_per_row"]
    assert prompt["pruned_ms_per_row"] > 0 < prompt["dense_ms_per_row"]
    export = world / "run" / "export"
    task = read_task(export)
    lines = (world / "data" / "test.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    answers = [task.config.labels.index(row["label"]) for row in rows]
    examples = [task.question(row) for row in rows]
    assert task.config.preamble == "" and all(len(e.prompt) < 40 for e in examples)
    model = AutoModelForCausalLM.from_pretrained(export)
    batches = sieve.scoring_batches(examples, tiny_tokenizer(model_max_length=512), chat="never")
    predicted = score(model, batches).predicted
    assert result["pruned"]["accuracy"] == (predicted == answers).mean()


@pytest.mark.slow
@pytest.mark.parametrize("search", ["waterfill", "evopress"])
def test_the_dense_model_is_chosen_if_no_size_answers_the_short_prompt(
    world: Path, monkeypatch: pytest.MonkeyPatch, search: str
) -> None:
    monkeypatch.setattr("sieve.search.objective.Objective._point_margin", lambda *_: -0.5)
    options = (f"search={search}", "search.evaluations=20", "search.confirmation=.5")
    with session(world, *SHOTS, *BAKE, *options) as run:
        bank = stages.fit(run, stages.calibrate(run))
        genome, _ = stages.search(run, bank)
        assert bank.kept_fraction(genome) == 1
