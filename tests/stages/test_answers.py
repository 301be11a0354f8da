"""With task.metric=agreement the dense model's own answers are right, and no label is read."""

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from models import tiny_llama, tiny_tokenizer
from runs import finished, make_world, run_sieve, write_rows
from sessions import session

from sieve import stages
from sieve.data.datamodule import SieveDataModule
from sieve.evaluation.evaluation import score
from sieve.stages import Run, answers
from sieve.stages.evaluate import score_test
from sieve.stages.rows import search_objective
from sieve.tasks import Example, Task
from sieve.tasks.config import ROLES
from sieve.tasks.example import NO_ANSWER
from sieve.tasks.json_rows import json_lines
from sieve.tasks.metrics import Metric
from sieve.tasks.writing import Writing

AGREEMENT = ("task.metric=agreement", "task.labels=[no,yes]")
GENERATION = ("task.metric=agreement", "task.kind=generation", "task.max_new_tokens=3")


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A tiny model, and a data set without labels."""
    make_world(tmp_path)
    for path in (tmp_path / "data").iterdir():
        write_rows(path, [{"text": row["text"]} for row in json_lines(path)])
    return tmp_path


def own_answers(run: Run, role: str) -> list[int]:
    batches = run.data.scoring_batches(run.task.splits[role])
    return score(run.backbone.model, batches).predicted.tolist()


def test_the_answers_of_every_split_are_the_dense_models(world: Path) -> None:
    with session(world, *AGREEMENT) as run:
        for role in ROLES:
            expected = own_answers(run, role)
            assert [example.answer for example in run.task.splits[role]] == expected
        assert set(own_answers(run, "test")) == {0, 1}
        assert run.task.report["answers"]["test"]["yes"] == sum(own_answers(run, "test"))


def test_labels_in_the_files_are_not_read(world: Path) -> None:
    with session(world, *AGREEMENT) as run:
        bare = run.task.splits
    for path in (world / "data").iterdir():
        write_rows(path, [row | {"label": "neither"} for row in json_lines(path)])
    with session(world, *AGREEMENT) as run:
        assert run.task.splits == bare


def test_without_labels_another_metric_names_agreement(world: Path) -> None:
    with pytest.raises(ValueError, match=r"no field 'label'.* set task\.metric=agreement\."):
        with session(world, "task.labels=[no,yes]"):
            pass


def test_the_dense_model_answers_once(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with session(world, *AGREEMENT) as run:
        splits = run.task.splits
    monkeypatch.setattr(answers, "score_test", None)
    with session(world, *AGREEMENT) as run:
        assert run.task.splits == splits and run.from_cache["answers"]


@pytest.mark.slow
def test_calibration_rows_that_no_stage_reads_are_not_answered(world: Path) -> None:
    with session(world, *AGREEMENT) as run:
        every = run.task.splits["calibration"]
    few = ("calibration.tokens=200", "recovery.tokens=100", "calibration.layers_at_once=null")
    with session(world, *AGREEMENT, *few) as run:
        some, read = run.task.splits["calibration"], run.data.calibration
        assert [row for row in every if row in some] == some
        assert run.task.report["rows"]["calibration"] == len(some) < len(every) / 2
        assert sum(batch.tokens for batch in read) >= 200
    with session(world, *AGREEMENT, *few, "recovery=full", "recovery.tokens=400") as run:
        assert len(run.task.splits["calibration"]) > len(some)
    with session(world, *AGREEMENT, *few, "calibration.rows=100") as run:
        assert len(run.task.splits["calibration"]) == 100


def test_the_dense_model_always_agrees_with_itself(world: Path) -> None:
    with session(world, *AGREEMENT) as run:
        task, backwards = run.task, dict[str, list[Example]]()
        for role in ROLES:  # As if rounding had changed every answer.
            backwards[role] = [task.with_answer(e, 1 - e.answer) for e in task.splits[role]]
        run = replace(run, task=replace(task, splits=backwards))
        assert score_test(run).accuracy == 0
        assert search_objective(run, stages.fit(run, stages.calibrate(run))).baseline.accuracy == 1


def test_a_model_that_answers_all_rows_alike_is_refused(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def alike(run: Run, data: SieveDataModule) -> SimpleNamespace:
        rows = len(data.task.splits["test"])
        return SimpleNamespace(predicted=np.ones(rows, dtype=int), not_finite=0)

    monkeypatch.setattr(answers, "score_test", alike)
    with pytest.raises(ValueError, match="answers 'yes' to all 60 rows of the selection split"):
        with session(world, *AGREEMENT):
            pass


def test_shots_are_shown_with_their_labels(world: Path) -> None:
    shots = (*GENERATION, "task.answer_field=label", "task.shots=2")
    with pytest.raises(ValueError, match="row 1 of train has no field 'label'"):
        with session(world, *shots):
            pass
    path = world / "data" / "train.jsonl"
    labels = (["no", "yes"][i % 2] for i in range(1_000))
    rows = [row | {"label": label} for row, label in zip(json_lines(path), labels, strict=False)]
    write_rows(path, rows)
    with session(world, *shots) as run:
        preamble = run.task.preamble
        shown = [r for r in rows if f"{r['text']}\nAnswer: {r['label']}\n\n" in preamble]
        assert len(shown) == 2
        assert not {"no", "yes"} & {e.references[0] for e in run.task.splits["calibration"]}


def test_a_chat_template_is_used_without_measuring_it(
    world: Path, caplog: pytest.LogCaptureFixture
) -> None:
    template = "{% for m in messages %}[user] {{ m['content'] }}{% endfor %}"
    tiny_llama(max_position_embeddings=512).save_pretrained(world / "model")
    tiny_tokenizer(model_max_length=512, chat_template=template).save_pretrained(world / "model")
    with caplog.at_level(logging.WARNING), session(world, *GENERATION) as run:
        assert run.task.chat == "always"
    assert "because task.metric=agreement reads no labels; the chat template is used" in caplog.text


def test_both_prompts_of_a_row_have_the_dense_models_answer(world: Path) -> None:
    bake = ("recovery=bake", "recovery.student_prompt='Text: {text}\\nAnswer:'")
    with session(world, *AGREEMENT, *bake) as run:
        assert run.dense_task is not None
        for role in ROLES:
            long = [example.answer for example in run.dense_task.splits[role]]
            assert [example.answer for example in run.task.splits[role]] == long
        scores = score_test(run, run.dense_data)
        assert scores.accuracy == 1


def test_a_written_answer_is_right_where_it_is_written_again(world: Path) -> None:
    with session(world, *GENERATION) as run:
        assert score_test(run).accuracy == 1
        [*_, example] = run.task.splits["test"]
        assert example.choices == (" " + example.references[0],)
        other = run.task.with_answer(example, "something else")
        test = [*run.task.splits["test"][:-1], other]
        run = replace(run, task=replace(run.task, splits=run.task.splits | {"test": test}))
        assert score_test(run).correct.tolist() == [True] * (len(test) - 1) + [False]


@pytest.mark.parametrize(
    ("written", "choice", "reference"),
    [(" so 3 #### 42", " so 3 #### 42", "42"), (" no idea", " no idea", ""), ("", NO_ANSWER, "")],
)
def test_what_is_compared_is_what_is_read_from_a_text(
    written: str, choice: str, reference: str
) -> None:
    task = Task("t", "d", Metric(), {}, {}, writing=Writing(extract=r"#### (\d+)"))
    example = task.with_answer(Example("q", ("?",), 0), written)
    assert example.choices == (" " + choice.strip(" "),)
    assert example.references == (reference,)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AGREEMENT, GENERATION])
def test_a_whole_run_needs_no_labels(world: Path, kind: tuple[str, ...]) -> None:
    result = finished(world, "bare", *kind, "tolerance=0.35", "confidence=0.9")
    assert result["metric"] == "agreement" and result["baseline"]["accuracy"] == 1
    changed = 1 - result["pruned"]["accuracy"]
    assert result["drop"]["point"] == pytest.approx(changed)
    assert 0 <= result["drop"]["low"] <= changed <= result["drop"]["high"]
    assert result["search"]["baseline_accuracy"] == 1
    assert result["seconds"]["answers"] > 0
    assert "with the dense model" in (world / "bare" / "report.html").read_text()


@pytest.mark.slow
def test_training_brings_the_pruned_models_answers_near_the_dense_models(world: Path) -> None:
    recovery = ("recovery=full", "recovery.steps=6", "recovery.check_every=3")
    result = finished(world, "trained", *AGREEMENT, *recovery, "tolerance=0.2")
    assert result["recovery"]["history"] and not result["rivals"]["trained_on_labels"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainer", "kind"), [("ddp", AGREEMENT), ("ddp", GENERATION), ("fsdp", GENERATION)]
)
def test_two_processes_answer_as_one_does(world: Path, trainer: str, kind: tuple[str, ...]) -> None:
    two = (f"trainer={trainer}", "trainer.accelerator=cpu", "trainer.devices=2")
    answers = []
    for cache, more in (("alone", ()), ("joined", two)):
        stop = (*kind, "until=fit", "batch_tokens=128", *more)
        done = run_sieve(world, world / cache, *stop, cache=cache, ranks=1 + bool(more))
        assert done.status == 0, done.stderr
        [path] = (world / cache).glob("answers-*.json")
        answers.append(path.read_text())
    assert answers[0] == answers[1]
