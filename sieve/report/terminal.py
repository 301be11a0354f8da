"""The closing table of a run for a terminal of 80 columns or more."""

import shlex
from collections.abc import Mapping
from pathlib import Path

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from sieve.report.next_steps import Step, tuning_steps
from sieve.report.result import Result, read
from sieve.report.rivals import standards
from sieve.report.sentence import (
    answer_sentence,
    drop_text,
    figure,
    prompt_sentence,
    unlabelled_sentence,
    vocabulary_sentence,
)
from sieve.report.spent import confirmation, spent
from sieve.report.units import metric_name, metric_value, word
from sieve.report.values import NOT_MEASURED, percent, points, short_name, size, speed_up
from sieve.report.verdict import verdict

_COLUMNS = 75  # of a command, beside the margins and the sign that it continues
_STYLES = {"certified": "green", "likely": "yellow", "missed": "bold red", "unknown": "dim"}


def closing_table(record: Mapping[str, object], paths: Mapping[str, Path]) -> RenderableType:
    """A table of results and written files, then figure, badge, answer and the search's cost.

    Args:
        record: `result.json`.
        paths: the written files by a short name such as "report".
    """
    result = read(record)
    judged, large = verdict(result), figure(result)
    steps = tuning_steps(result)
    style = _STYLES[judged.kind]
    sentences = (vocabulary_sentence, prompt_sentence, unlabelled_sentence, standards)
    said = [sentence(result) for sentence in sentences]
    search = " ".join(filter(None, (spent(result), confirmation(result))))
    return Group(
        _table(_numbers(result)),
        *([_table({name: str(path) for name, path in paths.items()})] if paths else []),
        Padding(
            Text.assemble(
                (f"{large.value} {large.verb}".rstrip(), "bold"),
                "  ",
                (f" {judged.badge} ", f"reverse {style}"),
            ),
            1,
        ),
        Padding(Text(answer_sentence(result), style="bold"), (0, 1)),
        Padding(Text(judged.text, style=style), (0, 1)),
        *(Padding(_step(step), (1, 1, 0, 1)) for step in steps),
        *(Padding(Text(sentence), (0, 1)) for sentence in said if sentence),
        *([Padding(Text(search, style="dim"), (1, 1, 0, 1))] if search else []),
    )


def _step(step: Step) -> Text:
    """A command in lines that a shell reads as one, and that fit 80 columns where its words do."""
    lines = [""]
    for part in map(shlex.quote, shlex.split(step.command)):
        if lines[-1] and len(lines[-1]) + len(part) > _COLUMNS:
            lines.append("   ")
        lines[-1] += f" {part}" if lines[-1] else part
    return Text(f"{step.title}:\n") + Text(" \\\n".join(lines), style="bold")


def _numbers(result: Result) -> dict[str, str]:
    dense, pruned = (
        metric_value(result, accuracy)
        for accuracy in (result.baseline.accuracy, result.pruned.accuracy)
    )
    speed = result.speed
    prefill = speed_up(speed.prefill_ratio, speed.prefill_spread)
    decode = speed_up(speed.decode_ratio, speed.decode_spread)
    earlier = ", measured in an earlier run" if result.cached.get("evaluate") else ""
    fractions = [
        f"{percent(result.kept_fraction.prunable)} of prunable",
        f"{percent(result.kept_fraction.model)} of all parameters",
    ]
    if result.whole_first:
        fractions.reverse()
    numbers = {
        "task": result.task or NOT_MEASURED,
        "model": short_name(result.model),
        "kept": ", ".join(fractions),
        f"{metric_name(result)} on test": f"{dense} → {pruned}",
        word(result): f"{drop_text(result)}; tolerance {points(result.tolerance)}",
        "on disk": f"{size(result.bytes.dense)} → {size(result.bytes.pruned)}",
        "speed": f"prefill {prefill}, decode {decode} of the dense model{earlier}",
    }
    if result.export.accuracy is not None:
        exported = "exported file" if result.export.format == "gguf" else "exported graph"
        numbers[exported] = f"{metric_value(result, result.export.accuracy)} on test"
    return numbers


def _table(rows: Mapping[str, str]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 1))
    table.add_column(style="dim", no_wrap=True, min_width=17)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(Text(name), Text(value))
    return table
