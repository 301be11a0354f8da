"""curve: accuracy on the test split at kept fractions that the user names.

The search is over, and nothing is chosen from this. `curve` in the configuration names the kept
fractions. With `search.bottlenecks` the stage also tests the map of bottlenecks: it prunes the
matrices that need most, then those that need least.
"""

from collections.abc import Iterable
from dataclasses import asdict

from sieve.bank.bank import Bank
from sieve.bank.genome import Genome
from sieve.report.genomes import LINES
from sieve.runtime.artifacts import fingerprint
from sieve.search.bottlenecks import Bottleneck, contrast
from sieve.search.lines import Line
from sieve.stages.cached import JSON, Record
from sieve.stages.evaluate import is_dense, score_test
from sieve.stages.finished import scored_switch
from sieve.stages.run import Run
from sieve.stages.seeds import line_of, lowest_rank, usable_levels
from sieve.tasks.scores import as_baseline, compare

VERSION = 2  # of the record; part of its fingerprint


def curve(run: Run, bank: Bank, search: Record) -> Record:
    """Test scores: `curve` at each kept fraction; `contrast` without some of the matrices.

    `contrast` has the model without its neediest matrices, and without its least needy ones. Each
    is None if the configuration does not ask for it. `bank` is the bank before any refit.
    """
    bottlenecks = search.get("bottlenecks")
    if not run.config.curve and not bottlenecks:
        return {"curve": None, "contrast": None}
    line = [run.config.search.method, run.config.search.normalize, usable_levels(run, bank)]
    measured = [run.config.curve, bottlenecks, run.split_key("test"), run.config.seed]
    structural = ["structural"] * bank.structural
    key = fingerprint("curve", VERSION, bank.fingerprint, line, measured, *structural)
    [record] = run.cached("curve", key, {"curve": JSON}, lambda: [_curve(run, bank, bottlenecks)])
    numbers = [{k: v for k, v in p.items() if k != "drop"} for p in record["curve"] or []]
    run.logger.log_series("curve", numbers, step="kept_fraction")
    return record


def nearest(line: Line, bank: Bank, fractions: Iterable[float]) -> list[Genome]:
    """For each fraction, the largest genome on the line that keeps at most this; no duplicates."""
    sizes = [bank.kept_fraction(line.genome(index)) for index in range(line.count)]
    indexes = {
        min((i for i, size in enumerate(sizes) if size <= f + 1e-9), default=line.count - 1)
        for f in fractions
    }
    return [line.genome(index) for index in sorted(indexes)]


def _curve(run: Run, bank: Bank, bottlenecks: list[Bottleneck] | None) -> Record:
    method = run.config.search.method
    with scored_switch(run, bank) as switch:
        with run.original_model():
            dense = as_baseline(score_test(run, run.original_data))

        def point(genome: Genome) -> Record:
            pruned = dense
            if not is_dense(run, bank, genome):
                with switch.to(genome):
                    pruned = score_test(run)
            return {
                "kept_fraction": bank.kept_fraction(genome),
                "accuracy": pruned.accuracy,
                "loss": pruned.loss,
                "drop": asdict(compare(dense, pruned, run.config.seed)),
            }

        line = line_of(run, bank, method if method in LINES else "waterfill")
        points = [point(genome) for genome in nearest(line, bank, run.config.curve)]
        sides = contrast(bank, bottlenecks, lowest_rank(run, bank)) if bottlenecks else {}
        contrasted = {
            name: point(side.genome) | {"matrices": side.matrices, "removed": side.removed}
            for name, side in sides.items()
        }
    return {"curve": points or None, "contrast": contrasted or None}
