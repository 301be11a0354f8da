"""The paired comparison against scipy and by hand."""

import numpy as np
import pytest
from scipy import stats

from sieve.evaluation.evaluation import compare_with_chance
from sieve.tasks import Example
from sieve.tasks.scores import Drop, Scores, compare, paired_drop


def pair(lost: int, won: int, both: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    baseline = np.repeat([True, False, True, False], [lost, won, both, neither])
    pruned = np.repeat([False, True, True, False], [lost, won, both, neither])
    return baseline, pruned


def test_the_drop_is_baseline_minus_pruned() -> None:
    drop = paired_drop(*pair(30, 10, 150, 10))
    assert drop.point == pytest.approx(20 / 200)
    assert drop.low < drop.point < drop.high


def test_the_interval_is_scipys_paired_percentile_bootstrap() -> None:
    baseline, pruned = pair(30, 12, 300, 58)
    ours = paired_drop(baseline, pruned)
    difference = baseline.astype(float) - pruned.astype(float)
    theirs = stats.bootstrap(
        (difference,),
        np.mean,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert ours.low == pytest.approx(theirs.low, abs=0.004)
    assert ours.high == pytest.approx(theirs.high, abs=0.004)


def test_the_p_value_is_the_exact_mcnemar_by_hand() -> None:
    # 1 lost and 4 won: two-sided P(X <= 1) of Binomial(5, 1/2) = 2 * (1 + 5) / 32.
    assert paired_drop(*pair(1, 4, 50, 5)).mcnemar_p == pytest.approx(12 / 32)


def test_equal_models_have_no_drop_and_no_evidence() -> None:
    drop = paired_drop(*pair(0, 0, 40, 10))
    assert (drop.point, drop.mcnemar_p) == (0, 1)
    # 50 rows without a loss: 1 - 0.025 ** (1 / 50) may still be lost.
    assert drop.high == pytest.approx(1 - 0.025 ** (1 / 50))
    assert drop.low == -drop.high


@pytest.mark.slow
def test_a_few_rows_are_no_proof_of_a_small_drop() -> None:
    """Drawn with one row in a hundred lost, the interval holds that drop nearly always."""
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(300):
        lost = rng.random(100) < 0.01
        drop = paired_drop(lost, np.zeros(100, bool), seed)
        covered += drop.low <= 0.01 <= drop.high
    assert covered / 300 >= 0.95


def test_the_interval_covers_the_true_drop_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        draws = rng.choice(3, size=300, p=[0.10, 0.06, 0.84])
        drop = paired_drop(draws == 0, draws == 1, seed)
        covered += drop.low <= 0.04 <= drop.high
    assert 0.90 <= covered / 200 <= 0.99


def examples(answers: list[int], choices: int = 2) -> list[Example]:
    return [Example(str(i), tuple("abcdef"[:choices]), a) for i, a in enumerate(answers)]


@pytest.mark.parametrize(
    ("answers", "choices", "chance"),
    [([0] * 70 + [1] * 30, 2, 0.7), ([0, 1] * 50, 2, 0.5), ([0, 1, 2, 3] * 25, 4, 0.25)],
)
def test_chance_is_the_commonest_answer_or_a_guess(
    answers: list[int], choices: int, chance: float
) -> None:
    def beaten(right: int) -> bool:
        scores = Scores(np.zeros(100), np.arange(100) < right, np.zeros(100))
        found = compare_with_chance(scores, examples(answers, choices))
        assert found.accuracy == pytest.approx(chance)
        return found.beaten

    assert not beaten(round(100 * chance)) and not beaten(round(100 * chance) + 3)
    assert beaten(round(100 * chance) + 15)


def test_scores_of_different_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="expected equal"):
        paired_drop(np.ones(3, bool), np.ones(4, bool))


def test_a_model_loses_nothing_against_itself() -> None:
    scores = Scores(np.zeros(9), np.arange(9) < 4, np.zeros(9))
    assert compare(scores, scores) == Drop(0.0, None, None, None)
    other = Scores(np.zeros(9), np.arange(9) < 4, np.zeros(9))
    assert compare(scores, other).high > 0.2  # Another model may differ on other rows.
