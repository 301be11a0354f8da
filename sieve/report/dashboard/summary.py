"""The summary above the table: a headline, and the smallest model of each task."""

from collections.abc import Sequence

from sieve.report.dashboard.gather import Run
from sieve.report.values import count, counted, short_name
from sieve.report.verdict import verdict


def headline(runs: Sequence[Run]) -> str:
    """ "14 runs on 3 tasks, 9 of them within their tolerance"."""
    tasks = counted(len({run.result.task for run in runs}), "task")
    within = sum(map(is_within, runs))
    if len(runs) == 1:
        return f"1 run on {tasks}, {'' if within else 'not '}within its tolerance"
    number = {0: "none", len(runs): "all"}.get(within, count(within))
    return f"{counted(len(runs), 'run')} on {tasks}, {number} of them within their tolerance"


def needs(runs: Sequence[Run]) -> list[tuple[int, Run]]:
    """For each task, model and tolerance, the smallest run within the tolerance, and its index."""
    best: dict[tuple[str, str, float], tuple[float, int]] = {}
    for index, run in enumerate(runs):
        key = (run.result.task, short_name(run.result.model), run.result.tolerance or 0.0)
        candidate = (run.result.kept_fraction.prunable or 0.0, index)
        if is_within(run):
            best[key] = min(candidate, best.get(key, candidate))
    return [(index, runs[index]) for _, (_, index) in sorted(best.items())]


def method(run: Run) -> str:
    """Model, projection and search in one phrase."""
    names = (short_name(run.result.model), run.result.projection, run.result.search.method)
    return ", ".join(filter(None, names))


def is_within(run: Run) -> bool:
    """Whether the run is within its tolerance on the test split."""
    return verdict(run.result).kind in ("certified", "likely")
