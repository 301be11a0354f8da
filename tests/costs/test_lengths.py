"""The rows that a dry run counts without reading them."""

import pytest

from sieve.costs.lengths import _stated_rows
from sieve.tasks import TaskConfig


@pytest.mark.parametrize(
    ("wanted", "limit", "calibration", "selection"),
    [(0, None, 900, 60), (160, None, 800, 160), (5_000, None, 600, 360), (160, 100, 860, 100)],
)
def test_a_small_selection_split_is_filled_as_in_a_run(
    wanted: int, limit: int | None, calibration: int, selection: int
) -> None:
    rows = {"calibration": 900, "selection": 60, "test": 50}
    config = TaskConfig("t", typical={"rows": rows}, max_rows={"selection": limit})
    config.selection_rows = wanted
    stated = _stated_rows(config)
    assert stated == {"calibration": calibration, "selection": selection, "test": 50}
