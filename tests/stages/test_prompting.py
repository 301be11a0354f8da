"""The prompt of a task is measured on calibration rows and becomes a part of the task."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from models import tiny_llama, tiny_tokenizer
from runs import finished, make_world, run_sieve, write_rows
from sessions import session

from sieve.data.datamodule import SieveDataModule
from sieve.evaluation.evaluation import score
from sieve.stages import Run, opening, prompting
from sieve.stages.prompting import Prompt, Trial, describe, record_of
from sieve.tasks import Task, build_task
from sieve.tasks.metrics import ACCURACY, Metric
from sieve.tasks.scores import Scores

TEMPLATE = (
    "{% for m in messages %}[user] {{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %} [assistant]{% endif %}"
)
BOTH = ("task.shots=auto",)
ALONE = SimpleNamespace(broadcast=lambda value: value)  # the strategy of a trainer
Accuracy = Callable[[Task], int]  # right rows with the prompts of a task


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A tiny model with a chat template, and a data set of two labels."""
    make_world(tmp_path)
    tiny_llama(max_position_embeddings=512).save_pretrained(tmp_path / "model")
    save_tokenizer(tmp_path, chat_template=TEMPLATE)
    return tmp_path


def save_tokenizer(world: Path, **options: object) -> None:
    tiny_tokenizer(model_max_length=512, **options).save_pretrained(world / "model")


def chosen(world: Path, *overrides: str) -> tuple[str, int | str]:
    with session(world, *overrides) as run:
        assert (run.task.chat, run.task.report["prompt"]["shots"]) == (  # type: ignore[index]
            run.config.task.chat,
            run.config.task.shots,
        )
        return run.config.task.chat, run.config.task.shots


def of(right: int, rows: int = 100, metric: Metric = ACCURACY, worth: float = 1.0) -> Scores:
    """Scores of rows of which the first `right` have the value `worth` and the others 0."""
    values = np.where(np.arange(rows) < right, worth, 0.0)
    return Scores(np.zeros(rows, int), values, np.zeros(rows), metric=metric)


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> Callable[[Accuracy], list[Task]]:
    """Replace scoring by a function of the task; returns the tasks that are scored."""

    def fake(accuracy: Accuracy) -> list[Task]:
        tasks = list[Task]()

        def score_test(run: Run, data: SieveDataModule) -> Scores:
            tasks.append(data.task)
            return of(accuracy(data.task), len(data.task.splits["test"]))

        monkeypatch.setattr(prompting, "score_test", score_test)
        return tasks

    return fake


def shots_of(task: Task) -> int:
    return task.preamble.count("\n\n")


@pytest.mark.parametrize(
    ("right", "taken"),
    [
        ([80, 63], 0),
        ([63, 80], 1),
        ([80, 80], 0),  # a tie: the cheaper one
        ([80, 81], 0),  # one row more is noise
        ([0, 0, 5], 2),
        ([70, 80, 81, 81], 1),  # the cheapest of those that are as good as the best
    ],
)
def test_the_cheapest_prompt_within_a_standard_error_of_the_best_is_taken(right, taken) -> None:
    trials = [Trial(Prompt("never", i), of(count), float(i)) for i, count in enumerate(right)]
    record = record_of(trials)
    assert record["shots"] == taken and record["rows"] == 100
    assert [trial["accuracy"] for trial in record["tried"]] == [count / 100 for count in right]


def test_a_prompt_that_wins_as_many_rows_as_it_loses_is_not_better() -> None:
    first, second = of(50), of(50)
    second.values[:] = np.roll(second.values, 48)  # 48 rows won, 48 lost
    second.values[-1] = 1.0
    record = record_of([Trial(Prompt("never", 0), first, 1), Trial(Prompt("always", 0), second, 2)])
    assert record["chat"] == "never"
    error = record["tried"][0]["behind_error"]
    assert error == pytest.approx(np.sqrt(((second.values - first.values) ** 2).sum()) / 100)


def test_the_sentence_says_what_was_measured_and_taken() -> None:
    bare, chat = Prompt("never", 0), Prompt("always", 0)
    assert describe(record_of([Trial(bare, of(80), 1), Trial(chat, of(63), 2)])) == (
        "the bare prompt is right on 80 of 100 rows, the chat template on 63; the bare prompt is "
        "used."
    )
    shots = [Trial(Prompt("never", n), of(right), n) for n, right in ((0, 79), (2, 90), (4, 91))]
    assert describe(record_of([*shots, Trial(chat, of(60), 9)])) == (
        "the bare prompt is right on 79 of 100 rows (90 with 2 shots, 91 with 4), the chat "
        "template on 60; the bare prompt with 2 shots is used: longer ones are not better by more "
        "than one standard error."
    )
    f1 = [Trial(p, of(40, 50, Metric("f1"), 0.5), i) for i, p in enumerate((bare, chat))]
    assert describe(record_of(f1)) == (
        "the bare prompt has f1 0.400 on 50 rows, the chat template 0.400; the bare prompt is used."
    )


