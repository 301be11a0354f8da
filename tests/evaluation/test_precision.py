"""A run in bfloat16 agrees with a run in float32, stage by stage, but for rounding."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from models import save_first_layers
from test_conf_groups import load

from sieve import stages
from sieve.bank.bank import Bank
from sieve.bank.genome import Genome
from sieve.bank.switch import Switch
from sieve.refit.refit import refit
from sieve.stages.evaluate import score_test
from sieve.stages.run import Run

pytestmark = pytest.mark.slow
FLIPS = 0.03  # of the test rows: answers that rounding alone may change


@dataclass
class Stages:
    """What the stages of one run gave: kept fractions, and the answers to the test rows."""

    kept: float
    genome: Genome
    answers: dict[str, np.ndarray]
    right: dict[str, float]


def answers_of(run: Run, bank: Bank, genome: Genome) -> tuple[np.ndarray, float]:
    with Switch(run.backbone.model, bank).to(genome):
        scores = score_test(run)
    return scores.predicted, scores.accuracy


def run_all(folder: Path, dtype: str, levels: Genome | None = None) -> Stages:
    """Run all stages on the model beside `folder`; `levels` replaces the search's genome."""
    config = load(
        "+task=almanac_reviews",
        f"model.dtype={dtype}",
        f"model.path={folder.parent / 'model'}",
        "projection.dtype=bfloat16",
        "task.max_rows.selection=60",
        "task.max_rows.test=200",
        "calibration.tokens=2000",
        "recovery=full",
        "confidence=null",
        "search.recover=false",
        "recovery.steps=8",
        "recovery.check_every=4",
        "recovery.learning_rate=1e-4",
        "logger=none",
        f"paths.cache_dir={folder / 'cache'}",
    )
    with stages.opened(config, folder) as run:
        calibrated = stages.calibrate(run)
        bank = stages.fit(run, calibrated)
        own, _ = stages.search(run, bank)
        kept = bank.kept_fraction(own)
        genome = own if levels is None else replace(levels, bank=bank.fingerprint)
        states = {"dense": (bank, replace(genome, indexes=(0,) * len(genome.indexes)))}
        states["pruned"] = bank, genome
        parts = run.data.calibration_parts(config.calibration.tokens)
        refitted = refit(run.backbone.model, bank, genome, calibrated.moments(), parts)
        states["refitted"] = refitted.bank, refitted.genome
        recovered = stages.recover(run, calibrated, states["pruned"], states["refitted"])
        states["recovered"] = recovered[:2]
        scored = {name: answers_of(run, *state) for name, state in states.items()}
    answers = {name: predicted for name, (predicted, _) in scored.items()}
    return Stages(kept, genome, answers, {name: right for name, (_, right) in scored.items()})


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Stages, Stages]:
    folder = tmp_path_factory.mktemp("precision")
    save_first_layers(folder / "model", 3)
    exact = run_all(folder / "float32", "float32")
    return exact, run_all(folder / "bfloat16", "bfloat16", exact.genome)


def test_the_searches_keep_about_as_much(pair: tuple[Stages, Stages]) -> None:
    exact, rounded = pair
    assert rounded.kept == pytest.approx(exact.kept, rel=0.35)


@pytest.mark.parametrize("stage", ["dense", "pruned", "refitted", "recovered"])
def test_the_same_rows_get_the_same_answers(stage: str, pair: tuple[Stages, Stages]) -> None:
    exact, rounded = pair
    flips = np.flatnonzero(exact.answers[stage] != rounded.answers[stage])
    assert len(flips) <= FLIPS * len(exact.answers[stage]), f"rows {flips.tolist()}"
    assert rounded.right[stage] == pytest.approx(exact.right[stage], abs=FLIPS)
