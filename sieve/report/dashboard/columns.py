"""The columns of the table of runs: what each says, and what it is sorted by."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from typing import Any

from sieve.report.dashboard.gather import Run
from sieve.report.html import text
from sieve.report.sentence import Kind, drop_interval, verdict
from sieve.report.units import lost, metric_name, metric_value, unit
from sieve.report.values import (
    NOT_MEASURED,
    duration,
    look,
    measure,
    number,
    percent,
    points,
    short_name,
    size,
    times,
)

Value = float | str | None
VERDICTS: dict[Kind, tuple[str, str]] = {
    "met": ("●", "within"),
    "uncertain": ("○", "within, its interval not"),
    "missed": ("×", "not within"),
    "unknown": ("", NOT_MEASURED),
}
_ORDER: tuple[Kind, ...] = ("met", "uncertain", "missed", "unknown")
_RECOVERIES = {"lora": "LoRA", "full": "all factors"}


@dataclass(frozen=True)
class Column:
    """A column: its heading, what a run is sorted by (None: nothing there), and its cell (HTML)."""

    key: str
    heading: str
    value: Callable[[Run], Value]
    cell: Callable[[Run], str]
    numeric: bool = True
    hint: str = ""


def columns(runs: Sequence[Run]) -> list[Column]:
    """The columns in which any of the runs has something to say."""
    known = [*_IDENTITY, _metric(runs), *_MEASURED]
    return [column for column in known if any(column.value(run) is not None for run in runs)]


def method(run: Run) -> str | None:
    """The search that chose the genome."""
    found = look(run.result, "search.method")
    return str(found) if found else None


def projection(run: Run) -> str | None:
    """The projection that made the factors."""
    found = look(run.result, "projection")
    return str(found) if found else None


def model(run: Run) -> str:
    """The model's name without the folders before it."""
    return short_name(look(run.result, "model"))


def how(run: Run) -> str:
    """Model, projection and search in one phrase (HTML)."""
    return text(", ".join(filter(None, [model(run), projection(run), method(run)])))


def after(run: Run) -> str | None:
    """What came after pruning: what was trained, and whether it was kept; how it is quantized."""
    trained, stored = (look(run.result, f"{what}.method") for what in ("recovery", "quantization"))
    parts = []
    if trained:
        kept = "" if look(run.result, "recovery.taken") else " (rolled back)"
        parts.append(f"{_RECOVERIES.get(str(trained), str(trained))}{kept}")
    if stored:
        parts.append(str(stored))
    return ", ".join(parts) or None


def seconds(run: Run) -> float | None:
    """Wall time of all stages together."""
    spent = look(run.result, "seconds")
    known = [number(value) for value in spent.values()] if isinstance(spent, dict) else []
    found = [value for value in known if value is not None]
    return sum(found) if found else None


def date(run: Run) -> str:
    """ "2026-11-23T23:00:00Z" → "23 Nov 2026, 23:00"; anything else stays as it is."""
    stamp = str(look(run.result, "date") or "")
    try:
        moment = datetime.fromisoformat(stamp)
    except ValueError:
        return stamp
    return f"{moment.day} {moment:%b %Y, %H:%M}"


def scores(run: Run) -> str:
    """The metric of the dense and of the pruned model."""
    both = (look(run.result, f"{which}.accuracy") for which in ("baseline", "pruned"))
    return " → ".join(metric_value(run.result, value) for value in both)


def drop(run: Run) -> str:
    """What was lost, with its unit."""
    return lost(run.result, look(run.result, "drop.point"))


def _metric(runs: Sequence[Run]) -> Column:
    """The metric has the heading where all runs share one, else each cell names its own."""
    names = {metric_name(run.result) for run in runs}
    alone = len(names) == 1

    def cell(run: Run) -> str:
        return text(scores(run)) + ("" if alone else _beside(metric_name(run.result)))

    heading = names.pop().capitalize() if alone else "Metric"
    return Column(
        "metric", f"{heading}, dense → pruned", _at("pruned.accuracy"), cell, hint="Test split"
    )


def _date_cell(run: Run) -> str:
    day, _, time = date(run).partition(", ")
    return f"{text(day)}{_beside(time) if time else ''}"


def _drop_cell(run: Run) -> str:
    bounds = drop_interval(run.result)
    return text(drop(run)) + (_beside(bounds) if bounds else "")


def _beside(words: str) -> str:
    return f" <small>{text(words)}</small>"


def _verdict_cell(run: Run) -> str:
    found = verdict(run.result)
    sign, words = VERDICTS[found.kind]
    judged, _, of_interval = words.partition(", ")
    mark = f'<span class="mark" aria-hidden="true">{sign}</span>' if sign else ""
    shown = f"{mark}{text(judged)}{_beside(of_interval) if of_interval else ''}"
    return f'<span class="{found.kind}" title="{escape(found.text)}">{shown}</span>'


def _verdict_rank(run: Run) -> Value:
    kind = verdict(run.result).kind
    return None if kind == "unknown" else float(_ORDER.index(kind))


def tolerance(run: Run) -> str:
    """ε in the unit of the metric, as HTML."""
    found = points(look(run.result, "tolerance"))
    return text(found if found == NOT_MEASURED else f"{found} {unit(run.result)}")


def _at(path: str) -> Callable[[Run], Value]:
    return lambda run: measure(run.result, path)


def _shown(path: str, written: Callable[[Any], str]) -> Callable[[Run], str]:
    return lambda run: text(written(look(run.result, path)))


def _number(
    key: str, heading: str, path: str, written: Callable[[Any], str], hint: str = ""
) -> Column:
    return Column(key, heading, _at(path), _shown(path, written), hint=hint)


def _words(key: str, heading: str, value: Callable[[Run], str | None]) -> Column:
    return Column(key, heading, value, lambda run: text(value(run) or NOT_MEASURED), numeric=False)


def _seed(value: Any) -> str:
    return NOT_MEASURED if number(value) is None else f"{value:.0f}"


_IDENTITY = [
    Column(
        "task",
        "Task",
        lambda run: str(look(run.result, "task")),
        lambda run: text(look(run.result, "task")),
        numeric=False,
    ),
    _words("model", "Model", model),
    _words("projection", "Projection", projection),
    _words("search", "Search", method),
    _number("kept", "Kept\u00a0of prunable", "kept_fraction.prunable", percent),
    _number("kept_model", "Kept\u00a0of model", "kept_fraction.model", percent),
]
_MEASURED = [
    Column("drop", "Drop, 95 % interval", _at("drop.point"), _drop_cell,
           hint="Dense minus pruned, in points; of a perplexity its rise in percent"),
    Column("tolerance", "Tolerance", _at("tolerance"), tolerance),
    Column("verdict", "Verdict", _verdict_rank, _verdict_cell, numeric=False,
           hint="The drop on the test split against the tolerance"),
    _number("prefill", "Prefill speed", "speed.prefill_ratio", times, "Pruned over dense"),
    _number("decode", "Decode speed", "speed.decode_ratio", times, "Pruned over dense"),
    _number("bytes", "On disk", "bytes.pruned", size, "The pruned model's weights"),
    _words("after", "After pruning", after),
    _number("seed", "Seed", "seed", _seed),
    Column("date", "Date, UTC", lambda run: str(look(run.result, "date") or "") or None,
           _date_cell, numeric=False),
    Column("seconds", "Time", seconds, lambda run: text(duration(seconds(run)))),
]  # fmt: skip
