"""`dry_run=true`: what a run will cost, stage by stage, from the model's configuration alone.

Takes seconds for any size, without weights and without a GPU. Shows a table and writes
`dry_run.json`.
"""

from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sieve.config import Config
from sieve.costs.lengths import lengths_of
from sieve.costs.plan import KEPT, Plan, Stage
from sieve.costs.probe import GIB, Device, find_device
from sieve.costs.searching import Sweeper
from sieve.costs.shape import Shape, build_without_weights, known_config, shape_of
from sieve.costs.stages import calibrate, curve, evaluate, export, fit, quantize, search
from sieve.costs.table import Record, verdict
from sieve.costs.training import learn, recover, refit
from sieve.model.backbone import context_length, is_classifier
from sieve.projections import get_projection
from sieve.runtime.artifacts import write_json_atomic

NAME = "dry_run.json"
USABLE = 0.95  # share of a device's memory that a run can fill
MAX_DEVICES = 4096
NAMED = 0.005  # share of a stage's memory from which a part is named
HOUR = 3600.0


def dry_run(config: Config, run_dir: Path, sweeper: Sweeper | None = None) -> Record:
    """Write `dry_run.json` to a run's directory and return its content.

    sweeper: the settings of a genetic search's sweeper.
    Raises ValueError if the model, the task or the device is not known.
    """
    record = describe(*make_plan(config, sweeper or {}))
    write_json_atomic(run_dir / NAME, record)
    return record


def make_plan(config: Config, sweeper: Sweeper) -> tuple[Plan, str]:
    """A run in numbers, and in words where the model's shapes come from."""
    model_config, source = known_config(config.model)
    shape, classifies, context = read_model(config)
    stored = str(getattr(model_config, "dtype", None) or "float32").removeprefix("torch.")
    accelerator = config.device.accelerator or str(config.trainer.get("accelerator", "cpu"))
    if accelerator == "auto":
        accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    compute = config.model.dtype
    if compute == "auto":
        compute = "float32" if accelerator == "cpu" else stored
    lengths, *others = [
        lengths_of(task, config, context, classifies)
        for task in (config.task, *config.also.values())
    ]
    device = find_device(config.device, accelerator, {"float32", "float64", compute})
    devices = config.trainer.get("devices", 1)
    count = len(devices) if isinstance(devices, list) else devices
    if not isinstance(count, int) or count < 1:
        count = max(1, torch.cuda.device_count())
    plan = Plan(
        config, shape, lengths, device, compute, stored, count, sweeper, others=tuple(others)
    )
    return plan, source


def read_model(config: Config) -> tuple[Shape, bool, int | None]:
    """A run's model in numbers, whether it is a classifier, and its longest input in tokens."""
    with FakeTensorMode():
        model = build_without_weights(config)
        shape = shape_of(model, config.projection.prune_head)
        return shape, is_classifier(model), context_length(model)


def stages_of(plan: Plan) -> list[Stage]:
    """The stages of a run, in order."""
    learned = get_projection(plan.config.projection.name).learned
    second = learn if learned else fit
    every = (calibrate, second, search, curve, refit, recover, quantize, evaluate, export)
    return [stage for make in every if (stage := make(plan)) is not None]


def needed_devices(stages: list[Stage], device: Device) -> int | None:
    """The fewest devices that hold every stage with trainer=fsdp; None if no number does."""
    limit = USABLE * device.memory
    counts = range(1, MAX_DEVICES + 1)
    return next((n for n in counts if all(s.peak(device, n) <= limit for s in stages)), None)


