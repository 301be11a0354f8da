"""Rows without labels are read beside the splits and share no prompt with them."""

import logging
from pathlib import Path

import pandas as pd
import pytest
from task_helpers import build, make_config, message_of, rows_of, write_jsonl, write_splits

from sieve.tasks import build_task
from sieve.tasks.student import student_task


def texts(*numbers: int) -> list[dict[str, str]]:
    return [{"text": f"unlabelled text number {number}"} for number in numbers]


def folder_with(tmp_path: Path, rows: list[dict[str, str]]) -> Path:
    names = ("train", "validation", "test")
    return write_splits(tmp_path / "data", **{n: rows_of(n) for n in names}, unlabelled=rows)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv"])
def test_rows_without_labels_are_read_from_any_format(tmp_path: Path, suffix: str) -> None:
    folder = folder_with(tmp_path, [])
    (folder / "unlabelled.jsonl").unlink()
    frame = pd.DataFrame(texts(1, 2))
    if suffix == "csv":
        frame.to_csv(folder / "unlabelled.csv", index=False)
    elif suffix == "json":
        frame.to_json(folder / "unlabelled.json", orient="records")
    else:
        write_jsonl(folder / "unlabelled.jsonl", texts(1, 2))
    task = build(folder)
    assert [example.prompt for example in task.unlabelled] == [
        "Review: unlabelled text number 1\nSentiment:",
        "Review: unlabelled text number 2\nSentiment:",
    ]
    assert {example.choices for example in task.unlabelled} == {(" negative", " positive")}
    assert task.report["unlabelled"] == 2


def test_the_splits_are_the_same_with_and_without_unlabelled_rows(tmp_path: Path) -> None:
    names = ("train", "validation", "test")
    alone = write_splits(tmp_path / "alone", **{n: rows_of(n) for n in names})
    assert build(folder_with(tmp_path, texts(1, 2))).splits == build(alone).splits
    assert build(alone).unlabelled == []


def test_prompts_of_a_split_and_repeated_prompts_are_dropped(tmp_path: Path) -> None:
    scored = [{"text": rows_of(name)[0]["text"]} for name in ("train", "validation", "test")]
    task = build(folder_with(tmp_path, [*scored, *texts(1, 1, 2)]))
    contents = [example.content for example in task.unlabelled]
    assert len(contents) == len(set(contents)) == 2
    assert not set(contents) & {e.content for rows in task.splits.values() for e in rows}


def test_shots_precede_unlabelled_prompts_too(tmp_path: Path) -> None:
    task = build(folder_with(tmp_path, texts(1)), shots=2)
    assert task.preamble and task.unlabelled[0].prompt.startswith(task.preamble)


def test_the_options_of_unlabelled_questions_are_their_choices(tmp_path: Path) -> None:
    def rows(name: str, count: int) -> list[dict[str, object]]:
        return [
            {"question": f"{name} {i}?", "options": ["up", "down"], "answer_idx": i % 2}
            for i in range(count)
        ]

    folder = write_splits(
        tmp_path / "data",
        **{name: rows(name, 4) for name in ("train", "validation", "test")},
        unlabelled=[{"question": "new?", "options": ["left", "right", "on"]}],
    )
    task = build(folder, kind="multiple_choice", prompt="{question}\n{options}\nAnswer:")
    [example] = task.unlabelled
    assert example.choices == (" A", " B", " C")


def test_a_pruned_model_reads_the_short_prompt_of_unlabelled_rows(tmp_path: Path) -> None:
    config = make_config(folder_with(tmp_path, texts(1)), preamble="Read this. ")
    task = student_task(build_task(config, student_prompt="row"))
    [example] = task.unlabelled
    assert example.prompt == "Review: unlabelled text number 1\nSentiment:"
    assert example.twin is not None and example.twin.prompt.startswith("Read this. ")


def test_a_kind_without_choices_warns_that_the_file_is_not_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        task = build(folder_with(tmp_path, texts(1)), kind="perplexity", prompt="{text}")
    assert task.unlabelled == []
    assert "unlabelled.jsonl is not read" in caplog.text


def test_faulty_files_of_unlabelled_rows_are_errors(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, [])
    assert "delete the file" in message_of(ValueError, folder)
    write_jsonl(folder / "unlabelled.jsonl", [{"words": "no text"}])
    assert "row 1 of unlabelled.jsonl" in message_of(ValueError, folder)
