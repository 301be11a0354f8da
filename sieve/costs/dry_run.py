"""`dry_run=true`: what a run will cost, stage by stage, from the model's configuration alone.

The model is built of tensors without numbers, the rest is arithmetic (`sieve/costs`): seconds for
any size, no weights, no GPU. Shows a table and writes `dry_run.json`.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedConfig, PreTrainedModel

from sieve.config import Config
from sieve.costs.devices import Device
from sieve.costs.inspection import build_without_weights, known_config
from sieve.costs.lengths import lengths_of
from sieve.costs.plan import KEPT, Plan, Stage
from sieve.costs.probe import GIB, find_device
from sieve.costs.shape import Shape
from sieve.costs.stages import calibrate, curve, evaluate, export, fit, quantize, search
from sieve.costs.training import recover, refit
from sieve.model.backbone import context_length, count_parameters, is_classifier
from sieve.model.matrices import blocks_of, find_matrices
from sieve.runtime.artifacts import write_json_atomic

NAME = "dry_run.json"
ROOM = 0.95  # of a device's memory, that can be filled
MOST_DEVICES = 4096
HOUR = 3600.0


def dry_run(
    config: Config, run_dir: Path, sweeper: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write `dry_run.json` to a run's directory and return what it holds.

    sweeper: the settings of a genetic search's sweeper. Raises ValueError where the model, the task
    or the device cannot be known.
    """
    plan, source = make_plan(config, sweeper or {})
    record = describe(plan, source)
    write_json_atomic(run_dir / NAME, record)
    return record


def make_plan(config: Config, sweeper: Mapping[str, Any]) -> tuple[Plan, str]:
    """A run in numbers, and where the model's shapes come from."""
    found, source = known_config(config.model)
    shape, classifies, context = in_numbers(config)
    stored = str(getattr(found, "dtype", None) or "float32").removeprefix("torch.")
    accelerator = str(config.trainer.get("accelerator", "cpu"))
    if accelerator == "auto":
        accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    on_cpu = (config.device.accelerator or accelerator) == "cpu"
    compute = config.model.dtype
    if compute == "auto":
        compute = "float32" if on_cpu else stored
    device = find_device(config.device, accelerator, {"float32", "float64", compute})
    known = (config.model, context, classifies, config.seed, config.share_prefix)
    lengths = lengths_of(config.task, *known)
    others = tuple(lengths_of(task, *known) for task in config.also.values())
    workers = int(sweeper.get("n_workers") or 1) if config.search.method == "genetic" else 1
    plan = Plan(
        config, shape, lengths, device, compute, stored, _devices(config), workers, sweeper, others
    )
    return plan, source


def in_numbers(config: Config) -> tuple[Shape, bool, int | None]:
    """A run's model without its weights, whether it is a classifier, and its longest input."""
    with FakeTensorMode():
        model = build_without_weights(config)
        shape = shape_of(model, config.projection.prune_head)
        return shape, is_classifier(model), context_length(model)


def shape_of(model: PreTrainedModel, prune_head: bool = False) -> Shape:
    """A model in numbers; its tensors need not hold any."""
    matrices = find_matrices(model, prune_head)
    text: Any = model.config.get_text_config()
    heads = int(getattr(text, "num_attention_heads", 1))
    width = getattr(text, "head_dim", None) or int(text.hidden_size) // heads
    head = model.get_output_embeddings()
    vocabulary = head.weight.shape[0] if head is not None else int(text.num_labels)
    names = {matrix.name for matrix in matrices}
    beside = sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name not in names and module is not head
    )
    return Shape(
        tuple(matrices), count_parameters(model), len(blocks_of(matrices)), int(text.hidden_size),
        int(vocabulary), heads * width, int(getattr(text, "num_key_value_heads", heads)) * width,
        beside, _routed(text),
    )  # fmt: skip


def _routed(text: PreTrainedConfig) -> float:
    """The share of tokens that an expert sees on the mean, 1 where there are none."""
    active = getattr(text, "num_experts_per_tok", None)
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    total = next((n for name in names if (n := getattr(text, name, None))), None)
    return active / total if active and total else 1.0


def _devices(config: Config) -> int:
    """How many devices a trainer has: all that are at hand where it says auto, at least one."""
    asked = config.trainer.get("devices", 1)
    if isinstance(asked, list):
        return max(1, len(asked))
    if isinstance(asked, int) and asked > 0:
        return asked
    return max(1, torch.cuda.device_count())


def stages_of(plan: Plan) -> list[Stage]:
    """The stages that a run goes through, in order."""
    every = (calibrate, fit, search, curve, refit, recover, quantize, evaluate, export)
    return [made for stage in every if (made := stage(plan)) is not None]


def needed(stages: list[Stage], device: Device) -> int | None:
    """The fewest devices that would hold every stage with trainer=fsdp.

    None where no number does.
    """
    for shards in range(1, MOST_DEVICES + 1):
        if max(stage.peak(device, shards) for stage in stages) <= ROOM * device.memory:
            return shards
    return None


def thrifty(plan: Plan) -> Plan:
    """The same run with one block's moments and activations in memory at a time."""
    config = plan.config
    calibration = replace(config.calibration, layers_at_once=1, checkpointing=True)
    return replace(plan, config=replace(config, calibration=calibration))