@pytest.mark.slow
def test_what_is_measured_is_what_a_task_with_that_prompt_scores(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured, score_test = dict[str, None](), prompting.score_test

    def spy(run: Run, data: SieveDataModule) -> Scores:
        measured.update(dict.fromkeys(row.content for row in data.task.splits["test"]))
        return score_test(run, data)

    monkeypatch.setattr(prompting, "score_test", spy)
    with session(world, *BOTH) as run:
        record: Any = run.task.report["prompt"]
        assert len(record["tried"]) == 8 and record["rows"] == len(measured) == 100
        for trial in record["tried"]:
            prompt = {"chat": trial["chat"], "shots": trial["shots"]}
            task = build_task(replace(run.config.task, **prompt))
            rows = [row for row in task.splits["calibration"] if row.content in measured]
            scores = score(run.backbone.model, run.data.reader.scoring(task, rows, 4096))
            assert (int(scores.correct.sum()), len(rows)) == (trial["right"], 100)


@pytest.mark.slow
def test_rows_that_are_shots_are_not_measured(world: Path, scored) -> None:
    tasks = scored(lambda task: 0)
    assert chosen(world, *BOTH) == ("never", 0)
    assert sorted(shots_of(task) for task in tasks) == [0, 0, 2, 2, 4, 4, 8, 8]
    contents = [[e.content for e in task.splits["test"]] for task in tasks]
    assert all(rows == contents[0] for rows in contents), "all prompts on the same rows"
    most = max(tasks, key=shots_of)
    assert not any(content in most.preamble for content in contents[0])


@pytest.mark.slow
def test_the_choice_is_the_prompt_of_the_whole_run(world: Path, scored, caplog) -> None:
    scored(lambda task: 90 if (task.chat, shots_of(task)) == ("always", 2) else 50)
    caplog.set_level(logging.INFO, "sieve")
    with session(world, *BOTH) as run:
        assert (run.config.task.chat, run.config.task.shots) == ("always", 2)
        direct = build_task(run.config.task, run.config.seed)
        assert run.task.splits == direct.splits and run.task.preamble == direct.preamble
        assert run.data.task is run.task and run.task.chat == "always"
        key = run.split_key("calibration")
    assert "task.chat=auto task.shots=auto: the bare prompt is right on 50 of 100" in caplog.text
    assert "the chat template with 2 shots is used." in caplog.text
    with session(world, "task.chat=always", "task.shots=2") as run:
        assert run.split_key("calibration") == key, "as if the user had set it"


@pytest.mark.slow
def test_a_measured_prompt_is_not_measured_again(world: Path, scored) -> None:
    tasks = scored(lambda task: 90 if task.chat == "always" else 50)
    assert chosen(world) == ("always", 0) and len(tasks) == 2
    assert chosen(world, "tolerance=.1", "calibration.tokens=100") == ("always", 0)
    assert len(tasks) == 2
    for other in ("seed=1", "model.dtype=bfloat16", "task.prompt='{text} is'", "task.delimiter=''"):
        before = len(tasks)
        chosen(world, other)
        assert len(tasks) == before + 2, other


@pytest.mark.slow
def test_a_setting_that_is_given_is_not_measured(world: Path, scored) -> None:
    tasks = scored(lambda task: 50)
    assert chosen(world, "task.chat=always", "task.shots=4") == ("always", 4) and not tasks
    assert chosen(world, "task.shots=4") == ("never", 4) and len(tasks) == 2
    assert {shots_of(task) for task in tasks} == {4}
    tasks.clear()
    assert chosen(world, "task.chat=always", *BOTH) == ("always", 0)
    assert {task.chat for task in tasks} == {"always"} and len(tasks) == 4


def test_without_a_chat_template_there_is_nothing_to_measure(world: Path, scored) -> None:
    save_tokenizer(world)
    (world / "model" / "chat_template.jinja").unlink()
    tasks = scored(lambda task: 50)
    assert chosen(world) == ("never", 0) and not tasks


def test_a_text_is_never_templated(world: Path, scored) -> None:
    tasks = scored(lambda task: 50)
    assert chosen(world, "task.kind=perplexity", "task.prompt='{text}'") == ("never", 0)
    assert not tasks


def test_few_rows_give_few_shots(world: Path, scored) -> None:
    tasks = scored(lambda task: 0)
    assert chosen(world, *BOTH, "task.max_rows.calibration=7") == ("never", 0)
    assert {shots_of(task) for task in tasks} == {0, 2}
    assert {len(task.splits["test"]) for task in tasks} == {5}


@pytest.mark.slow
def test_a_prompt_that_exceeds_the_context_is_not_tried(world: Path, scored) -> None:
    rows = [{"text": f"{i} " + "the movie " * 60, "label": ["no", "yes"][i % 2]} for i in range(40)]
    write_rows(world / "data" / "train.jsonl", rows)
    tasks = scored(lambda task: 100 * shots_of(task))
    assert chosen(world, *BOTH) == ("never", 2)
    assert {shots_of(task) for task in tasks} == {0, 2}


@pytest.mark.slow
def test_streaming_uses_the_template_without_loading_the_model(
    world: Path, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    monkeypatch.setattr(opening, "load_backbone", lambda *_: pytest.fail("the model was loaded"))
    assert chosen(world, *BOTH, "calibration.strategy=stream") == ("always", 0)
    assert "task.chat=auto task.shots=auto is not measured" in caplog.text
    assert "the chat template is used" in caplog.text


def test_tasks_that_are_mixed_in_or_tested_too_have_prompts_of_their_own(
    world: Path, scored
) -> None:
    for name in ("mixed", "tested"):
        for split, count in (("train", 30), ("validation", 9), ("test", 9)):
            rows = [
                {"text": f"{name} {split} {i}", "label": ["no", "yes"][i % 2]} for i in range(count)
            ]
            write_rows(world / name / f"{split}.jsonl", rows)
    scored(lambda task: 30 if (task.chat == "always") == ("mixed" in str(task.splits)) else 0)
    others = (
        "+task@calibration.mix.other=jsonl",
        f"calibration.mix.other.data_dir={world / 'mixed'}",
        "+task@also.third=jsonl",
        f"also.third.data_dir={world / 'tested'}",
    )
    with session(world, *others) as run:
        assert run.task.chat == "never"
        assert [task.chat for task, _ in run.data.mix] == ["never", "always"]
        assert run.others["third"].task.chat == "never"
        prompts: Any = run.task.report["other_prompts"]
        chats = {name: record["chat"] for name, record in prompts.items()}
        assert chats == {"calibration.mix.other": "always", "also.third": "never"}
        assert set(run.seconds) == {
            "prompt",
            "prompt of calibration.mix.other",
            "prompt of also.third",
        }


def test_every_process_gets_a_batch(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = list[int]()

    def score_test(run: Run, data: SieveDataModule) -> Scores:
        batches.append(len(data.scoring("test")))
        return of(0, len(data.task.splits["test"]))

    monkeypatch.setattr(prompting, "score_test", score_test)
    with session(world, "task.chat=never") as run:
        joined: Any = replace(run, trainer=SimpleNamespace(world_size=7, strategy=ALONE))
        rows = run.task.splits["calibration"][:9]
        prompting._measure(joined, {Prompt("never", 0): replace(run.task, splits={"test": rows})})
    assert batches[0] >= 7


@pytest.mark.slow
def test_the_result_and_the_export_say_which_prompt_was_used(world: Path) -> None:
    result = finished(world, "run", "tolerance=.5", "projection.refit=false", *BOTH)
    prompt = result["data"]["prompt"]
    task = json.loads((world / "run" / "export" / "task.json").read_text())["task"]
    assert task["chat"] == prompt["chat"] and task["shots"] == 0
    assert task["preamble"].count("\n\n") == prompt["shots"]
    assert prompt["sentence"] in (world / "run" / "report.html").read_text()
    assert not result["cached"]["prompt"]


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["ddp", "fsdp"])
def test_two_processes_measure_the_same_as_one(world: Path, trainer: str) -> None:
    ranks = (f"trainer={trainer}", "trainer.accelerator=cpu", "trainer.devices=2")
    options = ("until=fit", "batch_tokens=1000", *BOTH)
    for name, more, count in (("alone", (), 1), ("joined", ranks, 2)):
        done = run_sieve(world, world / name, *options, *more, cache=name, ranks=count)
        assert done.status == 0, done.stderr
    alone, joined = (
        json.loads(next((world / name).glob("prompt-*")).read_text())
        for name in ("alone", "joined")
    )
    for one, two in zip(alone["tried"], joined["tried"], strict=True):
        assert one == pytest.approx(two)
