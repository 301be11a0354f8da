"""What training after pruning recovers, and what 8-bit weights cost.

    python -m experiments.recovery                                   # all; resumes
    python -m experiments.recovery --tasks trec/reader-6m --seeds 0
    python -m experiments.recovery --summary                         # the tables alone

Recovery: each task is pruned until it loses about 12 points. If the test rows lose fewer than 5 or
more than 20 points, another tolerance is tried. The same genome is then trained with
`recovery=lora` and `recovery=full`. Quantization: each task is pruned at ε = .02 with the defaults,
and its factors are quantized to 8 bits. Each run adds a JSON line to `recovery.jsonl`; the tables
are in `longer.md`.
"""

import argparse
import json
import logging
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.pages import write_blocks
from experiments.projections import read_lines
from experiments.running import FOLDER, finished
from experiments.searches import TASKS

log = logging.getLogger(__name__)
TOLERANCES = (0.12, 0.06, 0.24)  # tolerances to try until the drop on test rows is in range
RANGE = (0.05, 0.20)
METHODS = ("lora", "full")
FLOAT16 = 2  # bytes per parameter
Record = dict[str, Any]


def main() -> None:
    """Run what is missing, then write the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--kinds", nargs="*", default=["quantization", *METHODS])
    parser.add_argument("--out", type=Path, default=FOLDER / "recovery.jsonl")
    parser.add_argument("--cache", type=Path, default=None, help="folder for the banks")
    parser.add_argument("--summary", action="store_true", help="write the tables only")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with tempfile.TemporaryDirectory() as folder:
        cache = arguments.cache or Path(folder)
        wanted = [
            (s, t, k) for s in arguments.seeds for t in arguments.tasks for k in arguments.kinds
        ]
        done = {(r["seed"], r["task"], r["kind"]) for r in read_lines(arguments.out)}
        for seed, task, kind in wanted if not arguments.summary else []:
            if (seed, task, kind) in done:
                continue
            record = {"seed": seed, "task": task, "kind": kind}
            found = (
                quantized(task, seed, cache)
                if kind == "quantization"
                else recovered(task, seed, kind, cache)
            )
            with arguments.out.open("a") as file:
                file.write(json.dumps(record | found) + "\n")
            log.info(json.dumps(record | found))
    records = read_lines(arguments.out)
    blocks = {"recovered": recovery_table(records), "eight-bits": quantization_table(records)}
    write_blocks(FOLDER / "longer.md", blocks)


def recovered(task: str, seed: int, method: str, cache: Path) -> Record:
    """One pruned model before and after training, on the same test rows."""
    for tolerance in TOLERANCES:
        common = [f"seed={seed}", f"tolerance={tolerance}"]
        before = finished(task, cache, *common)
        if RANGE[0] <= before["drop"]["point"] <= RANGE[1]:
            break
    start = time.perf_counter()
    after = finished(task, cache, *common, f"recovery={method}", "search.recover=false")
    history = after["recovery"]["history"]
    return {
        "tolerance": tolerance,
        "kept": before["kept_fraction"]["prunable"],
        "dense": before["baseline"]["accuracy"],
        "before": before["pruned"]["accuracy"],
        "after": after["pruned"]["accuracy"],
        "taken": after["recovery"]["taken"],
        "selection_before": history[0]["accuracy"],
        "selection_after": max(entry["accuracy"] for entry in history),
        "steps": history[-1]["step"],
        "rows": after["examples"],
        "seconds": round(time.perf_counter() - start, 1),
    }


def quantized(task: str, seed: int, cache: Path) -> Record:
    """One model at ε = .02, before and after quantization to 8 bits."""
    result = finished(task, cache, f"seed={seed}", "quantization=int8")
    found = result["quantization"]
    dense = result["parameters"]["prunable_dense"] * FLOAT16
    return {
        "kept": result["kept_fraction"]["prunable"],
        "bytes_before": found["bytes_before"] / dense,
        "bytes_after": found["bytes_after"] / dense,
        "accuracy_before": found["accuracy_before"],
        "accuracy_after": found["accuracy_after"],
        "drop": result["drop"]["point"],
        "rows": result["examples"],
    }


def recovery_table(records: Sequence[Record]) -> str:
    """Per task and method: mean drops on test rows, and the recovered fraction."""
    lines = [
        "| task | method | seeds | kept, % | drop before | after | came back, % |",
        "|---|---|---|---|---|---|---|",
    ]
    for method in METHODS:
        shares = []
        for task, found in by_task(in_range(records, method)):
            before, after = (
                mean(r["dense"] - r[when] for r in found) for when in ("before", "after")
            )
            shares.append(1 - after / before)
            kept = mean(r["kept"] for r in found)
            lines.append(
                f"| {task} | {method} | {len(found)} | {100 * kept:.1f} | {100 * before:.1f} "
                f"| {100 * after:.1f} | {100 * shares[-1]:.0f} |"
            )
        if shares:
            lines.append(f"| mean of tasks | {method} | | | | | **{100 * mean(shares):.0f}** |")
    worse = [r for r in records if r["kind"] in METHODS and r["after"] < r["before"]]
    lost = ", ".join(
        f"{r['task']} {r['kind']} seed {r['seed']} by {100 * (r['before'] - r['after']):.1f} points"
        for r in worse
    )
    runs = sum(r["kind"] in METHODS for r in records)
    return "\n".join(
        [*lines, "", f"Below the unrecovered model on test: {lost or 'none'} of {runs} runs."]
    )


def in_range(records: Sequence[Record], method: str) -> list[Record]:
    """The runs of a method whose pruned model has a drop in range."""
    return [
        r
        for r in records
        if r["kind"] == method and RANGE[0] <= r["dense"] - r["before"] <= RANGE[1]
    ]


def quantization_table(records: Sequence[Record]) -> str:
    """Per task: mean bytes relative to the dense float16 model, and mean accuracies."""
    lines = [
        "| task | seeds | kept, % | bytes, % | in int8, % | accuracy, % | in int8 | change |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows = []
    for task, found in by_task([r for r in records if r["kind"] == "quantization"]):
        keys = ("kept", "bytes_before", "bytes_after", "accuracy_before", "accuracy_after")
        rows.append([100 * mean(r[key] for r in found) for key in keys])
        lines.append(f"| {task} | {len(found)} | {written(rows[-1])} |")
    if rows:
        lines.append(f"| mean of tasks | | {written([float(m) for m in np.mean(rows, axis=0)])} |")
    return "\n".join(lines)


def written(row: Sequence[float]) -> str:
    """The cells of one row, and the difference of the last two."""
    return " | ".join([*(f"{cell:.2f}" for cell in row), f"{row[4] - row[3]:+.2f}"])


def by_task(records: Sequence[Record]) -> list[tuple[str, list[Record]]]:
    """Records by task, in the order of `TASKS`."""
    found = defaultdict(list)
    for record in records:
        found[record["task"]].append(record)
    return [(task, found[task]) for task in TASKS if task in found]


def mean(values: Iterable[float]) -> float:
    """The mean, as a plain number."""
    return float(np.mean(list(values)))


if __name__ == "__main__":
    main()
