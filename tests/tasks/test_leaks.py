"""A column of the prompt that contains the answer of nearly every row is refused."""

from pathlib import Path
from typing import Any

import pytest
from task_helpers import Rows, build, message_of, write_splits

WORDS = ("negative", "positive")


def write(folder: Path, text: str, share: float = 1.0) -> Path:
    """Rows of two classes whose text is `text` in a share of the rows, with {word} and {label}."""

    def row(split: str, i: int) -> dict[str, Any]:
        plain = i >= share * 60
        filled = "plain" if plain else text.format(word=WORDS[i % 2], label=i % 2)
        return {"text": f"{split} {i}: {filled}", "hint": filled, "label": i % 2}

    splits: dict[str, Rows] = {
        split: [row(split, i) for i in range(60)] for split in ("train", "validation", "test")
    }
    return write_splits(folder / "data", **splits)


def test_a_column_with_the_label_word_is_refused(tmp_path: Path) -> None:
    message = message_of(ValueError, write(tmp_path, "it is {word}."))
    assert "the column 'text' of the prompt contains the answer in 60 of 60" in message


def test_a_copy_of_the_label_column_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, "{label}")
    assert "column 'hint'" in message_of(ValueError, folder, prompt="{text} {hint}")


@pytest.mark.parametrize(
    ("text", "share"), [("it is {word}.", 0.9), ("negative or positive", 1.0), ("{word}ly", 1.0)]
)
def test_texts_that_do_not_tell_the_answer_of_nearly_all_rows_are_accepted(
    tmp_path: Path, text: str, share: float
) -> None:
    assert build(write(tmp_path, text, share)).splits["test"]


def test_a_question_answered_by_its_context_is_no_leak_but_a_copied_answer_is(
    tmp_path: Path,
) -> None:
    rows = [{"text": f"It was city {i}.", "copy": f"city {i}", "a": f"city {i}"} for i in range(80)]
    folder = write_splits(tmp_path / "data", train=rows)
    settings = {"kind": "generation", "answer_field": "a"}
    assert build(folder, prompt="{text}?", **settings).splits["test"]
    assert "column 'copy'" in message_of(ValueError, folder, prompt="{text} {copy}?", **settings)
