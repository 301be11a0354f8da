"""Label words that the data have are used if they are clean, and else shown with what to set."""

from pathlib import Path
from typing import Any

import pytest
from task_helpers import Rows, build, make_config, message_of, write_splits

from sieve.tasks.labels import find_labels


def rows(*labels: Any, name: str = "row", count: int = 20) -> Rows:
    return [{"text": f"{name} {i}", "label": labels[i % len(labels)]} for i in range(count)]


def labels_of(**splits: Rows) -> tuple[str, ...]:
    return find_labels(make_config(labels=[]), splits)


def fault_of(**splits: Rows) -> str:
    with pytest.raises(ValueError) as caught:
        labels_of(**splits)
    return str(caught.value)


def test_clean_labels_are_sorted_and_become_the_choices(tmp_path: Path) -> None:
    train, test = rows("spam", "ham", "eggs", count=60), rows("ham", "spam", "eggs", name="t")
    task = build(write_splits(tmp_path / "data", train=train, test=test), labels=[])
    assert task.labels == ("eggs", "ham", "spam")
    assert task.splits["test"][0].choices == (" eggs", " ham", " spam")


@pytest.mark.parametrize(
    ("odd", "why"),
    [
        ("", "no label"),
        ("nan", "no label"),
        ("NaN ", "no label"),
        ("Spam", "differs from another only in case or spaces"),
        ("spam ", "differs from another only in case or spaces"),
    ],
)
def test_a_label_that_looks_like_a_mistake_is_shown_with_its_rows(odd: str, why: str) -> None:
    message = fault_of(train=rows("spam", "ham", odd, count=90), test=rows("spam", "ham", odd))
    assert f"{odd!r} (36 rows, {why})" in message and "'ham' (37 rows)" in message
    assert '"task.labels=[ham,spam]"' in message


def test_a_rare_label_is_shown() -> None:
    train = [*rows("spam", "ham"), *rows("sapm", count=4)]
    assert "'sapm' (4 rows, fewer than 5 rows)" in fault_of(train=train)
    assert labels_of(train=[*train, *rows("sapm", count=1)]) == ("ham", "sapm", "spam")


def test_too_few_rows_are_told_as_such_and_blame_no_label() -> None:
    message = fault_of(train=rows("spam", "ham", count=9))
    assert "has 9 rows for 2 labels, expected at least 5 of each" in message
    assert "mistakes" not in message


def test_a_label_of_one_split_is_shown_and_only_labels_of_calibration_are_proposed() -> None:
    message = fault_of(train=rows("positive", "negative"), test=rows("pos", "negative"))
    assert "'pos' (10 rows, only in test)" in message
    assert '"task.labels=[negative,positive]"' in message


def test_the_setting_to_copy_is_quoted_where_hydra_needs_it() -> None:
    message = fault_of(train=rows("very bad", "true", "good", "", count=40))
    assert "\"task.labels=[good,'true','very bad']\"" in message


def test_numbers_need_words_and_their_values_if_they_do_not_count_from_0(tmp_path: Path) -> None:
    from_zero = fault_of(train=rows(0, 1))
    assert "set task.labels to the words for 0, 1, in this order." in from_zero
    message = fault_of(train=rows(1, 2))
    assert "words for 1, 2, in this order" in message
    assert "\"task.label_values=['1','2']\", as they do not count from 0" in message
    assert "set task.labels, for example" in fault_of(train=rows(["a"], ["b"]))
    folder = write_splits(tmp_path / "data", train=rows(2, 1))
    assert "set \"task.label_values=['1','2']\" if the labels count from 1" in message_of(
        ValueError, folder
    )


def test_an_unknown_label_column_is_told_with_the_columns_that_there_are() -> None:
    with pytest.raises(
        ValueError, match="no field 'lable'.* it has 'text', 'label'; set task.label_f"
    ):
        find_labels(make_config(labels=[], label_field="lable"), {"train": rows("a", "b")})


def test_rows_without_labels_do_not_count_where_others_have_some() -> None:
    assert labels_of(train=rows("a", "b"), test=rows(None)) == ("a", "b")
