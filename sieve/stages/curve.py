"""curve: accuracy on the test split at sizes that nobody chose, beside the one that was.

It is a report: the search is over, and nothing follows from it. `curve` in the configuration names
the kept fractions; with `search.bottlenecks` the map's own claim is put to the test as well.
"""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from sieve.bank.bank import Bank
from sieve.bank.genome import Genome
from sieve.bank.switch import Switch
from sieve.runtime.artifacts import fingerprint, read_json, write_json_atomic
from sieve.search.bottlenecks import Bottleneck, contrast
from sieve.search.lines import Line
from sieve.stages.evaluate import score_test
from sieve.stages.rows import LINES
from sieve.stages.run import Run
from sieve.stages.seeds import line_of, lowest_rank, usable_levels
from sieve.tasks.scores import Scores, compare

Figures = dict[str, Any]


def curve(run: Run, bank: Bank, search: Figures) -> Figures:
    """`curve`: a point per kept fraction asked for; `contrast`: of bottlenecks against others.

    bank: as fitted, before any refit. Either is None where nothing was asked.
    """
    mapped = search.get("bottlenecks")
    if not run.config.curve and not mapped:
        return {"curve": None, "contrast": None}
    key = fingerprint(
        "curve", 1, bank.fingerprint, run.config.curve, mapped, run.config.search.method,
        run.config.search.normalize, usable_levels(run, bank), run.split_key("test"),
        run.config.seed,
    )  # fmt: skip
    path = run.cache.path("curve", key, "json")
    with run.stage("curve", cached=path.exists()):
        if not path.exists():
            figures = _measure(run, bank, mapped)
            if run.leads:
                write_json_atomic(path, figures)
    figures = read_json(path)
    plain = [{k: v for k, v in p.items() if k != "drop"} for p in figures["curve"] or []]
    run.logger.log_series("curve", plain, step="kept_fraction")
    return figures


def nearest(line: Line, bank: Bank, fractions: Iterable[float]) -> list[Genome]:
    """For each kept fraction the largest genome of a line that keeps no more; each stands once."""
    sizes = [bank.kept_fraction(line.genome(place)) for place in range(line.count)]
    places = {
        min((i for i, size in enumerate(sizes) if size <= f + 1e-9), default=line.count - 1)
        for f in fractions
    }
    return [line.genome(place) for place in sorted(places)]


def _measure(run: Run, bank: Bank, mapped: list[Bottleneck] | None) -> Figures:
    method = run.config.search.method
    with Switch(run.backbone.model, bank) as switch:
        dense = score_test(run)

        def point(genome: Genome) -> Figures:
            with switch.to(genome):
                found = score_test(run)
            return {"kept_fraction": bank.kept_fraction(genome)} | _figures(dense, found, run)

        line = line_of(run, bank, method if method in LINES else "waterfill")
        points = [point(genome) for genome in nearest(line, bank, run.config.curve)]
        opposed = None
        if mapped:
            pair = contrast(bank, mapped, lowest_rank(run, bank))
            opposed = {
                name: point(part.genome) | {"matrices": part.matrices, "removed": part.removed}
                for name, part in pair.items()
            }
    return {"curve": points or None, "contrast": opposed}


def _figures(dense: Scores, found: Scores, run: Run) -> Figures:
    return {
        "accuracy": found.accuracy,
        "loss": found.loss,
        "drop": asdict(compare(dense, found, run.config.seed)),
    }
