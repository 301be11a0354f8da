"""What all runs say together: a headline, a few figures, and how little each task needed."""

from collections.abc import Sequence

from sieve.report import html
from sieve.report.dashboard import columns as cells
from sieve.report.dashboard.gather import Run
from sieve.report.html import text
from sieve.report.sentence import verdict
from sieve.report.values import count, duration, look, measure, percent

_WITHIN = ("met", "uncertain")
_ROOM = 8  # lines that may stand before the table of all runs without being folded


def headline(runs: Sequence[Run]) -> str:
    """ "14 runs on 3 tasks, 9 of them within their tolerance"."""
    tasks = _plural(len(_tasks(runs)), "task")
    within = sum(_is_within(run) for run in runs)
    if len(runs) == 1:
        return f"1 run on {tasks}, {'' if within else 'not '}within its tolerance"
    number = {0: "none", len(runs): "all"}.get(within, count(within))
    return f"{_plural(len(runs), 'run')} on {tasks}, {number} of them within their tolerance"


def key_figures(runs: Sequence[Run]) -> str:
    """How many runs, tasks and models, how many within the tolerance, and the time of all."""
    met = sum(verdict(run.result).kind == "met" for run in runs)
    spent = [seconds for run in runs if (seconds := cells.seconds(run)) is not None]
    pairs = [
        ("Runs", count(len(runs))),
        ("Tasks", count(len(_tasks(runs)))),
        ("Models", count(len({cells.model(run) for run in runs}))),
        ("Within the tolerance", count(sum(map(_is_within, runs)))),
        ("With their whole interval", count(met)),
        *([("Time of all runs", duration(sum(spent)))] if spent else []),
    ]
    return html.definitions((term, text(value)) for term, value in pairs)


def needs(runs: Sequence[Run]) -> str:
    """For each task, model and tolerance the run that kept the least, of those within it."""
    best: dict[tuple[str, str, float], int] = {}
    for index, run in enumerate(runs):
        tolerance = measure(run.result, "tolerance") or 0.0
        key = (str(look(run.result, "task")), cells.model(run), tolerance)
        if _is_within(run) and (key not in best or _kept(run) < _kept(runs[best[key]])):
            best[key] = index
    rows = [
        [
            f'<a href="#run-{index}">{text(task)}</a> <small>{cells.how(runs[index])}</small>',
            cells.tolerance(runs[index]),
            text(percent(_kept(runs[index]))),
            text(percent(look(runs[index].result, "kept_fraction.model"))),
            text(cells.scores(runs[index])),
            text(cells.drop(runs[index])),
        ]
        for (task, *_), index in sorted(best.items())
    ]
    heads = ["Task", "Tolerance", "Kept of prunable", "Of model", "Dense → pruned", "Drop"]
    caption = (
        "The run that kept the least, of those within their tolerance on test rows; the more runs "
        "there are, the more it owes to these rows."
    )
    if not rows:
        return ""
    table = html.table(heads, rows, caption, css="needs")
    if len(rows) > _ROOM:
        table = (
            f"<details><summary>{len(rows)} of task, model and tolerance</summary>{table}</details>"
        )
    return html.section("needs", "What each task needs", table)


def _kept(run: Run) -> float:
    found = measure(run.result, "kept_fraction.prunable")
    return 1.0 if found is None else found


def _is_within(run: Run) -> bool:
    return verdict(run.result).kind in _WITHIN


def _tasks(runs: Sequence[Run]) -> set[str]:
    return {str(look(run.result, "task")) for run in runs}


def _plural(number: int, noun: str) -> str:
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"