def describe(plan: Plan, source: str) -> Record:
    """The stages, their sum, the assumptions and the verdict, for dry_run.json."""
    stages, device, config = stages_of(plan), plan.device, plan.config
    written = {stage.name: stage.work.written / GIB for stage in stages}
    rows = [_row(stage, plan) for stage in stages]
    # One block's moments and activations in memory at a time.
    calibration = replace(config.calibration, layers_at_once=1, checkpointing=True)
    thrifty = replace(plan, config=replace(config, calibration=calibration))
    hours = sum(row["hours"] for row in rows)
    peak = max(row["peak_gib"] for row in rows)
    devices = max(plan.devices, plan.workers)
    figures = "name memory_gib tflops bandwidth_gb utilization solver_utilization".split()
    record: Record = {
        "model": config.model.label,
        "shapes": source,
        "parameters": plan.shape.parameters,
        "prunable": plan.shape.prunable,
        "dtype": {"compute": plan.compute, "stored": plan.stored, "bank": plan.bank_dtype},
        "task": {"name": config.task.name} | asdict(plan.lengths),
        "device": {n: getattr(device.spec, n) for n in figures} | {"notes": [device.source]},
        "devices": devices,
        "stages": rows,
        "total": {
            "flops": sum(row["flops"] for row in rows),
            "hours": hours,
            "hours_at_most": sum(row["hours_at_most"] for row in rows),
            "device_hours": hours * devices,
            "peak_gib": peak,
            "host_gib": max(row["host_gib"] for row in rows),
            "cache_gib": written["calibrate"] + written["fit"],
            "export_gib": written.get("export", 0.0),
        },
        "shards": plan.shards,
        "asks": _without_fsdp(config),
        "fits": peak <= USABLE * device.memory / GIB,
        "needed": needed_devices(stages, device),
        "needed_thrifty": needed_devices(stages_of(thrifty), device),
        "assumptions": _assumptions(plan, source),
    }
    return record | {"verdict": verdict(record)}


def _without_fsdp(config: Config) -> list[str]:
    """The settings that trainer=fsdp needs where the run's own settings work on one device only."""
    instead = {
        "search=waterfill": config.search.method == "genetic",
        "projection=output": config.projection.name == "learned",
        "quantization=none": config.quantization.method != "none",
        "export=factorized": config.export.format.startswith("onnx"),
    }
    return [setting for setting, needed in instead.items() if needed]


def _row(stage: Stage, plan: Plan) -> Record:
    work, device = stage.work, plan.device
    expected, most = stage.evaluations or (None, None)
    return {
        "stage": stage.name,
        "flops": work.flops,
        "hours": work.seconds / HOUR,
        "hours_at_most": max(work.seconds, stage.most_seconds) / HOUR,
        "peak_gib": stage.peak(device, plan.shards) / GIB,
        "host_gib": sum(p.size for p in stage.parts if p.host and not device.on_cpu) / GIB,
        "parts_gib": {
            part.name + " (host)" * (part.host and not device.on_cpu): part.size / GIB
            for part in stage.parts
            if part.size > NAMED * sum(other.size for other in stage.parts)
        },
        "tokens": work.tokens,
        "rows": work.examples,
        "evaluations": None if expected is None else {"expected": expected, "at_most": most},
        "written_gib": work.written / GIB,
        "remark": stage.remark,
    }


def _assumptions(plan: Plan, source: str) -> list[str]:
    """The assumptions behind the figures, one sentence each."""
    spec, lengths = plan.device.spec, plan.lengths
    rates = ", ".join(f"{rate:.3g} {dtype}" for dtype, rate in sorted(spec.tflops.items()))
    rows = ", ".join(f"{count:,} {role}" for role, count in lengths.rows.items())
    return [
        f"Shapes: {source}.",
        f"Rows: {rows}; {lengths.scored:.0f} tokens to score a row, {lengths.answer:.0f} of the "
        f"answer; {lengths.source}.",
        f"Device: {spec.name}, {plan.device.source}: {spec.memory_gib:.0f} GiB; TFLOP/s {rates}, "
        f"of which passes reach {spec.utilization:.0%} and eigenvectors "
        f"{spec.solver_utilization:.1%}.",
        f"The pruned model is assumed to keep {KEPT:.0%}; the search decides.",
    ]
