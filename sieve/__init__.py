"""Sieve: how many parameters does your task need? The stages, on plain objects.

    batches = sieve.calibration_batches(examples, tokenizer)
    moments = sieve.calibrate(model, batches, projection="loss_aware")
    bank = sieve.fit(model, moments, "loss_aware", "pivoted")
    objective = sieve.Objective(model, bank, sieve.scoring_batches(held_out, tokenizer))
    genome = sieve.search_waterfill(bank, objective)
    print(sieve.measure(objective, genome, sieve.scoring_batches(test, tokenizer)))
    sieve.apply(model, bank, genome)
    sieve.export(model, tokenizer, "small")

Importing this package lets `AutoModelForCausalLM` load what it exports. It takes no time: torch and
transformers are imported with the first of these names.
"""

# ruff: noqa: F405
from typing import TYPE_CHECKING

import sieve.runtime.quiet  # noqa: F401  before anything that loads torch
import sieve.runtime.threads  # noqa: F401  the same
from sieve.runtime.after_import import after_import

if TYPE_CHECKING:
    from sieve.api import *  # noqa: F403

__version__ = "0.1.0"

__all__ = [
    "Answer",
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
    "measure",
    "merge_dense",
    "scoring_batches",
    "search_uniform",
    "search_waterfill",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'sieve' has no attribute '{name}'")
    from sieve import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


def _register() -> None:
    from sieve.factorized.modeling_sieve import register

    register()


after_import("transformers", _register)
