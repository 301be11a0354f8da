"""The record of the refit holds the margins of the genome before and after."""

from pathlib import Path

import pytest
from runs import make_world
from sessions import session

from sieve import stages
from sieve.stages.rows import selection_objective

pytestmark = pytest.mark.slow
# A quarter everywhere is within this tolerance.
SETTINGS = ("search=uniform", "search.levels=[1,.25]", "tolerance=.9", "projection.refit_tries=1")


@pytest.mark.slow
def test_the_record_has_the_margins_before_and_after(tmp_path: Path) -> None:
    with session(make_world(tmp_path), *SETTINGS, "confidence=null") as run:
        calibrated = stages.calibrate(run)
        bank = stages.fit(run, calibrated)
        genome, _ = stages.search(run, bank)
        before = selection_objective(run, bank).score(genome).margin
        _, _, record = stages.refit(run, calibrated, bank, genome)
    assert record is not None
    assert record["margin_before"] == before
    assert record["margin_after"] == record["curve"][0]["margin"]
    assert record["taken"] == (record["margin_after"] >= record["margin_before"])
