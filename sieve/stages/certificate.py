"""certify: the finished model on the selection rows, at the run's confidence.

A refit, a training and a quantization change a model after its size was chosen. So the model that
is exported is tested once more, on rows that its search did not fit.
"""

from dataclasses import asdict

from sieve.bank.bank import Bank
from sieve.bank.genome import Genome
from sieve.data.paired import dense_examples
from sieve.evaluation.evaluation import score
from sieve.runtime.artifacts import fingerprint
from sieve.stages.cached import JSON, Record
from sieve.stages.evaluate import is_dense
from sieve.stages.finished import scored_switch
from sieve.stages.quantize import quantize
from sieve.stages.rows import fresh_rows
from sieve.stages.run import Run
from sieve.tasks.drop_test import upper_drop
from sieve.tasks.scores import as_baseline, drop_of

VERSION = 4  # of the record; part of its fingerprint


def certify(run: Run, bank: Bank, genome: Genome, recovered: Record | None) -> Record | None:
    """The drop on the selection rows and its upper bound; None without a confidence.

    Also None if nothing changed the dense model, which loses nothing, or if the search fitted all
    selection rows, so that none of them can test its choice. A model that the search, its refit or
    its training tested on these rows last is `tested_before`: the test repeats theirs, and adds no
    evidence.

    recovered: the record of the training. If trained sizes failed on these rows, its `risk` is the
    share of the risk of being wrong that they left, and the confidence is higher by that.
    """
    config = run.config
    if config.confidence is None or is_dense(run, bank, genome) or config.search.fits_all_rows:
        return None
    rows = [run.split_key("selection"), config.search.confirmation, config.seed]
    risk = None if recovered is None else recovered.get("risk")
    settings = [config.tolerance, config.test_confidence, risk, asdict(config.quantization)]
    key = fingerprint("certificate", VERSION, bank.fingerprint, genome.levels, rows, settings)
    [record] = run.cached(
        "certify", key, {"certificate": JSON}, lambda: [_test(run, bank, genome, risk)]
    )
    return record


def _test(run: Run, bank: Bank, genome: Genome, risk: float | None) -> Record:
    """Score a model; `risk` is None if it is the last one that was tested, but for quantization."""
    model, rows, quantized = run.backbone.model, fresh_rows(run), run.config.quantization
    assert run.config.test_confidence is not None
    confidence = 1 - (risk or 1.0) * (1 - run.config.test_confidence)
    dense_batches = run.original_data.scoring_batches(dense_examples(rows))
    with run.original_model():
        dense = as_baseline(score(model, dense_batches, "Scoring the dense model"))
    with scored_switch(run, bank) as switch:
        switch.to(genome)
        if quantized.method != "none":
            quantize(run, bank)
        pruned = score(model, run.data.scoring_batches(rows), "Scoring the finished model")
    upper = upper_drop(dense, pruned, confidence)
    certified = not pruned.not_finite and upper <= run.config.tolerance
    return {
        "rows": len(rows),
        "drop": drop_of(dense, pruned),
        "upper": upper,
        "confidence": confidence,
        "certified": certified,
        "tested_before": risk is None and quantized.method == "none",
    }
