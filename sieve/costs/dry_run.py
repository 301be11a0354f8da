"""`dry_run=true`: what a run will cost, stage by stage, from the model's configuration alone.

Takes seconds for any size, without weights and without a GPU. Shows a table and writes
`dry_run.json`.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel

from sieve.config import Config, shards
from sieve.costs.lengths import Lengths, lengths_of
from sieve.costs.plan import Plan, Stage
from sieve.costs.probe import GIB, MIN_SECONDS, find_device
from sieve.costs.searching import Sweeper
from sieve.costs.shape import Shape, build_without_weights, shape_of
from sieve.costs.stages import answer, calibrate, evaluate, export, fit, search
from sieve.costs.training import learn, recover, refit
from sieve.costs.vocabulary import vocabulary_sentence
from sieve.model.backbone import compute_dtype
from sieve.model.matrices import find_matrices
from sieve.projections import get_projection
from sieve.report.values import size
from sieve.runtime.artifacts import write_json_atomic
from sieve.tasks.certifiable import forecast
from sieve.tasks.metrics import AGREEMENT, metric_of
from sieve.tasks.student import student_config

NAME = "dry_run.json"
FASTER = 1.2  # a dtype that is at least this many times as fast is named
USABLE = 0.95  # share of a device's memory that a run can fill
MAX_DEVICES = 4096
THRIFTY = "calibration.layers_at_once=1 calibration.checkpointing=true"
STREAMED = "calibration.strategy=stream"
UNREFITTED = "projection.refit=false"
Record = dict[str, Any]  # a JSON object


def dry_run(config: Config, run_dir: Path, sweeper: Sweeper | None = None) -> Record:
    """Write `dry_run.json` to a run's directory and return its content.

    sweeper: the settings of a genetic search's sweeper.
    Raises ValueError if the model, the task or the device is not known, or if the selection rows
    cannot certify any pruned model.
    """
    record = describe(*make_plan(config, sweeper or {}))
    write_json_atomic(run_dir / NAME, record)
    return record


def make_plan(config: Config, sweeper: Sweeper) -> tuple[Plan, str]:
    """The plan of a run, and in words where the model's shapes come from."""
    model, shape, source = read_model(config)
    tasks = (config.task, *config.also.values())
    lengths, *others = [lengths_of(task, config, model) for task in tasks]
    long, prompt = lengths, config.recovery.student_prompt
    if prompt is not None:
        lengths = lengths_of(student_config(config.task, prompt), config, model)
    plan = plan_of(config, model, shape, (lengths, long, others), sweeper)
    return replace(plan, vocabulary=vocabulary_sentence(config, model)), source


def plan_of(
    config: Config,
    model: PreTrainedModel,
    shape: Shape,
    lengths: tuple[Lengths, Lengths, Sequence[Lengths]],
    sweeper: Sweeper,
    min_seconds: float = MIN_SECONDS,
) -> Plan:
    """The plan of a run with a model and tasks.

    Args:
        lengths: of the task as the pruned model reads it, as the dense model does, and of `also`.
        min_seconds: that a measurement of this machine takes.
    """
    stored = str(getattr(model.config, "dtype", None) or "float32").removeprefix("torch.")
    if config.model.adapter:  # Merged in float32.
        stored = "float32"
    accelerator = config.device.accelerator or str(config.trainer.get("accelerator", "cpu"))
    if accelerator == "auto":
        accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    kind = torch.device("cpu" if accelerator == "cpu" else "cuda")
    dtype = compute_dtype(config.model.dtype, getattr(torch, stored), kind)
    compute = str(dtype).removeprefix("torch.")
    devices = config.trainer.get("devices", 1)
    count = len(devices) if isinstance(devices, list) else devices
    if not isinstance(count, int) or count < 1:
        count = max(1, torch.cuda.device_count())
    dtypes = {"float32", "float64", compute}
    own, long, others = lengths
    return Plan(
        config,
        shape,
        own,
        find_device(config.device, accelerator, dtypes, min_seconds),
        compute=compute,
        stored=stored,
        devices=count,
        shards=count if shards(config.trainer) else 1,
        sweeper=sweeper,
        others=tuple(others),
        long=long,
    )


def read_model(config: Config) -> tuple[PreTrainedModel, Shape, str]:
    """A run's model with fake tensors, its sizes, and in words where its shapes come from."""
    with FakeTensorMode():
        model, source = build_without_weights(config.model)
        projection = config.projection
        matrices = find_matrices(model, projection.prune_head, projection.prune_embedding)
        return model, shape_of(model, matrices=matrices), source


def stages_of(plan: Plan) -> list[Stage]:
    """The stages of a run, in order."""
    learned = get_projection(plan.config.projection.name).learned
    every = (answer, calibrate, learn if learned else fit, search, refit, recover, evaluate, export)
    return [stage for make in every if (stage := make(plan)) is not None]


def faster_dtype(plan: Plan) -> str:
    """A sentence if the device computes much faster in float32, as many processors do."""
    rates = plan.device.tflops
    ratio = rates.get("float32", 0.0) / rates[plan.compute]
    if ratio < FASTER:
        return ""
    return f" With model.dtype=float32 passes are {ratio:.1f} times as fast here."


