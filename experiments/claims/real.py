"""A real language model on six tasks: what every method keeps, and what the test rows say.

    SIEVE_SMOLLM2=my_model python -m experiments.reproduce real --workers 1    # hours; resumes

Classifiers are tuned on the task's labels first (`sieve.tune`), as a user's model would be. Each
search has the confidence of the defaults, so that a row of the table carries its badge.
"""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments import figures
from experiments.jobs import Job, composed, swept
from sieve.projections import get_projection
from sieve.report.result import read
from sieve.report.verdict import is_certified, loses_nothing

CLAIM = "real"
MODEL = "smollm2"
TUNED = ("trec", "sst2", "subj", "ag_news")
TUNING = ("recovery.steps=150", "recovery.batch_tokens=256", "recovery.check_every=75")
GENETIC = (
    "search.bottlenecks=false",
    "search.rounds=1",
    "hydra.sweeper.generations=5",
    "~hydra.sweeper.params.subject",  # The sweeper searches; it does not run a grid.
    "~hydra.sweeper.params.method",
)
FEWER = {"wikitext": ("task.max_rows.selection=100", "search.rows=100")}  # of 130 tokens each
SIZES = (".75", ".5", ".25")  # of the experiment's curve
HEAD = ("whitened", "sieve")  # shown in README
TIMED = ("sieve", "trained")
MAKING = ("calibrate", "fit", "search", "refit", "recover", "certify", "export")  # stages
AFTER = ("int8", "refitted", "genetic", "trained")  # change a chosen size only, not the curve
METHODS = {
    "svd": "SVD of the weights (LASER), uniform",
    "asvd": "ASVD, uniform",
    "input_pca": "PCA of the inputs (SliceGPT), uniform",
    "whitened": "whitened SVD (SVD-LLM), uniform",
    "paper": "the paper's objective at its optimum, uniform",
    "loss_aware": "loss-aware, uniform",
    "sieve": "loss-aware, water-filled",
    "int8": "the same, 8 bits",
    "vocabulary": "the same, vocabulary cut",
    "refitted": "the same, refitted (the default)",
    "genetic": "genetic search",
    "trained": "trained, sizes tried in turn",
}


def jobs() -> list[Job]:
    """The tunings first, then the runs of the sweep and the genetic searches, task by task."""
    runs = [replace(job, extra=extra(job)) for job in swept(CLAIM)]
    searches = [
        Job(CLAIM, (("subject", subject), ("search", "genetic")), "sweep", extra=GENETIC)
        for subject in dict.fromkeys(dict(job.settings)["subject"] for job in runs)
    ]
    tunings = [
        Job(CLAIM, (("subject", f"{MODEL}_{task}"), ("step", "tune")), "call", f"{__name__}:tune")
        for task in TUNED
    ]
    return [*tunings, *runs, *searches]


def extra(job: Job) -> tuple[str, ...]:
    """Fewer selection rows where rows are long, and the exports that `rivals` times."""
    settings = dict(job.settings)
    fewer = FEWER.get(settings["subject"].removeprefix(f"{MODEL}_"), ())
    return (*fewer, *(("export=factorized",) if settings["method"] in TIMED else ()))


def tune(out: Path, subject: str, step: str) -> dict[str, Any]:
    """Tune the dense model on the labels of a task; its accuracy on selection rows."""
    from sieve import tune as tuning

    overrides = [*tuning.DEFAULTS, f"+experiment={CLAIM}", f"subject={subject}", *TUNING]
    config = composed([*overrides, "model.adapter=null"], out)
    adapter = out / "cache" / "adapters" / subject.removeprefix(f"{MODEL}_")
    part = adapter.with_name(f"{adapter.name}.part")  # A killed tuning leaves no adapter.
    shutil.rmtree(part, ignore_errors=True)
    before, after = tuning.tune(config, part)["selection"]
    part.rename(adapter)
    return {"before": before, "after": after, "steps": config.recovery.steps}


def summarize(results: Mapping[str, Any]) -> dict[str, Any]:
    """By task and method: kept, bytes, the drop on test rows, and whether certified."""
    tasks: dict[str, Any] = {}
    for name, result in results.items():
        subject, method = name.removeprefix(f"{CLAIM}/{MODEL}_").split("-")
        entry = tasks.setdefault(subject, {"methods": {}})
        if method == "tune":
            entry["tuned"] = {key: result[key] for key in ("before", "after")}
            continue
        entry |= about(result)
        entry["methods"][method] = row(result) | {"minutes": minutes(result, results, subject)}
    measured = {name: entry for name, entry in tasks.items() if entry["methods"]}
    return {"model": MODEL, "tasks": measured}  # Others are only tuned so far.


def about(result: Mapping[str, Any]) -> dict[str, Any]:
    """What all runs on a task share."""
    return {
        "metric": result["metric"],
        "tolerance": result["tolerance"],
        "rows": result["examples"],
        "tokens": result["calibration"]["tokens_asked"],
        "seed": result["seed"],
    }


