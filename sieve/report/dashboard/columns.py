"""The columns of the table of runs: the text of each cell, and the value it is sorted by."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from sieve.report.building import Number
from sieve.report.dashboard.gather import Run
from sieve.report.result import Result
from sieve.report.sentence import drop_interval
from sieve.report.units import lost, metric_name, metric_value, unit
from sieve.report.values import (
    NOT_MEASURED,
    count,
    date,
    duration,
    memory,
    percent,
    points,
    short_name,
    size,
    times,
)
from sieve.report.verdict import Kind, verdict

# Kind of verdict -> its mark in tables, its symbol in figures, and its words, in order of merit.
VERDICTS: dict[Kind, tuple[str, str, str]] = {
    "certified": ("●", "circle", "certified"),
    "likely": ("○", "circle-open", "likely, a point estimate"),
    "missed": ("×", "x-thin-open", "missed on test"),
    "unknown": ("", "diamond-open", NOT_MEASURED),
}

POINTS, SCORE, RATIO = "points", "score", "ratio"  # see Column.change
_SPEED = "Tokens per second, pruned over dense"


@dataclass(frozen=True)
class Cell:
    """A cell of the table; `value` is what it is sorted by, None if nothing was measured."""

    value: float | str | None
    text: str
    note: str = ""  # a second, smaller line
    mark: str = ""
    css: str = ""
    title: str = ""


Cells = Callable[[Run], Cell]
Screen = Literal["any", "wide", "asked"]


@dataclass(frozen=True)
class Column:
    """A column of the table, which is a line when runs are compared.

    `change` says how two runs compare: by their difference in points, the same if they have one
    task ("score"), by their ratio, or not at all ("").

    `screen` says where the table shows the column: everywhere, on a wide screen, or if all columns
    are asked for.
    """

    key: str
    heading: str
    cell: Cells
    change: str = ""
    numeric: bool = True
    hint: str = ""
    screen: Screen = "wide"


def columns(runs: Sequence[Run]) -> list[Column]:
    """The columns in which at least one run has a value."""
    metrics = {metric_name(run.result) for run in runs}
    metric = metrics.pop().capitalize() if len(metrics) == 1 else "Metric"

    def scores_cell(run: Run) -> Cell:
        note = metric_name(run.result) if metric == "Metric" else ""
        return Cell(run.result.pruned.accuracy, scores(run.result), note)

    heading = f"{metric}, dense → pruned"
    change = SCORE if not any(run.result.relative for run in runs) else ""
    scored = Column(
        "metric",
        heading,
        scores_cell,
        change,
        hint="Certified on selection rows, likely, or missed on test",
    )
    every = [*_TASK, scored, *_MEASURED]
    return [column for column in every if any(column.cell(run).value is not None for run in runs)]


def scores(result: Result) -> str:
    """The metric of the dense and of the pruned model."""
    both = (result.baseline.accuracy, result.pruned.accuracy)
    return " → ".join(metric_value(result, value) for value in both)


def tolerance(result: Result) -> str:
    """The tolerance, in the unit of the metric."""
    if result.tolerance is None:
        return NOT_MEASURED
    return f"{points(result.tolerance)} {unit(result)}"


def _after_pruning(run: Run) -> Cell:
    """Recovery and quantization."""
    recovery, quantization = run.result.recovery, run.result.quantization
    steps = []
    if recovery and recovery.method:
        name = {"lora": "LoRA", "full": "all factors"}.get(recovery.method, recovery.method)
        steps.append(name if recovery.taken else f"{name} (rolled back)")
    if quantization and quantization.method:
        steps.append(quantization.method)
    return _words(", ".join(steps))


def _verdict(run: Run) -> Cell:
    judged = verdict(run.result)
    mark, _, words = VERDICTS[judged.kind]
    note = words.partition(", ")[2]
    rank = None if judged.kind == "unknown" else float(list(VERDICTS).index(judged.kind))
    return Cell(rank, judged.badge, note, mark, judged.kind, judged.text)


def _words(text: str) -> Cell:
    return Cell(text or None, text or NOT_MEASURED)


def _drop(run: Run) -> Cell:
    drop = run.result.drop.point
    return Cell(drop, lost(run.result, drop), drop_interval(run.result.drop))


def _date(run: Run) -> Cell:
    day, _, time = date(run.result.date).partition(", ")
    return Cell(run.result.date or None, day or NOT_MEASURED, time)


def _number(value: Callable[[Result], Number], text: Callable[[Number], str]) -> Cells:
    return lambda run: Cell(value(run.result), text(value(run.result)))


_prunable = _number(lambda result: result.kept_fraction.prunable, percent)
_model = _number(lambda result: result.kept_fraction.model, percent)
_prefill = _number(lambda result: result.speed.prefill_ratio, times)
_decode = _number(lambda result: result.speed.decode_ratio, times)
_memory = _number(lambda result: result.memory.peak_mib, memory)
_evaluations = _number(lambda result: result.search.evaluations, count)
_seconds = _number(lambda result: result.total_seconds, duration)
_TASK = [
    Column("task", "Task", lambda run: _words(run.result.task), numeric=False, screen="any"),
    Column("model", "Model", lambda run: _words(short_name(run.result.model)), numeric=False),
    Column(
        "projection",
        "Projection",
        lambda run: _words(run.result.projection),
        numeric=False,
        screen="asked",
    ),
    Column("search", "Search", lambda run: _words(run.result.search.method), numeric=False),
    Column("kept", "Kept of prunable", _prunable, POINTS, screen="any"),
    Column("kept_model", "Kept of model", _model, POINTS),
]
_MEASURED = [
    Column("drop", "Drop, 95 % interval", _drop, SCORE, hint="A perplexity's rise is in percent"),
    Column("tolerance", "Tolerance", lambda run: Cell(run.result.tolerance, tolerance(run.result))),
    Column("verdict", "Verdict", _verdict, numeric=False, hint="On the test split", screen="any"),
    Column("examples", "Test rows", _number(lambda r: r.examples, count), screen="asked"),
    Column("prefill", "Prefill", _prefill, RATIO, hint=_SPEED),
    Column("decode", "Decode", _decode, RATIO, hint=_SPEED),
    Column("bytes", "On disk", _number(lambda r: r.bytes.pruned, size), RATIO),
    Column("memory", "Peak memory", _memory, RATIO, screen="asked"),
    Column("after", "After pruning", _after_pruning, numeric=False),
    Column("seed", "Seed", _number(lambda r: r.seed, count), screen="asked"),
    Column("date", "Date, UTC", _date, numeric=False, screen="asked"),
    Column("evaluations", "Genomes scored", _evaluations, RATIO, screen="asked"),
    Column("seconds", "Time", _seconds, RATIO, screen="asked"),
]
