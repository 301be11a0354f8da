"""Labels become the right choices, and wrong labels are refused."""

from pathlib import Path
from typing import Any

import pytest
from task_helpers import make_config, message_of, rows_of, write_splits

from sieve.tasks.classification import label_index, to_example
from sieve.tasks.prompts import RowReader

WORDS = ("negative", "not sure", "positive")


@pytest.mark.parametrize(
    ("value", "index"),
    [(0, 0), (2, 2), (1.0, 1), ("2", 2), ("Not Sure", 1), (" positive ", 2), (True, 1)],
)
def test_labels_are_found_by_word_or_integer(value: Any, index: int) -> None:
    assert label_index(value, WORDS) == index


@pytest.mark.parametrize("value", [3, -1, "3", "-1", "bad", 0.5, None, [0]])
def test_other_labels_are_not_found(value: Any) -> None:
    assert label_index(value, WORDS) is None


def test_words_that_are_numbers_or_truth_values_are_matched_as_words() -> None:
    assert label_index(1, ["1", "2", "3"]) == 0
    assert label_index(True, ["true", "false"]) == 0


def test_the_data_s_names_take_precedence_over_the_words() -> None:
    assert label_index("DESC", ["entity", "description"], ["ENTY", "DESC"]) == 1


def test_a_row_becomes_an_example_with_all_labels_as_choices() -> None:
    reader = RowReader(make_config(labels=list(WORDS), delimiter=" "))
    example = to_example({"text": "good", "label": 2}, reader, WORDS, "row 1")
    assert example.prompt == "Review: good\nSentiment:"
    assert example.choices == (" negative", " not sure", " positive")
    assert example.answer == 2


def test_the_key_of_an_example_is_stable_and_depends_on_the_choices() -> None:
    reader = RowReader(make_config(labels=list(WORDS)))
    one = to_example({"text": "good", "label": 2}, reader, WORDS, "row 1")
    other = to_example({"text": "good", "label": 0}, reader, WORDS[:2], "row 1")
    assert one.key == "62683131c2790f86" and other.key != one.key


def test_a_label_out_of_range_is_named_with_its_row(tmp_path: Path) -> None:
    rows = rows_of("train")
    rows[3]["label"] = 7
    folder = write_splits(tmp_path / "data", train=rows)
    message = message_of(ValueError, folder)
    assert "row 4 of train has the label 7, expected 0 to 1 or one of negative" in message


def test_a_row_without_a_label_is_named(tmp_path: Path) -> None:
    folder = write_splits(tmp_path / "data", train=[{"text": "a"}])
    message = message_of(ValueError, folder)
    assert "row 1 of train has no field 'label' that holds the label" in message
    assert "set task.label_field" in message


@pytest.mark.parametrize("role", ["selection", "test"])
def test_a_split_of_one_class_is_refused(tmp_path: Path, role: str) -> None:
    single = [{"text": f"same {i}", "label": 1} for i in range(4)]
    name = {"selection": "validation", "test": "test"}[role]
    folder = write_splits(tmp_path / "data", **{"train": rows_of("train", 60), name: single})
    message = message_of(ValueError, folder)
    assert f"all 4 rows of the {role} split have the label 'positive'" in message


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"labels": ["yes", " yes"]}, "expected distinct words"),
        ({"labels": ["yes"]}, "expected at least two"),
        ({"labels": ["a", "b"], "label_values": ["A"]}, "got 1 label_values for 2 labels"),
        ({"kind": "regression"}, "expected one of classification, multiple_choice"),
        ({"chat": "sometimes"}, "expected one of auto, always, never"),
        ({"splits": {"train": "train"}}, "expected one of calibration, selection, test"),
        ({"max_rows": {"test": 0}}, "task.max_rows.test is 0"),
        ({"max_words": {"text": 0}}, "task.max_words.text is 0"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    assert words in message_of(ValueError, None, **settings)
