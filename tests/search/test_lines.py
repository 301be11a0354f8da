"""Uniform search against every level evaluated one by one."""

import random
from types import SimpleNamespace
from typing import Any

import pytest

from sieve.bank.genome import Genome
from sieve.search.lines import (
    LEVELS,
    Line,
    _log_score,
    descend,
    search_uniform,
    smallest_feasible,
    uniform_line,
)
from sieve.search.score import Score

BANK: Any = SimpleNamespace(groups=[], matrices=["a", "b"], names=("a", "b"), fingerprint="bank")


class Margins:
    """A scorer that reads margins from a table and counts evaluations."""

    def __init__(self, margins: dict[float, float]) -> None:
        self.margins = margins
        self.seen: list[float] = []

    def score(self, genome: Genome) -> Score:
        (level,) = set(genome.levels.values())
        self.seen.append(level)
        return Score(level, 0.5, self.margins[level], 10)


@pytest.mark.parametrize("cliff", range(len(LEVELS)))
def test_the_smallest_feasible_level_is_found_in_a_handful_of_evaluations(cliff: int) -> None:
    scorer = Margins({level: 0.1 if i <= cliff else -0.1 for i, level in enumerate(LEVELS)})
    found = search_uniform(BANK, scorer)
    assert set(found.levels.values()) == {LEVELS[cliff]}
    assert len(scorer.seen) == len(set(scorer.seen)) <= 7


def test_without_monotonicity_the_accepted_level_was_evaluated_and_feasible() -> None:
    rng = random.Random(0)
    for _ in range(200):
        margins = {level: rng.uniform(-1, 1) for level in LEVELS} | {1: 0.02}
        scorer = Margins(margins)
        (level,) = set(search_uniform(BANK, scorer).levels.values())
        assert margins[level] >= 0
        assert level == 1 or level in scorer.seen


def test_a_single_dip_does_not_end_the_search() -> None:
    margins = {level: 0.1 if i <= 20 else -0.1 for i, level in enumerate(LEVELS)}
    margins[LEVELS[19]] = -0.1
    assert set(search_uniform(BANK, Margins(margins)).levels.values()) == {LEVELS[20]}


def test_beyond_a_dip_every_level_is_tried() -> None:
    margins = {level: 0.1 if i <= 21 and i != 19 else -0.1 for i, level in enumerate(LEVELS)}
    assert set(search_uniform(BANK, Margins(margins)).levels.values()) == {LEVELS[21]}


def test_a_strict_search_looks_at_nothing_below_a_refusal() -> None:
    margins = {level: 0.1 if i <= 20 else -0.1 for i, level in enumerate(LEVELS)}
    margins[LEVELS[19]] = -0.1
    scorer = Margins(margins)
    found = smallest_feasible(scorer, uniform_line(BANK, LEVELS), strict=True)
    refused = max(level for level in scorer.seen if margins[level] < 0)
    assert set(found.levels.values()) == {min(e for e in scorer.seen if margins[e] >= 0)}
    assert refused < min(found.levels.values())


def test_the_dense_model_is_the_answer_when_nothing_else_is_feasible() -> None:
    found = search_uniform(BANK, Margins({level: -0.1 for level in LEVELS} | {1: 0.02}))
    assert set(found.levels.values()) == {1}


def test_a_grid_without_the_dense_level_is_refused() -> None:
    with pytest.raises(ValueError, match="expected fractions with 1 among them"):
        search_uniform(BANK, Margins({}), [0.5, 0.25])


@pytest.mark.parametrize(
    ("last", "tried"),
    [
        (50, [10, 18, 26, 34]),
        (12, [10, 18, 14, 12]),
        (14, [10, 18, 14, 17]),
        (17, [10, 18, 14, 17]),
    ],
)
def test_improved_genomes_are_tried_downwards_and_never_below_a_refused_one(
    last: int, tried: list[int]
) -> None:
    line: Any = Line(60, lambda index: index)  # type: ignore[arg-type, return-value]
    seen: list[int] = []

    def improve(index: Any) -> Any:
        seen.append(index)
        return BANK, index

    def score(_: object, index: Any) -> Score:
        return Score(1 - index / 60, 0.5, 0.01 if index <= last else -0.01, 10)

    best = descend(line, 10, improve, score, Score(0.9, 0.5, 0.0, 10), tries=4)
    assert seen == tried and best == (BANK, max(index for index in tried if index <= last))


@pytest.mark.parametrize(("margin", "side"), [(-0.2, "beyond"), (0.01, "within")])
def test_rows_that_decided_early_log_a_side_and_no_accuracy(
    margin: float, side: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "sieve")
    _log_score("", Score(0.027, 0.94, margin, 208, whole=False))
    assert f"almost surely {side} the tolerance after 208 rows" in caplog.text
    assert "0.94" not in caplog.text
