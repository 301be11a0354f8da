"""export: the model directory, and the accuracy of an ONNX graph or an 8-bit GGUF file in it."""

import logging
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers

from sieve.bank.bank import Bank
from sieve.bank.genome import Genome
from sieve.evaluation.evaluation import ScoresMetric, warn_not_finite
from sieve.exports.ends import ends_merged
from sieve.exports.export import export as export_model
from sieve.exports.gguf_size import GgufSettings, GgufSize, gguf_size
from sieve.exports.loading import load
from sieve.exports.self_check import (
    Agreement,
    FreshProcess,
    answer_logprobs,
    check_export,
    without_writing,
)
from sieve.exports.storage import storage_size
from sieve.exports.task_file import write_task
from sieve.factorized.modeling_sieve import native_class
from sieve.model.backbone import is_classifier
from sieve.runtime.progress import track
from sieve.stages.cached import Record
from sieve.stages.finished import written_switch
from sieve.stages.quantize import quantize
from sieve.stages.run import Run
from sieve.tasks.config import SERVED
from sieve.tasks.metrics import Metric

log = logging.getLogger(__name__)
CHECK_TOKENS = 16_384  # the most tokens of the compared rows, padding included
FLOATS = "export=onnx or export=factorized"  # in place of a graph that has lost too much
MAX_CHANGED = 2  # rows whose answer rounding may change without a warning


def export(run: Run, bank: Bank, genome: Genome, dense_accuracy: float) -> Record:
    """Write and check the model directory; returns the record.

    The record has the format, how the export agrees with the finished model, for GGUF the sizes,
    for factors their form with the bytes of either form, and the accuracy on the test split if
    `scores_export` says so: an ONNX graph computes by other code than the evaluated model, and
    weights in 8 bits are rounded, so these exports are loaded and scored on all test rows. A
    warning says if one has lost more than the tolerance. `server` is the module that serves it.
    """
    form = run.config.export.format
    record: Record = {"format": form, "server": "", "accuracy": None, "check": None}
    record["storage"] = None
    if form == "none":
        return record
    folder = run.run_dir / "export"
    record["server"] = server_of(run)
    with run.stage("export"), ExitStack() as stack:
        model = run.backbone.model
        process = stack.enter_context(FreshProcess()) if can_check(run) else None
        if run.leads or run.sharded:
            stack.enter_context(written_switch(run, bank).to(genome))
            if run.config.quantization.method != "none":
                quantize(run, bank)
            check = None if process is None else _checker(run, process, record)
            gguf = gguf_settings(run)
            storage = run.config.export.storage
            with ends_merged(model, run.config.export.merge_head and form == "factorized"):
                if form == "factorized" and (stored := storage_size(model, bank.dtype, storage)):
                    record["storage"] = asdict(stored)
                export_model(
                    model, run.backbone.tokenizer, folder, form, bank.dtype, check, gguf, storage
                )
            if form == "gguf" and run.leads:
                size = gguf_size(model, gguf, bank.dtype)
                record["gguf"] = asdict(size)
                report_gguf(size)
        if run.leads:
            if run.config.task.lm_eval is None:  # The harness renders prompts in its own way.
                kept = run.task.preamble, record["storage"]
                write_task(run.config.task, run.task.labels, folder, *kept)
            if scores_export(run):
                record["accuracy"] = export_accuracy(load(folder, run.device)[0], run)
                warn_of_loss(
                    record["accuracy"],
                    dense_accuracy,
                    run.config.tolerance,
                    run.task.metric,
                    "another export.gguf_dtype" if form == "gguf" else FLOATS,
                )
    return record


def scores_export(run: Run) -> bool:
    """Whether the export itself is scored on the test rows."""
    export = run.config.export
    return export.format.startswith("onnx") or is_8_bit(run)


def is_8_bit(run: Run) -> bool:
    """Whether the export rounds weights to 8 bits by itself."""
    export = run.config.export
    return export.format == "onnx_int8" or (export.format == "gguf" and export.gguf_dtype == "q8_0")


def gguf_settings(run: Run) -> GgufSettings:
    """How the run writes a GGUF file."""
    export = run.config.export
    removed = run.cut.vocabulary.removed if run.cut else 0
    return GgufSettings(export.gguf_dtype, export.allow_larger, removed)


def report_gguf(size: GgufSize) -> None:
    """Log how large the file is beside the dense model and the factors."""
    merged = f"; {size.merged} factorized matrices were multiplied" if size.merged else ""
    log.info(
        "model.gguf has %.1f MB of weights in %s (llama.cpp's architecture %s); the dense model "
        "has %.1f MB, export=factorized would have %.1f MB%s",
        *(size.bytes / 1e6, size.dtype, size.architecture),
        *(size.dense_bytes / 1e6, size.factored_bytes / 1e6, merged),
    )


