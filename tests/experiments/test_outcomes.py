"""Searches on rows drawn from the outcomes of a frontier choose by the rule of a run."""

import json

import numpy as np
import pytest

from experiments.claims.tolerance import TOLERANCE, simulate, summarize, tables
from experiments.outcomes import Outcomes


def frontier(rows: int = 4_000, genomes: int = 30) -> Outcomes:
    """The dense model is right on nine rows of ten; smaller genomes lose more and more rows."""
    random = np.random.default_rng(0)
    dense = random.random(rows) < 0.9
    fragile = random.random(rows)
    right = [dense ^ (fragile < 0.15 * (index / genomes) ** 2) for index in range(genomes)]
    return Outcomes(np.stack(right), 0.9 ** np.arange(genomes))


def test_outcomes_survive_a_file() -> None:
    outcomes = frontier(rows=13)
    copy = Outcomes.of(json.loads(json.dumps(outcomes.record())))
    assert (copy.right == outcomes.right).all() and (copy.kept == outcomes.kept).all()


def test_the_oracle_is_the_last_genome_before_the_first_that_loses_too_much() -> None:
    right = np.ones((5, 100), bool)
    for genome, lost in enumerate((0, 1, 3, 2, 9)):
        right[genome, :lost] = False
    outcomes = Outcomes(right, 0.5 ** np.arange(5))
    assert outcomes.drops() == pytest.approx([0, 0.01, 0.03, 0.02, 0.09])
    assert (outcomes.oracle(0.025), outcomes.oracle(0.5)) == (1, 4)


def test_all_rows_without_a_confidence_choose_about_what_the_oracle_does() -> None:
    outcomes = frontier()
    assert abs(outcomes.chosen(TOLERANCE, None) - outcomes.oracle(TOLERANCE)) <= 1
    assert outcomes.chosen(TOLERANCE, 0.9) <= outcomes.chosen(TOLERANCE, None)


def test_with_a_confidence_the_tolerance_holds_in_nine_draws_of_ten() -> None:
    at = simulate(frontier(), draws=100)["at"]
    for rows in ("300", "800", "3000"):
        assert at[rows]["confident"]["held"] >= 0.87 > at[rows]["point"]["held"]
    assert at["3000"]["confident"]["times_oracle"] < at["300"]["confident"]["times_oracle"]


@pytest.mark.slow
def test_the_table_has_a_row_per_number_of_rows_and_rule() -> None:
    summary = summarize({"tolerance/a": frontier().record()})
    assert {"a", "smollm2_sst2", "smollm2_tuned_trec"} == set(summary["tasks"])
    [table] = tables(summary).values()
    assert len(table.splitlines()) == 2 + 2 * 4 and "1,658" in table
