"""Rows that are held out share no prompt with the others."""

from sieve.tasks.example import Example
from sieve.tasks.splits import reserve

ROWS = [Example(f"prompt {i % 40}", (" a", " b"), i % 2) for i in range(100)]


def test_equal_prompts_stay_together_and_no_row_is_lost() -> None:
    rest, reserved = reserve(ROWS, 0.25, "salt")
    assert len({row.prompt for row in reserved}) == 10
    assert not {row.prompt for row in rest} & {row.prompt for row in reserved}
    assert [row for row in ROWS if row in rest or row in reserved] == ROWS
    assert len(rest) + len(reserved) == len(ROWS)


def test_the_order_of_rows_does_not_matter_and_the_salt_does() -> None:
    prompts = [
        {row.prompt for row in reserve(rows, 0.25, "salt").reserved} for rows in (ROWS, ROWS[::-1])
    ]
    assert prompts[0] == prompts[1]
    assert prompts[0] != {row.prompt for row in reserve(ROWS, 0.25, "other").reserved}


def test_no_more_prompts_are_reserved_than_allowed() -> None:
    assert len({row.prompt for row in reserve(ROWS, 0.5, "salt", most=3).reserved}) == 3