def describe(plan: Plan, source: str) -> Record:
    """The stages, their sum, the assumptions and the verdict, for dry_run.json."""
    stages, device, lengths = stages_of(plan), plan.device, plan.lengths
    rows = [
        asdict(stage)
        | {"most_seconds": max(stage.seconds, stage.most_seconds)}
        | {"peak_bytes": stage.peak(device), "host_bytes": stage.host}
        for stage in stages
    ]
    total = {key: sum(row[key] for row in rows) for key in ("seconds", "most_seconds")}
    total |= {key: max(row[key] for row in rows) for key in ("peak_bytes", "host_bytes")}
    total["written_bytes"] = sum(stage.written_bytes for stage in stages)
    rates = ", ".join(f"{rate:.3g} {dtype}" for dtype, rate in sorted(device.tflops.items()))
    counts = ", ".join(f"{count:,} {role}" for role, count in lengths.rows.items())
    record: Record = {
        "model": plan.config.model.label,
        "parameters": plan.shape.parameters,
        "prunable": plan.shape.prunable,
        "dtype": {"compute": plan.compute, "stored": plan.stored, "bank": plan.bank_dtype},
        "task": {"name": plan.config.task.name} | asdict(lengths),
        "device": asdict(device),
        "devices": max(plan.devices, plan.workers),
        "stages": rows,
        "total": total,
        "fits": fits(plan),
        "certifiable": certifiable(plan),
        "vocabulary": plan.vocabulary,
        "assumptions": [
            f"Shapes: {source}.",
            f"Rows: {counts}; {lengths.scored:.0f} tokens to score a row, {lengths.answer:.0f} of "
            f"the answer; {lengths.source}.",
            f"TFLOP/s: {rates}, of which passes reach {device.utilization:.0%} and eigenvectors "
            f"{device.solver_utilization:.1%}.{faster_dtype(plan)}",
            f"The pruned model is assumed to keep {plan.typical:.0%} in times and {plan.kept:.0%} "
            "in memory; the search decides.",
        ],
    }
    return record | {"verdict": verdict(plan, max(rows, key=lambda row: row["peak_bytes"]))}


def certifiable(plan: Plan) -> str:
    """What the selection rows can certify, as in a run; "" if that cannot be computed beforehand.

    Raises ValueError if they can certify no pruned model.
    """
    config, task, rows = plan.config, plan.config.task, plan.lengths.rows["selection"]
    if task.lm_eval is not None:  # Only its rows say what its metric is.
        return ""
    metric, search = metric_of(task.kind, task.metric), config.search
    share = None if search.fits_all_rows else search.confirmation
    return forecast(metric, rows, config.tolerance, config.confidence, share, config.tests)


def verdict(plan: Plan, largest: Record) -> str:
    """Whether a run fits, by its largest stage, and what makes it fit."""
    where, memory = plan.device.name, (plan.device.memory_gib or 0) * GIB
    sentence = (
        f"{plan.config.model.label} {'fits' if fits(plan) else 'does not fit'} on {plan.shards} × "
        f"{where}: the peak, in {largest['name']}, takes {size(largest['peak_bytes'])} of a "
        f"device; it has {size(memory)}."
    )
    if fits(plan):
        return sentence
    if (best := remedy(plan)) is None:
        return f"{sentence} No number of devices is enough; lower batch_tokens or omit stages."
    return f"{sentence} It fits on {best[0]} × {where} with {best[1]}."


def remedy(plan: Plan) -> tuple[int, str] | None:
    """The fewest devices whose memory suffices for a run, and the settings that this takes.

    It names a run without the refit only if none with it fits.
    """
    ways = _thriftier(plan.config)
    unrefitted = {
        f"{words} {UNREFITTED}".strip(): replace(
            config, projection=replace(config.projection, refit=False)
        )
        for words, config in ways.items()
    }
    return _fewest(plan, ways) or _fewest(plan, unrefitted)


def _thriftier(config: Config) -> dict[str, Config]:
    """A run's settings, and others that hold less in memory, keyed by the settings to add."""
    if config.calibration.strategy == "stream":
        return {"": config}
    thrifty = replace(config.calibration, layers_at_once=1, checkpointing=True)
    ways = {"": config, THRIFTY: replace(config, calibration=thrifty)}
    streams = replace(config.calibration, strategy="stream", layers_at_once=None)
    if _can_stream(config):
        kept = config.calibration.layers_at_once is None
        words = STREAMED if kept else f"{STREAMED} calibration.layers_at_once=null"
        ways[words] = replace(config, calibration=streams)
    return ways


def _can_stream(config: Config) -> bool:
    """Whether no stage of a run needs the whole model."""
    needed = config.projection.name == "learned" or config.projection.prune_embedding
    return config.only_runs and not needed and config.task.metric != AGREEMENT


def _fewest(plan: Plan, ways: dict[str, Config]) -> tuple[int, str] | None:
    """The way with the fewest devices, the first of equals; None if none fits."""
    fitting = [way for words, config in ways.items() if (way := _way(plan, config, words))]
    return min(fitting, key=itemgetter(0), default=None)


def _way(plan: Plan, config: Config, words: str) -> tuple[int, str] | None:
    """The fewest devices for a run with other settings, and all settings; None if none suffice."""
    counts = range(plan.shards, MAX_DEVICES + 1)
    # With more devices, each holds less or as much.
    index = bisect_left(counts, True, key=lambda n: fits(replace(plan, config=config, shards=n)))
    if index == len(counts):
        return None
    return counts[index], " ".join(["trainer=fsdp"] * (index > 0) + [words] * bool(words))


def fits(plan: Plan) -> bool:
    """Whether every stage fits in a device's memory."""
    limit = USABLE * (plan.device.memory_gib or 0) * GIB
    return all(stage.peak(plan.device) <= limit for stage in stages_of(plan))
