"""Small models: training inside the search against after it, and genetic against water-filled.

    python -m experiments.trained_search                             # all; resumes
    python -m experiments.trained_search --tasks trec/reader-6m --seeds 0 --ways sure genetic
    python -m experiments.trained_search --earlier ../earlier        # a checkout to compare with
    python -m experiments.trained_search --summary                   # the tables alone

Each way is one run of `python -m sieve.run` that starts from the bank in the cache, so its seconds
are search, refit, training and evaluation. Ways of the same question may take the same time: the
longer one runs first, and the other one gets more steps or tries. Each run adds a JSON line to
`trained_search.jsonl`.
"""

import argparse
import json
import logging
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.projections import read_lines
from experiments.running import FOLDER, finished

log = logging.getLogger(__name__)
Record = dict[str, Any]
TASKS = (
    "almanac_medicine/embedded",
    "almanac_reviews/embedded",
    "trec/reader-6m",
    "sst2/reader-6m",
)
SURE = "confidence=.9"
TRAINED = ["recovery=full", SURE]
PATIENT = "recovery.patience=1000"  # uses all steps
GENETIC = ["search=genetic", "search.bottlenecks=false"]
# The first way also calibrates and fits the bank that the other ways start from.
WAYS: dict[str, list[str]] = {
    "point": [],
    "sure": [SURE],
    "strict": ["confidence=.975"],
    "earlier, point": [],
    "earlier, strict": ["guarantee=true"],
    "in the loop": TRAINED,
    "after": [*TRAINED, "search.recover=false", PATIENT],
    "genetic": [*GENETIC, SURE],
    "water-filled": ["search=waterfill", SURE],
    "genetic, in the loop": [*GENETIC, *TRAINED],
    "water-filled, in the loop": [*TRAINED, PATIENT],
}
MOST_TRIES = 60


def main() -> None:
    """Run what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--out", type=Path, default=FOLDER / "trained_search.jsonl")
    parser.add_argument("--cache", type=Path, default=None, help="folder for the banks")
    parser.add_argument("--earlier", type=Path, default=None, help="checkout of an earlier Sieve")
    parser.add_argument("--summary", action="store_true", help="print the tables only")
    parser.add_argument("overrides", nargs="*", default=[])
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with tempfile.TemporaryDirectory() as folder:
        if not arguments.summary:
            measure(arguments, arguments.cache or Path(folder))
    print(tables(read_lines(arguments.out)))


def measure(arguments: argparse.Namespace, cache: Path) -> None:
    """Run what is missing; every way has a copy of the cache with the bank."""
    done = {key(record): record for record in read_lines(arguments.out)}
    wanted = [(s, t, w) for s in arguments.seeds for t in arguments.tasks for w in arguments.ways]
    for seed, task, way in wanted:
        early = way.startswith("earlier")
        if (task, way, seed) in done or (early and arguments.earlier is None):
            continue
        bank = cache / f"{task.replace('/', '_')}-{seed}{'-earlier' * early}"
        others = {name: done[task, name, seed] for name in WAYS if (task, name, seed) in done}
        overrides = [*WAYS[way], *equal_time(way, others), f"seed={seed}", *arguments.overrides]
        record = {"task": task, "way": way, "seed": seed, "overrides": overrides}
        record |= run(task, bank, way, overrides, arguments.earlier if early else None)
        done[key(record)] = record
        with arguments.out.open("a") as file:
            file.write(json.dumps(record) + "\n")
        log.info(json.dumps(record))


def key(record: Record) -> tuple[str, str, int]:
    """The key of a record."""
    return record["task"], record["way"], record["seed"]


def equal_time(way: str, others: dict[str, Record]) -> list[str]:
    """Overrides with which a way takes as long as the way that it is compared with.

    Args:
        others: the finished ways of the same task and seed.

    Raises:
        ValueError: the other way has not run.
    """
    rivals = {
        "after": "in the loop",
        "water-filled": "genetic",
        "water-filled, in the loop": "genetic, in the loop",
    }
    if way not in rivals:
        return []
    if (rival := rivals[way]) not in others:
        raise ValueError(f"'{way}' takes the time of '{rival}', which has not run; run it first.")
    record = others[rival]
    if way == "after":
        return [f"recovery.minutes={record['recover_seconds'] / 60:.3f}"]
    if way == "water-filled":
        usual = others["sure"]
        spare = record["cpu_seconds"] - usual["cpu_seconds"]
        per_try = usual["refit_seconds"] * usual["cpu_seconds"] / usual["seconds"]
        tries = 3 + round(spare / (per_try / max(1, usual["refit_tries"])))
        return [f"projection.refit_tries={min(MOST_TRIES, max(3, tries))}"]
    spare = record["seconds"] - others["sure"]["seconds"]
    return [f"recovery.minutes={spare / 60:.3f}", "recovery.tries=12"]


def run(task: str, bank: Path, way: str, overrides: Sequence[str], earlier: Path | None) -> Record:
    """Run one way: sizes, drops on test rows, and what it cost."""
    with tempfile.TemporaryDirectory(dir=bank.parent if bank.exists() else None) as folder:
        cache = Path(folder) / "cache"
        if way.endswith("point"):
            cache = bank
        elif bank.exists():
            shutil.copytree(bank, cache, copy_function=os.link)  # Finished files do not change.
        start, before = time.perf_counter(), cpu_seconds()
        result = finished(task, cache, *overrides, source=earlier)
        seconds, cpu = time.perf_counter() - start, cpu_seconds() - before
    return summary(result) | {"seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1)}


def cpu_seconds() -> float:
    """Processor seconds of all finished child processes."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def summary(result: Record) -> Record:
    """What a record holds of one run's result."""
    search, drop = result["search"], result["drop"]
    recovery, refit = result["recovery"] or {}, search["refit"] or {}
    trained = recovery.get("search") or {}
    chosen = refit.get("kept_before")  # by the search, before refit
    return {
        "kept": result["kept_fraction"]["prunable"],
        "searched": chosen if chosen is not None else result["kept_fraction"]["prunable"],
        "dense": result["baseline"]["accuracy"],
        "pruned": result["pruned"]["accuracy"],
        "drop": drop["point"],
        "drop_low": drop["low"],
        "drop_high": drop["high"],
        "drop_upper": drop.get("upper"),
        "rows": result["examples"],
        "evaluations": search["evaluations"],
        "examples": search["examples"],
        "refit_tries": sum(bool(point.get("refitted")) for point in search["curve"]),
        "refit_seconds": result["seconds"].get("refit", 0.0),
        "recover_seconds": result["seconds"].get("recover", 0.0),
        "steps": (recovery.get("history") or [{"step": 0}])[-1]["step"],
        "taken": recovery.get("taken"),
        "kept_before": trained.get("kept_before"),
        "attempts": [
            [attempt["kept_fraction"], attempt["margin"], attempt["steps"]]
            for attempt in trained.get("attempts", [])
        ],
        "certified": [
            [score["kept_fraction"], score["margin"]] for score in trained.get("certified", [])
        ],
    }


