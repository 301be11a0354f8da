"""The short prompt of a pruned model: the same rows, and no field that carries the answer."""

from pathlib import Path
from typing import Any

import pytest
from task_helpers import Rows, make_config, rows_of, write_splits

from sieve.tasks import Task, build_task
from sieve.tasks.student import student_config, student_task, with_ending

ROLES = ("calibration", "selection", "test")
QUESTIONS = {"kind": "generation", "prompt": "Context: {context}\nQuestion: {question}\nAnswer:"}
CHOICES = {"kind": "multiple_choice", "prompt": "{question}\n{options}\nAnswer:"}


def passages(split: str, count: int = 8) -> Rows:
    return [
        {
            "context": f"In {split} {i} the river was named Ald{i} by its people.",
            "question": f"How was river {i} of {split} named?",
            "answer": f"Ald{i}",
            "hint": "Answer in one word.",
        }
        for i in range(count)
    ]


def exams(split: str) -> Rows:
    options = {"A": "red", "B": "blue"}
    return [
        {"question": f"{split} {i}?", "options": options, "answer_idx": "AB"[i % 2]}
        for i in range(8)
    ]


def dense(folder: Path, short: str, rows: Any = rows_of, **settings: Any) -> Task:
    splits = {split: rows(split) for split in ("train", "validation", "test")}
    write_splits(folder / "data", **splits)
    return build_task(make_config(folder / "data", **settings), 0, short)


def test_both_models_read_the_same_rows_in_the_same_order(tmp_path: Path) -> None:
    long = dense(tmp_path, "row", shots=2, preamble="Is it good?\n", chat="always")
    short = student_task(long)
    assert (short.chat, short.preamble) == ("never", "")
    for role in ROLES:
        assert len(short.splits[role]) == len(long.splits[role]) > 0
        for one, other in zip(short.splits[role], long.splits[role], strict=True):
            assert one.twin is other and other.prompt == long.preamble + one.prompt
            assert (one.choices, one.answer) == (other.choices, other.answer)
            assert one.content == other.content  # so that both draw and divide rows alike


def test_rows_do_not_depend_on_the_short_prompt(tmp_path: Path) -> None:
    alone = dense(tmp_path, "row", shots=2)
    config = make_config(tmp_path / "data", shots=2)
    for role, examples in build_task(config, 0).splits.items():
        assert [e.prompt for e in examples] == [e.prompt for e in alone.splits[role]]


def test_a_template_takes_the_place_of_the_prompt(tmp_path: Path) -> None:
    short = student_task(dense(tmp_path, "Text: {text}\\nMood:"))
    assert short.splits["test"][1].prompt == "Text: test text number 1\nMood:"
    config = student_config(make_config(shots=3, preamble="x"), "{text}")
    assert (config.prompt, config.shots, config.preamble, config.chat) == ("{text}", 0, "", "never")


def test_an_ending_takes_the_place_of_the_delimiter(tmp_path: Path) -> None:
    task = with_ending(student_task(dense(tmp_path, "row")), "\n")
    example = task.splits["test"][0]
    assert example.prompt.endswith("Sentiment:\n") and task.delimiter == ""
    assert example.choices == ("negative", "positive")


def test_a_passage_that_carries_the_answer_must_stay(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as error:
        dense(tmp_path, "Question: {question}\nAnswer:", passages, **QUESTIONS)
    assert "drops the field 'context', which carries the answer in 8 of 8" in str(error.value)
    assert "name {context} in recovery.student_prompt" in str(error.value)
    task = dense(tmp_path, "{context} {question}", passages, **QUESTIONS)
    assert student_task(task).splits["test"][0].prompt.startswith("In test 0")


def test_an_answer_within_a_word_is_not_carried(tmp_path: Path) -> None:
    def rows(split: str) -> Rows:
        return [row | {"answer": "na"} for row in passages(split)]  # as in "named"

    dense(tmp_path, "Question: {question}\nAnswer:", rows, **QUESTIONS)


def test_a_field_that_differs_from_row_to_row_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {**QUESTIONS, "prompt": "{hint} {context}\n{question}"}
    dense(tmp_path, "{context}\n{question}", passages, **settings)
    assert not caplog.records
    dense(tmp_path, "{hint} {context}", passages, **settings)
    [record] = caplog.records
    assert "drops the field 'question', which differs from row to row" in record.getMessage()


@pytest.mark.parametrize("style", ["letter", "text"])
def test_options_must_stay_where_the_answer_is_a_letter(tmp_path: Path, style: str) -> None:
    settings = {**CHOICES, "answer_style": style}
    if style == "text":  # The options are scored themselves.
        dense(tmp_path, "{question}", exams, **settings)
        return
    with pytest.raises(ValueError, match="drops the field 'options', which holds the options"):
        dense(tmp_path, "{question}", exams, **settings)


def test_a_field_without_which_equal_rows_have_different_answers_must_stay(tmp_path: Path) -> None:
    def pairs(split: str) -> Rows:
        return [
            {"premise": f"{split} {i // 2}", "claim": f"claim {split} {i}", "label": i % 2}
            for i in range(12)
        ]

    settings = {"prompt": "{premise} {claim}"}
    with pytest.raises(ValueError, match="drops the field 'claim', which decides the answer"):
        dense(tmp_path, "{premise}", pairs, **settings)
    dense(tmp_path, "{claim}", pairs, **settings)


def test_a_list_of_all_labels_is_no_answer(tmp_path: Path) -> None:
    def rows(split: str) -> Rows:
        return [row | {"labels": f"positive or negative ({split})"} for row in rows_of(split)]

    dense(tmp_path, "{text}", rows, prompt="{text} {labels}")

    def told(split: str) -> Rows:
        return [
            row | {"note": f"It is {['negative', 'positive'][row['label']]}."}
            for row in rows_of(split)
        ]

    with pytest.raises(ValueError, match="drops the field 'note', which carries the answer in 6"):
        dense(tmp_path, "{text}", told, prompt="{text} {note}")


def test_an_unknown_field_is_named_with_the_setting(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as error:
        dense(tmp_path, "{txt}")
    assert "row 1 of train has no field 'txt' that the prompt names" in str(error.value)
    assert "set recovery.student_prompt or ++task.fields.txt=[column]" in str(error.value)
