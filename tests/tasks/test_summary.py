"""The rows of a task are told in two lines: what they are, and what is odd about them."""

from pathlib import Path

import pytest
from task_helpers import build, rows_of, write_splits

from sieve.tasks.summary import describe_rows


def test_clean_splits_are_one_line_of_rows_and_labels(tmp_path: Path) -> None:
    splits = {name: rows_of(name, n) for name, n in (("train", 40), ("validation", 8), ("test", 6))}
    folder = write_splits(tmp_path / "data", **splits)
    assert describe_rows(build(folder)) == [
        "Rows: 40 calibration (20 negative, 20 positive), 8 selection (4 negative, 4 positive), "
        "6 test (3 negative, 3 positive)."
    ]


def test_repeated_and_contradictory_rows_are_counted(tmp_path: Path) -> None:
    train, test = rows_of("train", 40), rows_of("test", 6)
    wrong = [{**row, "label": 1 - row["label"]} for row in test[:2]]
    splits = {"train": [*train, *train[:3], *wrong], "test": [*test, test[0]]}
    folder = write_splits(tmp_path / "data", **splits, validation=rows_of("validation", 8))
    (_, remarks) = describe_rows(build(folder))
    assert remarks == (
        "Data: dropped of calibration: 2 are also in test, 3 repeat a prompt; "
        "1 test rows repeat a prompt; 5 rows have the prompt of a row with another label: check "
        "them."
    )


def test_rows_that_change_their_split_are_told(tmp_path: Path) -> None:
    folder = write_splits(tmp_path / "data", train=rows_of("train", 100))
    (rows, remarks) = describe_rows(build(folder, selection_rows=20))
    assert rows.startswith("Rows: 60 calibration") and "20 selection" in rows
    assert remarks == (
        "Data: 20 rows of 'train' are the test split, chosen by hash; 15 rows of 'train' are the "
        "selection split, chosen by hash; 5 more rows of 'train' fill up the selection split "
        "(search.rows)."
    )


@pytest.mark.parametrize("large", [False, True])  # Large data are read twice.
def test_rows_with_an_empty_text_are_counted(
    tmp_path: Path, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:
        monkeypatch.setattr("sieve.tasks.rows.LARGE_BYTES", 0)
    train = rows_of("train", 40)
    empty = [{**row, "text": text} for row, text in zip(train, ("", " \n", "\t"), strict=False)]
    folder = write_splits(
        tmp_path / "data",
        train=[*train, *empty],
        validation=rows_of("validation", 8),
        test=rows_of("test", 6),
    )
    task = build(folder)
    assert task.report["empty"] == {"text": 3}
    assert "3 rows have an empty 'text': check them" in describe_rows(task)[1]


def test_texts_of_options_are_not_listed(tmp_path: Path) -> None:
    rows = [
        {"text": f"q {i}", "options": [f"a{i}", f"b{i}"], "answer_idx": i % 2} for i in range(100)
    ]
    folder = write_splits(tmp_path / "data", train=rows)
    settings = {"kind": "multiple_choice", "answer_style": "text"}
    assert describe_rows(build(folder, **settings))[0] == (
        "Rows: 65 calibration, 15 selection, 20 test."
    )
