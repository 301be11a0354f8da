"""`dry_run=true`: what a run will cost, stage by stage, from the model's configuration alone.

Takes seconds for any size, without weights and without a GPU. Shows a table and writes
`dry_run.json`.
"""

from bisect import bisect_left
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel

from sieve.config import Config, shards
from sieve.costs.lengths import lengths_of
from sieve.costs.plan import KEPT, Plan, Stage
from sieve.costs.probe import GIB, find_device
from sieve.costs.searching import Sweeper
from sieve.costs.shape import Shape, build_without_weights, shape_of
from sieve.costs.stages import calibrate, evaluate, export, fit, search
from sieve.costs.training import learn, recover, refit
from sieve.model.backbone import compute_dtype
from sieve.projections import get_projection
from sieve.runtime.artifacts import write_json_atomic

NAME = "dry_run.json"
USABLE = 0.95  # share of a device's memory that a run can fill
MAX_DEVICES = 4096
NAMED = 0.005  # share of a stage's memory from which a part is named
HOUR = 3600.0
THRIFTY = "calibration.layers_at_once=1 calibration.checkpointing=true"
Record = dict[str, Any]  # a JSON object


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
    model, shape, source = read_model(config)
    stored = str(getattr(model.config, "dtype", None) or "float32").removeprefix("torch.")
    if config.model.adapter:  # Merged in float32.
        stored = "float32"
    accelerator = config.device.accelerator or str(config.trainer.get("accelerator", "cpu"))
    if accelerator == "auto":
        accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    kind = torch.device("cpu" if accelerator == "cpu" else "cuda")
    dtype = compute_dtype(config.model.dtype, getattr(torch, stored), kind)
    compute = str(dtype).removeprefix("torch.")
    tasks = (config.task, *config.also.values())
    lengths, *others = [lengths_of(task, config, model) for task in tasks]
    devices = config.trainer.get("devices", 1)
    count = len(devices) if isinstance(devices, list) else devices
    if not isinstance(count, int) or count < 1:
        count = max(1, torch.cuda.device_count())
    plan = Plan(
        config,
        shape,
        lengths,
        find_device(config.device, accelerator, {"float32", "float64", compute}),
        compute=compute,
        stored=stored,
        devices=count,
        shards=count if shards(config.trainer) else 1,
        sweeper=sweeper,
        others=tuple(others),
    )
    return plan, source


def read_model(config: Config) -> tuple[PreTrainedModel, Shape, str]:
    """A run's model of fake tensors, the same in numbers, and where its shapes come from."""
    with FakeTensorMode():
        model, source = build_without_weights(config.model)
        return model, shape_of(model, config.projection.prune_head), source


def stages_of(plan: Plan) -> list[Stage]:
    """The stages of a run, in order."""
    learned = get_projection(plan.config.projection.name).learned
    every = (calibrate, learn if learned else fit, search, refit, recover, evaluate, export)
    return [stage for make in every if (stage := make(plan)) is not None]


def describe(plan: Plan, source: str) -> Record:
    """The stages, their sum, the assumptions and the verdict, for dry_run.json."""
    stages, device, config = stages_of(plan), plan.device, plan.config
    rows = [_row(stage, plan) for stage in stages]
    written = {row["stage"]: row["written_gib"] for row in rows}
    devices = max(plan.devices, plan.workers)
    total = {key: sum(row[key] for row in rows) for key in ("hours", "hours_at_most")}
    total |= {key: max(row[key] for row in rows) for key in ("peak_gib", "host_gib")}
    record: Record = {
        "model": config.model.label,
        "shapes": source,
        "parameters": plan.shape.parameters,
        "prunable": plan.shape.prunable,
        "dtype": {"compute": plan.compute, "stored": plan.stored, "bank": plan.bank_dtype},
        "task": {"name": config.task.name} | asdict(plan.lengths),
        "device": asdict(device),
        "devices": devices,
        "shards": plan.shards,
        "stages": rows,
        "total": total
        | {
            "device_hours": total["hours"] * devices,
            "cache_gib": written["calibrate"] + written["fit"],
            "export_gib": written.get("export", 0.0),
        },
        "fits": fits(plan),
        "remedy": remedy(plan),  # devices and settings
        "assumptions": _assumptions(plan, source),
    }
    return record | {"verdict": verdict(record)}


