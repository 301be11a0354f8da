"""The closing table of a run for the terminal, 80 columns wide or more."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from sieve.report.sentence import answer_sentence, drop_interval, verdict
from sieve.report.spent import confirmation, spent
from sieve.report.units import metric_name, metric_value, unit, word
from sieve.report.values import (
    NOT_MEASURED,
    look,
    measure,
    percent,
    points,
    short_name,
    size,
    times,
)

_STYLES = {"met": "green", "uncertain": "yellow", "missed": "bold red", "unknown": "dim"}


def closing_table(result: Mapping[str, Any], paths: Mapping[str, Path]) -> RenderableType:
    """What a run found and wrote: a table, the paths, the answer in one sentence, the verdict, and
    what the search has spent.

    Args:
        result: the dictionary of `result.json`.
        paths: what was written, by a short name such as "report".
    """
    found = verdict(result)
    told = " ".join(filter(None, (spent(result), confirmation(result))))
    return Group(
        _numbers(result),
        *([_written(paths)] if paths else []),
        Padding(Text(answer_sentence(result), style="bold"), (1, 1, 0, 1)),
        Padding(Text(found.text, style=_STYLES[found.kind]), (0, 1)),
        *([Padding(Text(told, style="dim"), (1, 1, 0, 1))] if told else []),
    )


def _numbers(result: Mapping[str, Any]) -> Table:
    table = _two_columns()
    metric, written = metric_name(result), partial(metric_value, result)
    for name, value in (
        ("task", str(look(result, "task") or NOT_MEASURED)),
        ("model", short_name(look(result, "model"))),
        ("kept", _kept(result)),
        (f"{metric} on test", _change(result, "baseline.accuracy", "pruned.accuracy", written)),
        (word(result), _drop(result)),
        ("on disk", _change(result, "bytes.dense", "bytes.pruned", size)),
        ("speed", _speed(result)),
        *_graph(result),
    ):
        table.add_row(Text(name), Text(value))
    return table


def _written(paths: Mapping[str, Path]) -> Table:
    table = _two_columns()
    for name, path in paths.items():
        table.add_row(Text(name), Text(str(path)))
    return table


def _two_columns() -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 1))
    table.add_column(style="dim", no_wrap=True, min_width=17)
    table.add_column(overflow="fold")
    return table


def _kept(result: Mapping[str, Any]) -> str:
    prunable = percent(look(result, "kept_fraction.prunable"))
    return (
        f"{prunable} of prunable, {percent(look(result, 'kept_fraction.model'))} of all parameters"
    )


def _drop(result: Mapping[str, Any]) -> str:
    if measure(result, "drop.point") is None:
        return NOT_MEASURED
    bounds = drop_interval(result)
    interval = f" (95 % interval {bounds})" if bounds else ""
    limit = points(look(result, "tolerance"))
    return f"{points(look(result, 'drop.point'))} {unit(result)}{interval}; tolerance {limit}"


def _speed(result: Mapping[str, Any]) -> str:
    prefill, decode = (look(result, f"speed.{key}_ratio") for key in ("prefill", "decode"))
    if (
        measure(result, "speed.prefill_ratio") is None
        and measure(result, "speed.decode_ratio") is None
    ):
        return "not measured"
    decoded = "" if measure(result, "speed.decode_ratio") is None else f", decode {times(decode)}"
    return f"prefill {times(prefill)}{decoded} of the dense model"


def _graph(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    if measure(result, "export.accuracy") is None:
        return []
    return [("exported graph", f"{metric_value(result, look(result, 'export.accuracy'))} on test")]


def _change(result: Mapping[str, Any], dense: str, pruned: str, written: Any) -> str:
    return f"{written(look(result, dense))} → {written(look(result, pruned))}"
