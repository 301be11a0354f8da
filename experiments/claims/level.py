"""How often the test certifies a model whose drop is exactly the tolerance: about .1 of draws.

For rows that are right or wrong, this is a sum over all counts of worse and better rows. For F1
values it is simulated, and the bound that Sieve uses is compared with two other bootstraps.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from scipy import stats

from experiments import figures
from experiments.jobs import Job
from sieve.tasks.certifiable import smallest_tolerance
from sieve.tasks.drop_test import score_test, upper_drop
from sieve.tasks.scores import Scores

CLAIM = "level"
HERE = f"experiments.claims.{CLAIM}"
LEVEL = 0.1
LEAST, MOST = 0.07, 0.11  # between these a level counts as kept
TOLERANCES = (0.01, 0.02, 0.05)
ROWS = (100, 200, 500, 1_000, 2_000, 4_000)
DIFFERING = (0.01, 0.02, 0.05, 0.1, 0.2)  # shares of rows that one of two models answers correctly
DRAWS = {300: 6_000, 1_000: 2_000}  # of the simulation, by number of rows
RESAMPLES = 1_000  # of the simulation; a run takes 10,000
VALUES_DIFFER = 0.15
POPULATION = 2_000_000
BOUNDS = {"studentized": "studentized (Sieve)", "bca": "BCa", "percentile": "percentile"}


def jobs() -> list[Job]:
    """The sums, and a simulation per number of rows."""
    kinds = ["counts", *(f"values{rows}" for rows in DRAWS)]
    return [Job(CLAIM, (("kind", kind),), "call", f"{HERE}:measure") for kind in kinds]


def measure(out: Path, kind: str) -> dict[str, Any]:
    """The error rates of one job."""
    return levels() if kind == "counts" else _simulated(kind)


def levels() -> dict[str, Any]:
    """The error rate by tolerance, number of rows and share of rows that differ."""
    return {
        f"{tolerance:g}": {
            str(rows): {
                f"{share:g}": error_rate(rows, tolerance, LEVEL, share)
                for share in DIFFERING
                if share >= tolerance
            }
            for rows in ROWS
        }
        for tolerance in TOLERANCES
    }


def error_rate(rows: int, tolerance: float, level: float, differing: float) -> float:
    """The exact chance that `score_test` is at most `level` when the drop is exactly `tolerance`.

    differing: share of all rows of the kind that only one of the two models answers correctly.
    """
    worse, better = (differing + tolerance) / 2, (differing - tolerance) / 2
    most = min(rows + 1, int(rows * differing + 9 * np.sqrt(rows * differing) + 12))
    first_accepted, start = [], 0  # by number of better rows, the fewest worse rows that fail
    for count in range(most):
        while start < most and score_test(start, count, rows, tolerance) <= level:
            start += 1
        first_accepted.append(start)
    counts = np.arange(most)
    fewer = stats.binom.cdf(np.array(first_accepted) - 1, rows - counts, worse / (1 - better))
    return float((stats.binom.pmf(counts, rows, better) * fewer).sum())


def attainable(rows: int, tolerance: float) -> float:
    """The largest level up to .11 of any test, if all rows that differ became worse.

    Only their number can be tested then, and its chances jump.
    """
    chances = stats.binom.cdf(np.arange(rows), rows, tolerance)
    return float(max(chances[chances <= MOST], default=0.0))


def skewed(random: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """F1 values of which 15 % change: most fall, and most of these to 0."""
    kind = random.random(rows)
    before = np.where(kind < 0.3, 0, np.where(kind < 0.7, 1, random.beta(2, 2, rows)))
    lower = np.where(random.random(rows) < 0.6, 0, random.beta(1, 2, rows))
    changed, rises = random.random(rows) < VALUES_DIFFER, random.random(rows) < 0.2
    after = np.where(rises, np.maximum(before, random.beta(2, 1, rows)), np.minimum(before, lower))
    return before, np.where(changed, after, before)


def _simulated(kind: str) -> dict[str, float]:
    rows = int(kind.removeprefix("values"))
    return simulate(rows, DRAWS[rows])


def simulate(rows: int, draws: int) -> dict[str, float]:
    """How often each bootstrap's upper bound at confidence .9 is below the true drop."""
    random = np.random.default_rng(0)
    before, after = skewed(random, POPULATION)
    drop = before.mean() - after.mean()
    bounds = [_bounds(*skewed(random, rows), random) for _ in range(draws)]
    return {name: float(np.mean([bound[name] < drop for bound in bounds])) for name in BOUNDS}


def _bounds(before: np.ndarray, after: np.ndarray, random: np.random.Generator) -> dict[str, float]:
    """The upper bound of the drop at confidence .9 by each bootstrap."""
    with patch("sieve.tasks.scores.RESAMPLES", RESAMPLES):
        studentized = upper_drop(_scores(before), _scores(after), 1 - LEVEL)
    bootstrap = stats.bootstrap(
        (before - after,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=1 - LEVEL,
        alternative="less",
        rng=random,
    )
    percentile = np.quantile(bootstrap.bootstrap_distribution, 1 - LEVEL)
    return {
        "studentized": studentized,
        "bca": float(bootstrap.confidence_interval.high),
        "percentile": float(percentile),
    }


def _scores(values: np.ndarray) -> Scores:
    return Scores(np.zeros(len(values), int), values, np.zeros(len(values)))


def summarize(results: Mapping[str, Any]) -> dict[str, Any]:
    """All error rates, with the interval of another simulation."""
    summary: dict[str, Any] = {"values": {}}
    for name, record in results.items():
        kind = name.removeprefix(f"{CLAIM}/")
        rates = {key: part for key, part in record.items() if key != "job"}
        if kind == "counts":
            summary["counts"] = rates
        else:
            rows = kind.removeprefix("values")
            draws = DRAWS[int(rows)]
            summary["values"][rows] = {n: figures.share(rate, draws) for n, rate in rates.items()}
    return summary


def tables(summary: Mapping[str, Any]) -> dict[str, str]:
    """A row per tolerance and number of rows, and a row per bootstrap."""
    counts = [
        [tolerance.lstrip("0"), f"{int(rows):,}", *_cells(int(rows), float(tolerance), rates)]
        for tolerance, by_rows in summary["counts"].items()
        for rows, rates in by_rows.items()
    ]
    values = [
        [f"{int(rows):,}", *(figures.spread(rates[name], times=100) for name in BOUNDS)]
        for rows, rates in summary["values"].items()
    ]
    shares = [f"{100 * share:g} % differ" for share in DIFFERING]
    return {
        CLAIM: figures.markdown(["ε", "selection rows", *shares], counts),
        f"{CLAIM}-values": figures.markdown(["selection rows", *BOUNDS.values()], values),
    }


def _cells(rows: int, tolerance: float, rates: Mapping[str, float]) -> list[str]:
    """Levels in percent, marked if they cannot be between 7 and 11."""
    refused = smallest_tolerance(rows, 1 - LEVEL, 0) > tolerance
    cells = []
    for share in DIFFERING:
        rate = rates.get(f"{share:g}")
        jumps = share == tolerance and attainable(rows, tolerance) < LEAST
        mark = " ‡" if refused else " †" if jumps else ""
        cells.append("" if rate is None else f"{100 * rate:.1f}{mark}")
    return cells
