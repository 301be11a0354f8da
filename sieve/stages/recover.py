"""recover: the pruned model trained on its task.

With `search.recover` sizes are tried from large to small by what they are after a short training,
and the smallest that stays within the tolerance is trained to the end (`recovered_search.py`).
Without it, the genome of the search is trained as it is.
"""

import logging

from sieve.bank.bank import Bank
from sieve.bank.genome import Genome
from sieve.runtime.artifacts import fingerprint
from sieve.stages.cached import BANK, GENOME, JSON, Record
from sieve.stages.calibrate import Calibrated
from sieve.stages.recovered_search import RISK, search_recovered
from sieve.stages.run import Run
from sieve.stages.selecting import search_inputs
from sieve.stages.training import Training, log_checks, training_inputs

log = logging.getLogger(__name__)
VERSION = 17  # of the files; part of their fingerprint
NOTHING: Record = {"method": "none", "taken": False, "trained_parameters": 0, "history": []}
Pruned = tuple[Bank, Genome]


def recover(
    run: Run, calibrated: Calibrated, searched: Pruned, refitted: Pruned
) -> tuple[Bank, Genome, Record | None]:
    """Train the factors; returns a bank, a genome for it and the record of the stage.

    If training does not help, it returns the refitted bank and genome. The record is None if the
    configuration asks for no recovery, or nothing can be trained.

    Args:
        calibrated: moments, with which trained factors are pruned further.
        searched: the bank and the genome of the search, from which sizes are tried.
        refitted: the same after the refit.
    """
    bank, genome = refitted
    if run.config.recovery.method == "none":
        return bank, genome, None
    if not (run.recovers or any(bank.ranks(genome).values())):
        if run.leads:
            log.warning("recover: no matrix has factors to train, so the model stays as it is.")
        return bank, genome, None
    inputs = [search_inputs(run, searched[0]), training_inputs(run)]
    models = [[b.fingerprint, g.levels] for b, g in (searched, refitted)]
    key = fingerprint("recovery", VERSION, models, inputs)
    record, genome, bank = run.cached(
        "recover",
        key,
        {"recovered-record": JSON, "recovered-genome": GENOME, "recovered": BANK},
        lambda: _recover(run, calibrated, searched, refitted, key),
    )
    run.choose(bank, genome)
    if run.from_cache["recover"]:
        log_checks(run, *record["history"])
    return bank, genome, record


def _recover(
    run: Run, calibrated: Calibrated, searched: Pruned, refitted: Pruned, key: str
) -> tuple[Record, Genome, Bank]:
    training, attempts = Training(run, searched[0]), None
    bank, genome = refitted
    if run.recovers:
        size = bank.kept_fraction(genome)
        attempts, best = search_recovered(training, calibrated, searched, size, key)
        if best is not None and best.kept_fraction < size:
            return best.record | {"taken": True, "search": attempts}, best.genome, best.bank
    # The certificate of this genome has the share of the risk that failed sizes left.
    left = {"search": attempts, "risk": RISK[-1] if attempts and attempts["certified"] else 1.0}
    if not any(bank.ranks(genome).values()):
        return NOTHING | left, genome, bank.only(genome)
    trained = training.to_the_end(bank, genome, fingerprint(key, "as it is"))
    return trained.record | left, trained.genome, trained.bank
