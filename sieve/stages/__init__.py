"""The stages of one run. Each takes the values of earlier stages and writes files of its own.

The files of a finished stage stay in the cache under a fingerprint of everything that the stage
depends on. A later run with the same fingerprint reads them, whatever its tolerance, and also after
an earlier run was killed.
"""

from sieve.stages.calibrate import calibrate
from sieve.stages.certificate import certify
from sieve.stages.curve import curve
from sieve.stages.evaluate import evaluate
from sieve.stages.export import export
from sieve.stages.fit import fit
from sieve.stages.genetic import evaluate_genomes, prepare
from sieve.stages.opening import opened
from sieve.stages.recover import recover
from sieve.stages.refit import refit, with_refit
from sieve.stages.report import report
from sieve.stages.rivals import rivals
from sieve.stages.run import Run
from sieve.stages.search import search

__all__ = [
    "Run",
    "calibrate",
    "certify",
    "curve",
    "evaluate",
    "evaluate_genomes",
    "export",
    "fit",
    "opened",
    "prepare",
    "recover",
    "refit",
    "report",
    "rivals",
    "search",
    "with_refit",
]
