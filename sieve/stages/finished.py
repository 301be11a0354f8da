"""The finished model, in the form in which it is scored and written."""

import torch

from sieve.bank.bank import Bank
from sieve.bank.switch import Switch
from sieve.stages.run import Run


def scored_switch(run: Run, bank: Bank) -> Switch:
    """A switch whose models compute with the numbers of the export.

    Ranks that share a model out share its factors out too. They compute with plain factors then,
    whatever form the export has; the two differ by rounding.
    """
    split = run.sharded and run.config.quantization.method == "none"
    return Switch(run.backbone.model, bank, as_stored=not split, split=split)


def written_switch(run: Run, bank: Bank) -> Switch:
    """A switch whose models the export writes.

    Of a model that ranks share out, rank 0 holds the factors in host memory, and the others none.
    """
    held, quantized = None, run.config.quantization.method != "none"
    # Devices compute dense weights. How many outputs siblings share is only known with numbers.
    factors = run.config.export.format == "factorized" and not bank.groups
    if run.sharded and factors and not quantized:
        held = torch.device("cpu" if run.leads else "meta")
    return Switch(run.backbone.model, bank, held=held)