def remedy(plan: Plan) -> tuple[int, str] | None:
    """The fewest devices that hold every stage of a run, and the settings that this takes."""
    config = plan.config
    instead = {  # Settings of one device only.
        "search=waterfill": config.search.method == "genetic",
        "projection=output": config.projection.name == "learned",
        "quantization=none": config.quantization.method != "none",
        "export=factorized": config.export.format.startswith("onnx"),
    }
    fsdp = ["trainer=fsdp", *(setting for setting, needed in instead.items() if needed)]
    calibration = replace(config.calibration, layers_at_once=1, checkpointing=True)
    thrifty = replace(plan, config=replace(config, calibration=calibration))
    counts, ways = range(plan.shards, MAX_DEVICES + 1), list[tuple[int, str]]()
    for way, settings in ((plan, []), (thrifty, [THRIFTY])):
        # More devices never hold more.
        place = bisect_left(counts, True, key=lambda n: fits(replace(way, shards=n)))
        if place < len(counts):
            ways.append((counts[place], " ".join([*fsdp * (place > 0), *settings])))
    return min(ways, default=None)


def fits(plan: Plan) -> bool:
    """Whether every stage fits in a device's memory."""
    limit = USABLE * (plan.device.memory_gib or 0) * GIB
    return all(stage.peak(plan.device) <= limit for stage in stages_of(plan))


def verdict(record: Record) -> str:
    """Whether the run fits, and which settings and how many devices make it fit."""
    total, device, ranks = record["total"], record["device"], record["shards"]
    stage = max(record["stages"], key=lambda row: row["peak_gib"])["stage"]
    sentence = (
        f"{record['model']} {'fits' if record['fits'] else 'does not fit'} on "
        f"{'one' if ranks == 1 else f'{ranks:,}'} {device['name']}: the peak, in {stage}, takes "
        f"{total['peak_gib']:,.1f} GiB of a device; it has {device['memory_gib']:,.0f} GiB."
    )
    if record["fits"]:
        return sentence
    if record["remedy"] is None:
        return f"{sentence} No number of devices is enough; lower batch_tokens or omit stages."
    count, settings = record["remedy"]
    return f"{sentence} It fits on {count:,} × {device['name']} with {settings}."


def _row(stage: Stage, plan: Plan) -> Record:
    named = NAMED * sum(stage.parts.values())
    return {
        "stage": stage.name,
        "hours": stage.seconds / HOUR,
        "hours_at_most": max(stage.seconds, stage.most_seconds) / HOUR,
        "peak_gib": stage.peak(plan.device) / GIB,
        "host_gib": stage.host / GIB,
        "parts_gib": {name: size / GIB for name, size in stage.parts.items() if size > named},
        "genomes": None if stage.genomes is None else stage.genomes.tolist(),
        "written_gib": stage.written / GIB,
        "remark": stage.remark,
    }


def _assumptions(plan: Plan, source: str) -> list[str]:
    """The assumptions behind the figures, one sentence each."""
    spec, lengths = plan.device, plan.lengths
    rates = ", ".join(f"{rate:.3g} {dtype}" for dtype, rate in sorted(spec.tflops.items()))
    rows = ", ".join(f"{count:,} {role}" for role, count in lengths.rows.items())
    return [
        f"Shapes: {source}.",
        f"Rows: {rows}; {lengths.scored:.0f} tokens to score a row, {lengths.answer:.0f} of the "
        f"answer; {lengths.source}.",
        f"Device: {spec.name}: {spec.memory_gib:.0f} GiB; TFLOP/s {rates}, of which passes reach "
        f"{spec.utilization:.0%} and eigenvectors {spec.solver_utilization:.1%}.",
        f"The pruned model is assumed to keep {KEPT:.0%}; the search decides.",
    ]
