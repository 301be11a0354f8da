"""Which rows may help to confirm a winner."""

from types import SimpleNamespace
from typing import Any

import pytest

from sieve.config import SearchConfig
from sieve.stages.rows import overfits, training_rows
from sieve.tasks.example import Example


def run(confidence: float | None = None, **search: Any) -> Any:
    return SimpleNamespace(
        config=SimpleNamespace(confidence=confidence, search=SearchConfig(**search))
    )


@pytest.mark.parametrize(
    ("search", "expected"),
    [
        ({"method": "waterfill", "judge": "margin"}, False),
        ({"method": "uniform"}, False),
        ({"method": "genetic", "judge": "divergence"}, False),
        ({"method": "evopress", "judge": "divergence"}, False),
        ({"method": "genetic", "judge": "margin"}, True),
        ({"method": "evopress", "judge": "margin"}, True),
        ({"method": "random"}, True),
    ],
)
def test_rows_are_fitted_by_what_is_chosen_by_its_accuracy(
    search: dict[str, str], expected: bool
) -> None:
    assert overfits(run(**search)) == expected
    assert overfits(run(confidence=0.9, **search))  # A confidence takes no chances.


def test_only_a_search_of_many_genomes_without_confirmation_leaves_no_row_fresh() -> None:
    assert SearchConfig("genetic", confirmation=0).fits_all_rows
    assert not SearchConfig("genetic", confirmation=0.4).fits_all_rows
    assert not SearchConfig("waterfill", confirmation=0).fits_all_rows


def test_too_few_rows_to_train_on_name_the_command_that_does_not_train() -> None:
    splits = {"calibration": [Example("a", (" x", " y"), 0)], "selection": []}
    few: Any = SimpleNamespace(task=SimpleNamespace(splits=splits))
    with pytest.raises(ValueError) as refused:
        training_rows(few)
    assert str(refused.value) == (
        "got 1 calibration rows, expected at least 4 to train on most of them and check on the "
        "others; provide more rows, or run sieve.run with recovery=none, which trains on none."
    )
