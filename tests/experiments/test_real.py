"""The tables of the real model: cells, sizes that were asked for, verdicts by rule."""

from typing import Any

import pytest

from experiments import real_verdicts
from experiments.claims import real
from experiments.verdicts import NO, PART, YES


def cell(kept: float, drop: float = 0.0, bytes_: float = 0.1, **more: Any) -> dict[str, Any]:
    ends = {"value": drop, "low": drop - 0.01, "high": drop + 0.01}
    number = {"value": kept, "low": kept, "high": kept}
    base = {"kept": number, "drop": ends, "within": drop <= 0.02, "certified": True}
    return base | {"bytes": bytes_, "model": kept, "minutes": 3.0, "curve": {}} | more


def task(**methods: dict[str, Any]) -> dict[str, Any]:
    return {"methods": methods, "tolerance": 0.02, "metric": "accuracy"}


def test_a_cell_shows_size_drop_interval_and_what_holds() -> None:
    assert real.kept_cell(cell(0.5, 0.01)) == "50.0 (1.0; 0.0 to 2.0) ✓"
    missed = cell(0.5, 0.03, certified=False)
    assert real.kept_cell(missed) == "50.0 (3.0; 2.0 to 4.0) †"
    assert real.kept_cell(None) == ""


def test_a_size_of_the_curve_is_the_largest_genome_below_it() -> None:
    points = [
        {"kept_fraction": size, "accuracy": score} for size, score in ((0.74, 0.9), (0.49, 0.8))
    ]
    result = {"examples": 100, "metric": "accuracy", "curve": points}
    found = real.curve(result)
    assert {size: point["value"] for size, point in found.items()} == {".75": 0.9, ".5": 0.8}
    assert real.curve_cell({"curve": found}) == "90.0 / 80.0"
    perplexity = real.curve(result | {"metric": "perplexity"})
    assert real.curve_cell({"curve": perplexity}) == "0.9 / 0.8"


@pytest.mark.parametrize(
    ("scores", "verdict"), [((0.9, 0.86), YES), ((0.9, 0.7), PART), ((0.8, 0.7), NO)]
)
def test_a_quarter_must_go_for_five_points(scores: tuple[float, float], verdict: str) -> None:
    tasks = {
        str(score): task(paper=cell(1.0, dense=0.9, curve={".75": {"value": score}}))
        for score in scores
    }
    assert real_verdicts.removed(tasks)[1] == verdict


def test_a_level_per_matrix_and_training_must_be_smaller_on_every_task() -> None:
    better = {"a": task(sieve=cell(0.4), loss_aware=cell(0.8), trained=cell(0.2))}
    worse = {"b": task(sieve=cell(0.9), loss_aware=cell(0.8), trained=cell(0.9))}
    for rule in (real_verdicts.levels, real_verdicts.trained):
        assert rule(better)[1] == YES
        assert rule(better | worse)[1] == PART
        assert rule(worse)[1] == NO


def test_eight_bits_must_be_cheap_and_the_model_a_tenth() -> None:
    def judged(own: dict[str, Any]) -> str:
        return real_verdicts.quantized({"a": task(sieve=cell(0.4), int8=own)})[1]

    assert judged(cell(0.4, 0.01, 0.1)) == YES
    assert judged(cell(0.4, 0.01, 0.5)) == PART
    assert judged(cell(0.4, 0.05, 0.1)) == NO


def test_a_claim_that_no_run_can_judge_has_no_row() -> None:
    table = real_verdicts.real_verdicts({"real": {"tasks": {"a": task(paper=cell(0.5))}}})
    assert "20 to 75 %" in table and "fine-tuning" not in table and "8 bits" not in table