QUESTIONS = (
    ("in the loop", "after"),
    ("in the loop", "sure"),  # as large as what is trained after the search
    ("point", "earlier, point"),
    ("strict", "earlier, strict"),
    ("genetic", "water-filled"),
    ("genetic", "sure"),
    ("genetic, in the loop", "water-filled, in the loop"),
)


def tables(records: Sequence[Record]) -> str:
    """Every run, and the ratio of sizes of every question."""
    lines = [
        "| task | seed | way | kept, % | drop on test, points | upper bound | seconds (CPU) |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in records:
        upper = "" if r["drop_upper"] is None else f"{100 * r['drop_upper']:.2f}"
        lines.append(
            f"| {r['task']} | {r['seed']} | {r['way']} | {100 * r['kept']:.3f} | "
            f"{100 * r['drop']:.2f} ({100 * r['drop_low']:.2f} to {100 * r['drop_high']:.2f}) | "
            f"{upper} | {r['seconds']:.0f} ({r['cpu_seconds']:.0f}) |"
        )
    lines += ["", "| size of | over | geometric mean | task by task |", "|---|---|---|---|"]
    for ours, theirs in QUESTIONS:
        if ratios := size_ratios(records, ours, theirs):
            mean = geometric_mean(list(ratios.values()))
            each = ", ".join(f"{task} {ratio:.2f}" for task, ratio in ratios.items())
            lines.append(f"| {ours} | {theirs} | {mean:.2f} | {each} |")
    return "\n".join(lines)


def size_ratios(records: Sequence[Record], ours: str, theirs: str) -> dict[str, float]:
    """By task: the geometric mean over seeds of one way's size over another's."""
    sizes = {key(record): record["kept"] for record in records}
    ratios: dict[str, list[float]] = {}
    for (task, way, seed), size in sizes.items():
        if way == ours and (other := sizes.get((task, theirs, seed))):
            ratios.setdefault(task, []).append(size / other)
    return {task: geometric_mean(seeds) for task, seeds in ratios.items()}


def geometric_mean(values: Sequence[float]) -> float:
    """The geometric mean of positive numbers."""
    return float(np.exp(np.mean(np.log(values))))


if __name__ == "__main__":
    main()
