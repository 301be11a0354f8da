"""The message on rows that are longer than the context names them by number, from 1."""

from sieve.predict.predictor import _too_long


def test_one_long_row_is_named_as_a_row() -> None:
    assert _too_long({1: 3000}, "rows.csv", 128) == (
        "row 2 of rows.csv is longer than the model's context: it has 3,000 tokens within its "
        "prompt, expected at most 128; shorten or remove it."
    )


def test_several_long_rows_are_named_with_the_longest() -> None:
    assert _too_long({0: 200, 4: 300, 9: 250}, "rows.csv", 128) == (
        "rows 1, 5 and 10 of rows.csv are longer than the model's context: the longest, row 5, has "
        "300 tokens within its prompt, expected at most 128; shorten or remove them."
    )


def test_of_many_long_rows_the_first_are_named() -> None:
    message = _too_long({number: 200 for number in range(2000)}, "rows.csv", 128)
    assert message.startswith("rows 1, 2, 3, 4, 5 and 1,995 more of rows.csv are longer")
