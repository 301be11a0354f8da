"""Options in every usual form become the same example."""

from pathlib import Path
from typing import Any

import pytest
from task_helpers import build, make_config, message_of, write_splits

from sieve.tasks import Example
from sieve.tasks.metrics import ACCURACY
from sieve.tasks.multiple_choice import to_example
from sieve.tasks.prompts import RowReader

PROMPT = "Q: {question}\n{options}\nA:"


def example(row: dict[str, Any], **settings: Any) -> Example:
    config = make_config(kind="multiple_choice", prompt=PROMPT, **settings)
    return to_example({"question": "q?", **row}, RowReader(config), "row 2 of test")


EXPECTED = Example("Q: q?\nA. red\nB. blue\nC. green\nA:", (" A", " B", " C"), 1)


@pytest.mark.parametrize(
    "options",
    [
        {"A": "red", "B": "blue", "C": "green"},
        {"A": "red", "B": "blue", "C": "green", "D": None},
        ["red", "blue", "green"],
        {"text": ["red", "blue", "green"], "label": ["A", "B", "C"]},
        [{"key": k, "value": v} for k, v in (("A", "red"), ("B", "blue"), ("C", "green"))],
        '{"A": "red", "B": "blue", "C": "green"}',
    ],
)
@pytest.mark.parametrize("answer", ["B", "b", 1, 1.0, "1", "blue"])
def test_every_form_of_options_and_answers_means_the_same(options: Any, answer: Any) -> None:
    assert example({"options": options, "answer_idx": answer}) == EXPECTED


def test_one_column_per_option_replaces_a_missing_options_field() -> None:
    row = {"opa": "red", "opb": "blue", "opc": "green", "cop": 1}
    settings = {"option_columns": ["opa", "opb", "opc", "opd"], "fields": {"answer_idx": ["cop"]}}
    assert example(row, **settings) == EXPECTED


def test_answer_style_text_scores_the_texts() -> None:
    row = {"options": ["red", "dark blue"], "answer_idx": "A"}
    assert example(row, answer_style="text").choices == (" red", " dark blue")


def test_the_list_of_options_follows_its_template() -> None:
    row = {"options": ["{letter}", "blue"], "answer_idx": "A"}
    found = example(row, option_template="({letter}) {text}", option_separator=r", \n")
    assert found.prompt == "Q: q?\n(A) {letter}, \n(B) blue\nA:"


def test_numbered_options_are_matched_by_their_number() -> None:
    options = {"text": ["red", "blue"], "label": ["1", "2"]}
    assert example({"options": options, "answer_idx": "1"}).answer == 0


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"answer_idx": "A"}, "has no field 'options' that holds the options"),
        ({"options": ["a", "b"]}, "has no field 'answer_idx' that holds the answer"),
        ({"options": ["a"], "answer_idx": 0}, "expected at least two"),
        ({"options": "red or blue", "answer_idx": 0}, "expected at least two"),
        ({"options": ["a", "b"], "answer_idx": "C"}, "has the answer 'C', expected one of A, B"),
        ({"options": ["a", "b"], "answer_idx": -1}, "has the answer -1"),
    ],
)
def test_an_unusable_row_is_named(row: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as caught:
        example(row)
    assert words in str(caught.value) and "row 2 of test" in str(caught.value)


def test_the_same_option_twice_is_refused_where_texts_are_scored() -> None:
    row = {"options": ["red", "red "], "answer_idx": 0}
    assert len(example(row).choices) == 2
    with pytest.raises(ValueError, match="same option twice.*task.answer_style=letter"):
        example(row, answer_style="text")


def test_rows_may_have_different_numbers_of_options(tmp_path: Path) -> None:
    rows = [
        {"question": f"q{i}", "options": dict(zip("ABCD", "wxyz"[: 2 + i % 3], strict=False))}
        | {"answer_idx": "B"}
        for i in range(30)
    ]
    folder = write_splits(tmp_path / "data", train=rows)
    task = build(folder, kind="multiple_choice", prompt=PROMPT)
    counts = {len(example.choices) for split in task.splits.values() for example in split}
    assert counts == {2, 3, 4}
    assert task.metric == ACCURACY and task.labels == ()


def test_a_missing_question_is_reported_with_the_row(tmp_path: Path) -> None:
    folder = write_splits(tmp_path / "data", train=[{"options": ["a", "b"], "answer_idx": 0}])
    message = message_of(ValueError, folder, kind="multiple_choice", prompt=PROMPT)
    assert "row 1 of train has no field 'question' that the prompt names" in message
