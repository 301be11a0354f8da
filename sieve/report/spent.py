"""How many genomes a search evaluated, and how the best did on rows that it had not used.

Sentences for the page and the terminal. They leave out what the result does not state.
"""

from sieve.report.result import Result
from sieve.report.values import count, counted, percent


def spent(result: Result) -> str:
    """ "The search evaluated 112 genomes ...; 20 were decided early."; "" if not recorded."""
    search = result.search
    if search.evaluations is None:
        return ""
    start = f"The search evaluated {counted(search.evaluations, 'genome')}"
    start += "" if search.examples is None else f" and scored {counted(search.examples, 'row')}"
    if search.generations:
        start += f" in {counted(len(search.generations), 'generation')}"
    early = sum(g.whole is False and not g.refitted for g in search.curve)
    repeated = sum(generation.memo or 0 for generation in search.generations)
    alone = sum(bottleneck.evaluations or 0 for bottleneck in search.bottlenecks)
    remarks = [
        f"{count(early)} of them decided early" if early else "",
        f"{count(repeated)} came up again at no cost" if repeated else "",
        f"the bottleneck map evaluated {counted(alone, 'genome')} more" if alone else "",
    ]
    return "; ".join([start, *filter(None, remarks)]) + "."


def confirmation(result: Result) -> str:
    """How the candidates did on rows that the search had not used; "" if there were none."""
    record = result.search.confirmation
    if record is None or not record.tried or record.rows is None:
        return ""
    feasible = sum(bool(candidate.feasible) for candidate in record.tried)
    rows = f"{counted(record.rows, 'row')} that the search had not used"
    rows += " and on its own rows" if record.together else ""
    tried = counted(len(record.tried), "candidate")
    sentence = f"Within the tolerance on {rows}: {count(feasible)} of {tried}."
    if record.kept is None:
        return sentence
    kept, before = percent(record.kept), percent(record.kept_before)
    chosen = (
        f"The chosen one keeps {kept}" if feasible else f"The largest was chosen and keeps {kept}"
    )
    if record.kept_before is None or before == kept:
        return f"{sentence} {chosen}."
    return f"{sentence} {chosen}; the rows of the search alone would have given {before}."
