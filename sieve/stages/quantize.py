"""quantize: the pruned model in 8 or 4 bits, for the test split and for the export."""

from dataclasses import asdict

from sieve.bank.bank import Bank
from sieve.quantization import Quantized
from sieve.quantization import quantize as quantize_model
from sieve.stages.cached import Record
from sieve.stages.run import Run


def quantize(run: Run, bank: Bank) -> Quantized:
    """Quantize the bank's matrices in the model; moving its switch again undoes this."""
    names = [matrix.name for matrix in bank.matrices]
    return quantize_model(run.backbone.model, names, run.config.quantization, bank.dtype)


def quantization_record(
    run: Run, bank: Bank, quantized: Quantized, *, before: float, after: float
) -> Record:
    """Bytes of the prunable matrices, and the accuracies `before` and `after` quantization.

    `saved` is the fraction of the dense checkpoint's bytes for these matrices that pruning and
    quantization save together.
    """
    dense = bank.size * run.backbone.storage_dtype.itemsize
    return {
        "method": run.config.quantization.method,
        **asdict(quantized),
        "bytes_dense": dense,
        "saved": 1 - quantized.bytes_after / dense,
        "accuracy_before": before,
        "accuracy_after": after,
    }
