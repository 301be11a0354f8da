"""Which rows may help to confirm a winner."""

from types import SimpleNamespace
from typing import Any

import pytest

from sieve.config import SearchConfig
from sieve.stages.rows import overfits


def run(guarantee: bool = False, **search: Any) -> Any:
    return SimpleNamespace(
        config=SimpleNamespace(guarantee=guarantee, search=SearchConfig(**search))
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
    assert overfits(run(guarantee=True, **search))  # A guarantee takes no chances.
