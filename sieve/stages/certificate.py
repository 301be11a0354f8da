"""certify: the finished model on the selection rows, at the run's confidence.

A refit, a training and a quantization change a model after its size was chosen. So the model that
is exported is tested once more, on rows that its search did not fit.
"""

from dataclasses import asdict

from sieve.bank.bank import Bank
from sieve.bank.genome import Genome
from sieve.bank.switch import Switch
from sieve.data.paired import dense_examples
from sieve.evaluation.evaluation import score
from sieve.runtime.artifacts import fingerprint
from sieve.stages.cached import JSON, Record
from sieve.stages.evaluate import is_dense
from sieve.stages.quantize import quantize
from sieve.stages.rows import fits_all_rows, fresh_rows
from sieve.stages.run import Run
from sieve.tasks.drop_test import upper_drop
from sieve.tasks.scores import as_baseline, drop_of

VERSION = 2  # of the record; part of its fingerprint


def certify(run: Run, bank: Bank, genome: Genome) -> Record | None:
    """The drop on the selection rows and its upper bound; None without a confidence.

    Also None if nothing changed the dense model, which loses nothing, or if the search fitted all
    selection rows, so that none of them can test its choice.
    """
    config = run.config
    if config.confidence is None or is_dense(run, bank, genome) or fits_all_rows(run):
        return None
    rows = [run.split_key("selection"), config.search.confirmation, config.seed]
    settings = [config.tolerance, config.confidence, asdict(config.quantization)]
    key = fingerprint("certificate", VERSION, bank.fingerprint, genome.levels, rows, settings)
    [record] = run.cached("certify", key, {"certificate": JSON}, lambda: [_test(run, bank, genome)])
    return record


def _test(run: Run, bank: Bank, genome: Genome) -> Record:
    model, rows, confidence = run.backbone.model, fresh_rows(run), run.config.confidence
    assert confidence is not None
    dense_batches = run.dense_data.scoring_batches(dense_examples(rows))
    dense = as_baseline(score(model, dense_batches, "Scoring the dense model"))
    with Switch(model, bank) as switch:
        switch.to(genome)
        if run.config.quantization.method != "none":
            quantize(run, bank)
        pruned = score(model, run.data.scoring_batches(rows), "Scoring the finished model")
    upper = upper_drop(dense, pruned, confidence)
    certified = not pruned.not_finite and upper <= run.config.tolerance
    drop = drop_of(dense, pruned)
    return {"rows": len(rows), "drop": drop, "upper": upper, "certified": certified}