def describe(plan: Plan, source: str) -> dict[str, Any]:
    """All that is written: the stages, their sum, what was assumed, and the verdict."""
    stages, device, config = stages_of(plan), plan.device, plan.config
    peak = max(stage.peak(device, plan.shards) for stage in stages)
    written = {stage.name: stage.written for stage in stages}
    hours = sum(stage.seconds for stage in stages) / HOUR
    at_most = sum(s.seconds if s.most_seconds is None else s.most_seconds for s in stages) / HOUR
    count, count_thrifty = needed(stages, device), needed(stages_of(thrifty(plan)), device)
    devices = max(plan.devices, plan.workers)
    record: dict[str, Any] = {
        "model": config.model.label,
        "shapes": source,
        "parameters": plan.shape.parameters,
        "prunable": plan.shape.prunable,
        "dtype": {"compute": plan.compute, "stored": plan.stored, "bank": plan.bank_dtype},
        "task": {"name": config.task.name} | asdict(plan.lengths),
        "device": _described(device),
        "devices": devices,
        "stages": [_row(stage, plan) for stage in stages],
        "total": {
            "flops": sum(stage.flops for stage in stages),
            "hours": hours,
            "hours_at_most": at_most,
            "device_hours": hours * devices,
            "peak_gib": peak / GIB,
            "host_gib": max(stage.host(device) for stage in stages) / GIB,
            "cache_gib": (written["calibrate"] + written["fit"]) / GIB,
            "export_gib": written.get("export", 0.0) / GIB,
        },
        "shards": plan.shards,
        "asks": _one_device(config),
        "fits": peak <= ROOM * device.memory,
        "needed": count,
        "needed_thrifty": count_thrifty,
        "assumptions": _assumptions(plan, source),
    }
    return record | {"verdict": verdict(record)}


def _one_device(config: Config) -> list[str]:
    """What to ask for in place of what one device alone can do."""
    return [
        instead
        for asked, instead in (
            (config.search.method == "genetic", "search=waterfill"),
            (config.projection.name == "learned", "projection=output"),
            (config.quantization.method != "none", "quantization=none"),
            (config.export.format.startswith("onnx"), "export=factorized"),
        )
        if asked
    ]


def _described(device: Device) -> dict[str, Any]:
    return {
        "name": device.name,
        "memory_gib": device.memory / GIB,
        "tflops": {name: rate / 1e12 for name, rate in device.flops.items()},
        "bandwidth_gb": device.bandwidth / 1e9,
        "utilization": device.utilization,
        "solver_utilization": device.solver_utilization,
        "notes": list(device.notes),
    }


def _row(stage: Stage, plan: Plan) -> dict[str, Any]:
    parts = {
        part.name + " (host)" * (part.host and not plan.device.local): part.size / GIB
        for part in stage.parts
        if part.size
    }
    expected, most = stage.evaluations or (None, None)
    return {
        "stage": stage.name,
        "flops": stage.flops,
        "hours": stage.seconds / HOUR,
        "hours_at_most": (stage.most_seconds or stage.seconds) / HOUR,
        "peak_gib": stage.peak(plan.device, plan.shards) / GIB,
        "host_gib": stage.host(plan.device) / GIB,
        "parts_gib": parts,
        "tokens": stage.tokens,
        "rows": stage.rows,
        "evaluations": None if expected is None else {"expected": expected, "at_most": most},
        "written_gib": stage.written / GIB,
        "remark": stage.remark,
    }


def _assumptions(plan: Plan, source: str) -> list[str]:
    """What the figures rest on, a sentence each."""
    device, lengths = plan.device, plan.lengths
    rates = ", ".join(f"{k} {v / 1e12:.3g}" for k, v in sorted(device.flops.items()))
    rows = ", ".join(f"{n:,} {role}" for role, n in lengths.rows.items())
    return [
        f"Shapes: {source}.",
        f"Rows and tokens: {lengths.source}; {rows} rows, {lengths.scored:.0f} tokens to score, "
        f"{lengths.answer:.0f} of the answer.",
        f"Device: {device.name}, {device.notes[0]}; {device.memory / GIB:.0f} GiB, TFLOP/s "
        f"{rates}; {device.utilization:.0%} of it in passes, {device.solver_utilization:.1%} in "
        "eigenvectors.",
        f"Pruned models keep {KEPT:.0%}, until the search has said more.",
    ]


def verdict(record: Mapping[str, Any]) -> str:
    """Whether the run fits, in plain words, and what it would take."""
    device, total, model = record["device"], record["total"], record["model"]
    peak, memory, name = total["peak_gib"], device["memory_gib"], device["name"]
    stage = max(record["stages"], key=lambda row: row["peak_gib"])["stage"]
    which = "one" if record["shards"] == 1 else f"each of {record['shards']:,}"
    if record["fits"]:
        return (
            f"{model} fits: at its peak, in {stage}, it takes {peak:,.1f} of the "
            f"{memory:,.0f} GiB of {which} {name}."
        )
    told = (
        f"{model} does not fit: at its peak, in {stage}, it takes {peak:,.0f} GiB of {which} "
        f"{name}, which has {memory:,.0f}"
    )
    less, count = record["needed_thrifty"], record["needed"]
    thrift = "calibration.layers_at_once=1 calibration.checkpointing=true"
    shared = " ".join(["trainer=fsdp", *record["asks"]])
    if less is not None and less <= record["shards"]:
        return f"{told}; with {thrift} it does."
    if count is None:
        if less:
            return f"{told}; it needs {less:,} of them with {shared} {thrift}."
        return f"{told}, and no number of them would do; lower batch_tokens, or ask for less."
    fewer = f" ({less:,} with {thrift})" if less and less < count else ""
    return f"{told}; it needs {count:,} of them with {shared}{fewer}."