def row(result: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a run and its command."""
    dense, pruned = result["baseline"]["accuracy"], result["pruned"]["accuracy"]
    return {
        "kept": figures.kept(result),
        "model": round(result["kept_fraction"]["model"], 4),
        "bytes": round(result["bytes"]["pruned"] / result["bytes"]["dense"], 4),
        "dense": round(dense, 4),
        "pruned": round(pruned, 4),
        "drop": figures.drop(result["drop"]),
        "within": result["drop"]["point"] <= result["tolerance"] + 1e-9,
        "certified": is_certified(read(result)) or loses_nothing(read(result)),
        "eight_bits": eight_bits(result["quantization"]),
        "curve": curve(result),
        "command": result["command"],
    }


def minutes(
    result: Mapping[str, Any], results: Mapping[str, Any], task: str
) -> figures.Number | None:
    """Minutes of one core to make a model; None if a stage was cached by a run that is not here.

    A stage from the cache took what it took in the run of the task that computed it.
    """
    runs = [r for name, r in results.items() if f"_{task}-" in name and "cached" in r]
    spent = 0.0
    for stage in MAKING:
        if result["cached"].get(stage):
            first = [r for r in runs if r["cached"].get(stage) is False and alike(r, result, stage)]
            if not first:
                return None
            spent += _busy_seconds(first[0], stage)
        else:
            spent += _busy_seconds(result, stage)
    whole = result["job"]["cpu_seconds"] if result["search"]["method"] == "genetic" else spent
    return figures.timed(whole / 60)


def alike(one: Mapping[str, Any], other: Mapping[str, Any], stage: str) -> bool:
    """Whether two runs of a task share a cached stage: moments, a bank, or a whole search."""
    vocabulary = bool(one["vocabulary"]) == bool(other["vocabulary"])
    if stage == "calibrate":
        needs = [get_projection(run["projection"]).needs for run in (one, other)]
        return vocabulary and needs[0] == needs[1]
    same = vocabulary and all(one[key] == other[key] for key in ("projection", "storage"))
    return same and (stage == "fit" or one["search"]["method"] == other["search"]["method"])


def _busy_seconds(result: Mapping[str, Any], stage: str) -> float:
    """Processor seconds of a stage, from its seconds and how busy the processor was."""
    busy = min(result["job"]["cpu_seconds"] / result["job"]["seconds"], 1.0)
    return float(result["seconds"].get(stage, 0.0) * busy)


def eight_bits(record: Mapping[str, Any] | None) -> dict[str, float] | None:
    """What 8 bits cost one genome on test rows, and the share of the matrices' bytes saved."""
    if not record or record.get("accuracy_before") is None:
        return None
    cost = record["accuracy_before"] - record["accuracy_after"]
    return {"cost": round(cost, 4), "saved": round(record["saved"], 4)}


def curve(result: Mapping[str, Any]) -> dict[str, Any]:
    """The score on test rows at the sizes of the experiment, by the size that was asked for."""
    rows, points = result["examples"], result["curve"] or []
    found = {}
    for size in SIZES:
        below = [p for p in points if p["kept_fraction"] <= float(size) + 1e-9]
        if below:
            value = max(below, key=lambda p: p["kept_fraction"])["accuracy"]
            shared = result["metric"] == "accuracy"
            found[size] = figures.share(value, rows) if shared else round(value, 2)
    return found


def tables(summary: Mapping[str, Any]) -> dict[str, str]:
    """Kept and drop, scores at three sizes, bytes and minutes, by method and task."""
    tasks = {task: entry for task, entry in summary["tasks"].items() if entry["methods"]}
    names = [
        f"{task}, {entry['metric']}{', tuned' if 'tuned' in entry else ''}"
        for task, entry in tasks.items()
    ]

    def table(cell: Any, methods: Mapping[str, str] = METHODS) -> str:
        rows = (
            [label, *(cell(e["methods"].get(m)) for e in tasks.values())]
            for m, label in methods.items()
        )
        return figures.markdown(["method", *names], [row for row in rows if any(row[1:])])

    return {
        f"{CLAIM}-headline": headline(tasks),
        CLAIM: table(kept_cell),
        f"{CLAIM}-curve": table(curve_cell, {m: METHODS[m] for m in METHODS if m not in AFTER}),
        f"{CLAIM}-bytes": table(bytes_cell),
    }


def headline(tasks: Mapping[str, Any]) -> str:
    """Accuracies at the sizes of `SIZES`, for the tasks on which all of `HEAD` were measured."""
    sizes = [f"{100 * float(size):.0f} % kept" for size in SIZES]
    rows = []
    for task, entry in tasks.items():
        curves = {m: entry["methods"].get(m, {}).get("curve") for m in HEAD}
        if entry["metric"] == "accuracy" and all(curves.values()):
            dense = entry["methods"][HEAD[0]]["dense"]
            for method, points in curves.items():
                cells = [f"{100 * points[size]['value']:.1f}" for size in SIZES]
                rows.append([f"{task} ({100 * dense:.1f})", METHODS[method], *cells])
    return figures.markdown(["task (dense)", "method", *sizes], rows)


def kept_cell(found: Mapping[str, Any] | None) -> str:
    """Kept (%), drop on test rows with its interval; ✓ certified, † beyond the tolerance."""
    if not found:
        return ""
    if found["kept"]["value"] == 1:
        return "100"
    drop = found["drop"]
    marks = (" ✓" if found["certified"] else "") + ("" if found["within"] else " †")
    ends = f"{100 * drop['low']:.1f} to {100 * drop['high']:.1f}"
    return f"{100 * found['kept']['value']:.1f} ({100 * drop['value']:.1f}; {ends}){marks}"


def curve_cell(found: Mapping[str, Any] | None) -> str:
    """Scores at the sizes of `SIZES`: accuracies in percent, or perplexities."""
    if not found or not found["curve"]:
        return ""
    points = found["curve"].values()
    return " / ".join(
        f"{100 * p['value']:.1f}" if isinstance(p, dict) else f"{p:g}" for p in points
    )


def bytes_cell(found: Mapping[str, Any] | None) -> str:
    """Kept of the whole model and bytes (%), and minutes of one core."""
    if not found:
        return ""
    minutes = f"{found['minutes']['value']:.0f}" if found.get("minutes") else "–"
    return f"{100 * found['model']:.0f}, {100 * found['bytes']:.0f}, {minutes}"
