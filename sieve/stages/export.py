"""export: the model directory, and what a graph in it scores."""

import logging
from typing import Any

from sieve.backbone import forward
from sieve.bank import Bank
from sieve.batches import choice_logprobs
from sieve.calibration import as_inputs
from sieve.export import export as export_model
from sieve.factorized import Switch
from sieve.genome import Genome
from sieve.onnx_export import load_onnx
from sieve.progress import track
from sieve.stages.quantize import quantize
from sieve.stages.run import Run
from sieve.task_file import write_task

log = logging.getLogger(__name__)


def export(run: Run, bank: Bank, genome: Genome, dense_accuracy: float) -> dict[str, Any]:
    """Write the model directory; returns its format and, of a graph, its accuracy on test.

    A graph computes by other code than the model that was evaluated, and may hold 8 bits: it is
    loaded again, and one that has lost more than the tolerance is warned of.
    """
    form = run.config.export.format
    record: dict[str, Any] = {"format": form, "accuracy": None}
    if form == "none":
        return record
    folder = run.run_dir / "export"
    with run.stage("export"):
        if run.leads:
            with Switch(run.backbone.model, bank).to(genome):
                if run.config.quantization.method != "none":
                    quantize(run, bank)
                export_model(run.backbone.model, run.backbone.tokenizer, folder, form, bank.dtype)
            write_task(run.config.task, run.task.labels, folder)
            if form.startswith("onnx"):
                record["accuracy"] = graph_accuracy(load_onnx(folder)[0], run)
                warn_of_loss(record["accuracy"], dense_accuracy, run.config.tolerance)
    return record


def graph_accuracy(model: Any, run: Run) -> float:
    """Accuracy of a loaded graph on the test split, by this process alone."""
    right = 0
    for batch in track(run.data.scoring("test"), "Scoring the graph"):
        logits = forward(model, as_inputs(batch), batch.keep)
        likely = choice_logprobs(logits, batch, run.task.normalize)
        sound = ~likely.isnan().any(1)
        right += int((sound & (likely.argmax(1) == batch.answers)).sum())
    return right / len(run.task.splits["test"])


def warn_of_loss(accuracy: float, dense_accuracy: float, tolerance: float) -> None:
    lost = dense_accuracy - accuracy
    if lost > tolerance:
        log.warning(
            "the exported graph is right on %.1f %% of the test rows, %.1f points fewer than the "
            "dense model, where the tolerance is %.1f; choose export=onnx or export=factorized.",
            100 * accuracy, 100 * lost, 100 * tolerance,
        )  # fmt: skip
