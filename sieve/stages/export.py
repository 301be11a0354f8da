"""export: the model directory, and the accuracy of an ONNX graph in it."""

import logging
from typing import Any

from sieve.bank.bank import Bank
from sieve.bank.genome import Genome
from sieve.bank.switch import Switch
from sieve.evaluation.evaluation import ScoresMetric
from sieve.exports.export import export as export_model
from sieve.exports.onnx import load_onnx
from sieve.exports.task_file import write_task
from sieve.runtime.progress import track
from sieve.stages.cached import Record
from sieve.stages.quantize import quantize
from sieve.stages.run import Run
from sieve.tasks.metrics import Metric

log = logging.getLogger(__name__)


def export(run: Run, bank: Bank, genome: Genome, dense_accuracy: float) -> Record:
    """Write the model directory; returns its format and, for ONNX, the accuracy on the test split.

    An ONNX graph computes by other code than the evaluated model, and may hold 8-bit weights, so it
    is loaded and scored. A warning says if it has lost more than the tolerance.
    """
    form = run.config.export.format
    record: Record = {"format": form, "accuracy": None}
    if form == "none":
        return record
    folder = run.run_dir / "export"
    with run.stage("export"):
        if run.leads or run.sharded:
            with Switch(run.backbone.model, bank).to(genome):
                if run.config.quantization.method != "none":
                    quantize(run, bank)
                export_model(run.backbone.model, run.backbone.tokenizer, folder, form, bank.dtype)
        if run.leads:
            if run.config.task.lm_eval is None:  # The harness renders prompts in its own way.
                write_task(run.config.task, run.task.labels, folder, run.task.preamble)
            if form.startswith("onnx"):
                record["accuracy"] = graph_accuracy(load_onnx(folder)[0], run)
                if record["accuracy"] is not None:
                    warn_of_loss(
                        record["accuracy"], dense_accuracy, run.config.tolerance, run.task.metric
                    )
    return record


def graph_accuracy(model: Any, run: Run) -> float | None:
    """The metric of a loaded graph on the test split; None if the task generates answers."""
    if run.task.writing is not None:
        log.info("the graph is not scored: it cannot generate answers by itself.")
        return None
    metric = ScoresMetric(len(run.task.splits["test"]), metric=run.task.metric)
    for batch in track(run.data.scoring("test"), "Scoring the graph"):
        metric.update(batch.outcome(model), batch.examples)  # A graph has no cache for prefixes.
    return metric.scores().accuracy


def warn_of_loss(accuracy: float, dense_accuracy: float, tolerance: float, metric: Metric) -> None:
    """Warn if a graph has lost more than the tolerance."""
    drop = accuracy / dense_accuracy - 1 if metric.relative else dense_accuracy - accuracy
    if drop > tolerance:
        unit = "%" if metric.relative else "points"
        log.warning(
            "the exported graph has %s %.4g on the test rows, the dense model %.4g: a loss of "
            "%.1f %s, more than the tolerance of %.1f; choose export=onnx or export=factorized.",
            *(metric.name, accuracy, dense_accuracy, 100 * drop, unit, 100 * tolerance),
        )