def server_of(run: Run) -> str:
    """The module that serves the export of a run; "" if none does."""
    if run.task.kind in SERVED and run.config.task.lm_eval is None:
        return "sieve.serve"
    if is_classifier(run.backbone.skeleton):
        return ""
    form = run.config.export.format
    return "" if form.startswith("onnx") or form == "gguf" else "sieve.serve.completions"


def can_check(run: Run) -> bool:
    """Whether a fresh process can load the export; a line in the log says why not."""
    config, native = run.config, native_class(run.backbone.model)
    reason = ""
    if run.sharded:
        reason = "the model is split over ranks"
    elif is_8_bit(run):
        reason = "8-bit weights change its numbers; it is scored on all test rows instead"
    elif getattr(transformers, native.__name__, None) is not native:
        reason = f"transformers alone does not load {native.__name__}"
    if reason and run.leads and config.export.check_rows:
        log.info("the export is not compared with the finished model: %s.", reason)
    return run.leads and bool(config.export.check_rows) and not reason


def _checker(run: Run, process: FreshProcess, record: Record) -> Callable[[Path], None]:
    """A function that compares a written export with the current model and adds to the record."""
    examples, limit = run.task.splits["test"], run.config.export.check_rows
    examples = examples[:: math.ceil(len(examples) / limit)]
    batches = without_writing(run.data.scoring_batches(examples))
    while len(examples) > 1 and sum(b.input_ids.numel() for b in batches) > CHECK_TOKENS:
        examples = examples[::2]
        batches = without_writing(run.data.scoring_batches(examples))
    expected = [answer_logprobs(run.backbone.model, batch) for batch in batches]

    def check(folder: Path) -> None:
        device = device_with_space(run.device, folder)
        agreement = check_export(process, folder, batches, expected, device)
        record["check"] = asdict(agreement)
        report_agreement(agreement, run.backbone.dtype)

    return check


def device_with_space(device: torch.device, folder: Path) -> torch.device:
    """The device, or the CPU if a GPU has no room for the weights in a folder and activations."""
    if device.type != "cuda":
        return device
    torch.cuda.empty_cache()
    files = [file for kind in ("safetensors", "gguf") for file in folder.glob(f"*.{kind}")]
    size = sum(file.stat().st_size for file in files)
    return device if torch.cuda.mem_get_info(device)[0] > 2 * size else torch.device("cpu")


def report_agreement(agreement: Agreement, computed: torch.dtype) -> None:
    """Log how many answers are the same; warn if rounding changed more than two."""
    changed = agreement.rows - agreement.same_answer
    log.info(
        "a fresh process loads the export in %s and gives the same answer on %d of %d test rows",
        *(agreement.dtype, agreement.same_answer, agreement.rows),
    )
    if changed > MAX_CHANGED and agreement.dtype != str(computed).removeprefix("torch."):
        log.warning(
            "rounding changes %d of %d answers: the run computed in %s, and transformers computes "
            "in the export's %s with dtype='auto'. Run with model.dtype=%s to measure the model in "
            "that dtype, or load the export in the run's.",
            *(changed, agreement.rows, computed, agreement.dtype, agreement.dtype),
        )


def export_accuracy(model: Any, run: Run) -> float:
    """The metric of a loaded export on the test split."""
    metric = ScoresMetric(len(run.task.splits["test"]), metric=run.task.metric)
    batches = run.data.scoring("test")
    for batch in track(batches, "Scoring the export", unit="rows", size=lambda b: len(b.examples)):
        metric.update(batch.outcome(model), batch.examples)  # A graph has no cache for prefixes.
    scores = metric.scores()
    warn_not_finite(scores, "The export")
    return scores.accuracy


def warn_of_loss(
    accuracy: float, dense_accuracy: float, tolerance: float, metric: Metric, instead: str = FLOATS
) -> None:
    """Warn if an export has lost more than the tolerance, and name what to choose instead."""
    drop = accuracy / dense_accuracy - 1 if metric.relative else dense_accuracy - accuracy
    if drop > tolerance:
        unit = "%" if metric.relative else "points"
        log.warning(
            "the export has %s %.4g on the test rows, the dense model %.4g: a loss of "
            "%.1f %s, more than the tolerance of %.1f; choose %s.",
            *(metric.name, accuracy, dense_accuracy, 100 * drop, unit, 100 * tolerance, instead),
        )
