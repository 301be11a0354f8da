"""quantize: the pruned model in fewer bits, for the test split and for the export."""

from dataclasses import asdict
from typing import Any

from sieve.bank.bank import Bank
from sieve.quantization import Quantized
from sieve.quantization import quantize as quantize_model
from sieve.stages.run import Run


def quantize(run: Run, bank: Bank) -> Quantized:
    """Quantize the matrices of the model as it stands.

    A switch that is moved to a genome again brings the weights back.
    """
    names = [matrix.name for matrix in bank.matrices]
    return quantize_model(run.backbone.model, names, run.config.quantization, bank.dtype)


def record_of(
    run: Run, bank: Bank, found: Quantized, accuracy_before: float, accuracy_after: float
) -> dict[str, Any]:
    """What result.json says: bytes of the prunable matrices and accuracies, before and after.

    `saved` is the fraction of their bytes in the dense checkpoint that pruning and quantization
    save together.
    """
    dense = bank.size * run.backbone.storage_dtype.itemsize
    return {
        "method": run.config.quantization.method,
        **asdict(found),
        "bytes_dense": dense,
        "saved": 1 - found.bytes_after / dense,
        "accuracy_before": accuracy_before,
        "accuracy_after": accuracy_after,
    }
