"""The rows of a task in two lines: how many, with which answers, and what was done to them."""

from collections.abc import Iterator, Mapping
from typing import Any

from sieve.tasks.config import ROLES
from sieve.tasks.task import Task

ANSWERS = 4  # shown for each split


def describe_rows(task: Task) -> list[str]:
    """One line on the rows of each split, and one on what is odd about them, if anything is."""
    report: Mapping[str, Any] = task.report
    answers: Mapping[str, Mapping[str, int]] = report.get("answers", {})
    if task.kind != "classification" and any(len(row) > ANSWERS for row in answers.values()):
        answers = {}  # Texts of options tell nothing.
    splits = [
        f"{report['rows'][role]:,} {role}{_answers(answers[role]) if role in answers else ''}"
        for role in ROLES
    ]
    remarks = "; ".join(_remarks(report))
    return [f"Rows: {', '.join(splits)}.", *([f"Data: {remarks}."] if remarks else [])]


def _answers(counts: Mapping[str, int]) -> str:
    """The right answers with their rows, in brackets; of many only the most frequent ones."""
    shown = [f"{rows:,} {answer}" for answer, rows in list(counts.items())[:ANSWERS]]
    return f" ({', '.join(shown + ['…'] * (len(counts) > ANSWERS))})"


def _remarks(report: Mapping[str, Any]) -> Iterator[str]:
    for role, carved in report["carved"].items():
        yield f"{carved['rows']:,} rows of '{carved['from']}' are the {role} split, chosen by hash"
    for role, filled in report["filled"].items():
        if filled["rows"]:
            added = f"{filled['rows']:,} {'more ' * (role in report['carved'])}rows"
            yield f"{added} of '{filled['from']}' fill up the {role} split (search.rows)"
    repeated: Mapping[str, int] = report["duplicates"]
    for role in ROLES:
        dropped = [
            f"{rows:,} repeat a prompt" if other == role else f"{rows:,} are also in {other}"
            for other in reversed(ROLES)
            if (rows := repeated.get(f"{role}/{other}")) and (other != role or role == ROLES[0])
        ]
        if dropped:
            yield f"dropped of {role}: {', '.join(dropped)}"
    for role in ROLES[1:]:
        if rows := repeated.get(f"{role}/{role}"):
            yield f"{rows:,} {role} rows repeat a prompt"
    for name, rows in report.get("empty", {}).items():
        yield f"{rows:,} rows have an empty '{name}': check them"
    if rows := report.get("contradictory"):
        yield f"{rows:,} rows have the prompt of a row with another label: check them"
    for name, rows in report["truncated"].items():
        yield f"{rows:,} texts of '{name}' are shortened"
