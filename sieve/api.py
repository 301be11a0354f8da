"""The names of the package `sieve`, which imports this module when one of them is used."""

# ruff: noqa: F401
from sieve.bank.bank import Bank, fit
from sieve.bank.genome import Genome
from sieve.bank.merging import merge_dense
from sieve.bank.switch import Switch, apply
from sieve.calibration.calibration import calibrate
from sieve.data.calibration_rows import calibration_batches
from sieve.data.choices import scoring_batches
from sieve.exports.export import export
from sieve.exports.loading import load
from sieve.factorized.modeling_layers import FactorizedLinear
from sieve.projections.moments import Moments
from sieve.search.lines import search_uniform, search_waterfill
from sieve.search.measure import Answer, measure
from sieve.search.objective import Objective
from sieve.search.score import Score
from sieve.tasks import Example
