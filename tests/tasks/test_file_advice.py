"""What a file that cannot be read must become."""

from pathlib import Path

import pytest
from task_helpers import message_of


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("reviews.tsv", "rename it to .csv, whose separator is found."),
        ("reviews.xlsx", "save it as CSV in UTF-8."),
        ("reviews.txt", "set task.data_dir."),
    ],
)
def test_a_file_of_another_kind_is_told_what_it_must_become(
    tmp_path: Path, name: str, advice: str
) -> None:
    (tmp_path / name).write_text("text\tlabel\n")
    message = message_of(ValueError, tmp_path / name)
    assert "is no data file" in message and message.endswith(advice)


@pytest.mark.parametrize(
    ("row", "advice"),
    [
        ("bad, very bad,0", "put texts that contain the separator in quotes."),
        ('"bad,0', "close the quote."),
    ],
)
def test_a_csv_that_cannot_be_read_is_told_what_to_quote(
    tmp_path: Path, row: str, advice: str
) -> None:
    (tmp_path / "train.csv").write_text(f"text,label\ngood,1\n{row}\n")
    message = message_of(ValueError, tmp_path)
    assert "ParserError" in message and message.endswith(advice)


def test_a_file_that_is_not_there_is_not_to_be_renamed(tmp_path: Path) -> None:
    assert message_of(ValueError, tmp_path / "absent.tsv").endswith("set task.data_dir.")
