"""Sieve: how many parameters does your task need? The stages, on plain objects.

    batches = sieve.calibration_batches(examples, tokenizer)
    moments = sieve.calibrate(model, batches, projection="loss_aware")
    bank = sieve.fit(model, moments, "loss_aware", "pivoted")
    objective = sieve.Objective(model, bank, sieve.scoring_batches(held_out, tokenizer))
    genome = sieve.search_waterfill(bank, objective)
    sieve.apply(model, bank, genome)
    sieve.export(model, tokenizer, "small")

Importing this package lets `AutoModelForCausalLM` load what it exports.
"""

import sieve.runtime.quiet  # noqa: F401  before anything that loads torch
import sieve.runtime.threads  # noqa: F401  the same
from sieve.bank.bank import Bank, fit
from sieve.bank.genome import Genome
from sieve.bank.switch import Switch, apply, merge_dense
from sieve.calibration.calibration import calibrate
from sieve.data.calibration_rows import calibration_batches
from sieve.data.choices import scoring_batches
from sieve.exports.export import export
from sieve.exports.loading import load
from sieve.factorized.modeling_layers import FactorizedLinear
from sieve.factorized.modeling_sieve import register
from sieve.projections.moments import Moments
from sieve.search.lines import search_uniform, search_waterfill
from sieve.search.objective import Objective
from sieve.search.score import Score
from sieve.tasks import Example

__version__ = "0.1.0"

__all__ = [
    "Bank",
    "Example",
    "FactorizedLinear",
    "Genome",
    "Moments",
    "Objective",
    "Score",
    "Switch",
    "apply",
    "calibrate",
    "calibration_batches",
    "export",
    "fit",
    "load",
    "merge_dense",
    "scoring_batches",
    "search_uniform",
    "search_waterfill",
]

register()
