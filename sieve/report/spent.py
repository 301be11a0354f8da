"""What a search has spent and what unseen rows said of its winners, in plain words.

For the page and the terminal; what a record does not hold is not mentioned.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sieve.report.genomes import is_whole, most_examples
from sieve.report.values import count, look, measure, number, percent

Result = Mapping[str, Any]


def spent(result: Result) -> str:
    """ "The search evaluated 112 genomes ...; 20 were dropped early": one sentence, "" without."""
    evaluations = measure(result, "search.evaluations")
    if evaluations is None:
        return ""
    rows = measure(result, "search.examples")
    generations = look(result, "search.generations") or []
    start = f"The search evaluated {_counted(evaluations, 'genome')}"
    start += "" if rows is None else f" and scored {_counted(rows, 'row')}"
    start += f" in {_counted(len(generations), 'generation')}" if generations else ""
    again, early = memo_hits(result), len(dropped(result))
    remarks = [
        f"{count(early)} {'was' if early == 1 else 'were'} dropped early" if early else "",
        f"{count(again)} came up again at no cost" if again else "",
    ]
    alone = sum(number(r.get("evaluations")) or 0 for r in look(result, "search.bottlenecks") or [])
    if alone:
        remarks.append(f"the bottleneck map took {_counted(alone, 'genome')} more")
    return "; ".join([start, *filter(None, remarks)]) + "."


def confirmation(result: Result) -> str:
    """What the rows that the search has not seen said, in one or two sentences; "" without any."""
    tried = confirmation_rows(result)
    rows = measure(result, "search.confirmation.rows")
    if not tried or rows is None:
        return ""
    within = sum(bool(row.get("feasible")) for row in tried)
    held = f"{count(within) if within else 'none'} {'was' if within < 2 else 'were'}"
    if len(tried) == 1:
        held = "it was" if within else "it was not"
    verb = "was" if len(tried) == 1 else "were"
    also = ", together with its own," if look(result, "search.confirmation.together") else ""
    return (
        f"On {_counted(rows, 'row')} that the search had not seen{also} "
        f"{_counted(len(tried), 'candidate')} {verb} tried: {held} within the tolerance. "
        f"{_winner(result, within)}"
    ).rstrip()


def confirmation_rows(result: Result) -> Sequence[Mapping[str, Any]]:
    """The candidates that were tried on unseen rows, in order."""
    tried = look(result, "search.confirmation.tried")
    return tried if isinstance(tried, Sequence) else []


def dropped(result: Result) -> list[Mapping[str, Any]]:
    """Genomes that were not scored on all rows."""
    points = look(result, "search.curve") or []
    full = most_examples(points)
    return [p for p in points if not p.get("refitted") and not is_whole(p, full)]


def memo_hits(result: Result) -> float:
    """Genomes of the generations that had been evaluated before."""
    return sum(number(row.get("memo")) or 0 for row in look(result, "search.generations") or [])


def _winner(result: Result, within: int) -> str:
    before = measure(result, "search.confirmation.kept_before")
    kept = measure(result, "search.confirmation.kept")
    if kept is None:
        return ""
    start = f"The winner keeps {percent(kept)}"
    if not within:
        start = f"So the largest was taken, which keeps {percent(kept)}"
    if before is None or percent(before) == percent(kept):
        return f"{start}."
    return f"{start}; on the rows of the search alone it would have been {percent(before)}."


def _counted(number_of: float, noun: str) -> str:
    return f"{count(number_of)} {noun}{'s' * (number_of != 1)}"
