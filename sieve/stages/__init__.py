"""The stages of one run. Each takes what the one before it wrote and writes one artifact.

A finished stage is found again by the fingerprint of everything it depends on, and is not redone:
not by a second run, not by another ε, not after a kill.
"""

from sieve.stages.calibrate import calibrate
from sieve.stages.curve import curve
from sieve.stages.evaluate import evaluate
from sieve.stages.export import export
from sieve.stages.fit import fit
from sieve.stages.genetic import prepare, run_shard
from sieve.stages.recover import recover
from sieve.stages.refit import refit, with_refit
from sieve.stages.report import report
from sieve.stages.run import Run, opened
from sieve.stages.search import search

STAGES = ("calibrate", "fit", "search", "refit", "evaluate", "export", "report")

__all__ = [
    "STAGES", "Run", "calibrate", "curve", "evaluate", "export", "fit", "opened", "prepare",
    "recover", "refit", "report", "run_shard", "search", "with_refit",
]  # fmt: skip
