"""Do whole runs keep their promise: is the finished model within the tolerance on fresh rows?

Every run draws its own selection and test rows: the two splits of a task are pooled with the
calibration rows that no run needs, and divided anew. So there are thousands of test rows, and few
models are beyond the tolerance there by chance alone. Missing selection rows come from the other
calibration rows, as in any run. A run without a confidence on the same rows shows what the promise
costs.
"""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import figures
from experiments.jobs import Job

CLAIM = "promises"
HERE = f"experiments.claims.{CLAIM}"
SUBJECTS = ("medicine", "reviews", "reading", "sst2", "subj")
SMALL = {
    "hydra.sweeper.generations": 2,
    "hydra.sweeper.population": 6,
    "search.seeds": "[waterfill]",
}
SHORT = {"steps": 60, "short_steps": 40, "tries": 2, "batch_tokens": 512, "check_every": 20}
WAYS: dict[str, tuple[str, ...]] = {
    "closed": (),
    "genetic": ("search=genetic", *(f"{key}={value}" for key, value in SMALL.items())),
    "trained": (
        "recovery=full",
        "projection.refit=false",
        *(f"recovery.{key}={value}" for key, value in SHORT.items()),
    ),
    "int8": ("quantization=int8",),
    "point": ("confidence=null",),
}
NAMES = {
    "closed": "closed form, refitted",
    "genetic": "genetic search",
    "trained": "trained after pruning",
    "int8": "8 bits",
}
PROMISING = tuple(way for way in WAYS if way != "point")
TOLERANCES = (0.02, 0.03)  # of each draw of rows
CALIBRATION_ROWS = 2_400  # that a run may calibrate with, train on, and fill selection rows from
TEST_ROWS = 4_000  # at most


def jobs() -> list[Job]:
    """Runs of every task and way; no two runs at a confidence have the same rows."""
    found = []
    for draw in range(len(TOLERANCES)):
        for way in WAYS if draw == 0 else PROMISING:
            # A point estimate has the rows of the closed form, to compare the two.
            place = 0 if way == "point" else PROMISING.index(way)
            seed = str(draw * len(PROMISING) + place)
            for subject in SUBJECTS:
                settings = (("seed", seed), ("way", way), ("subject", subject))
                found.append(Job(CLAIM, settings, "call", f"{HERE}:measure"))
    return found


def measure(out: Path, seed: str, way: str, subject: str) -> dict[str, Any]:
    """Draw the rows of a seed, run, and return what the run promised and what came of it."""
    from experiments.jobs import composed, run_here, sweep_there

    folder = out / CLAIM / f"{seed}-{way}-{subject}"
    task = composed([f"+experiment={CLAIM}", f"subject={subject}"], out).task
    tolerance = TOLERANCES[int(seed) // len(PROMISING)]
    overrides = [f"subject={subject}", f"seed={seed}", f"tolerance={tolerance}", *WAYS[way]]
    overrides.append(f"task.data_dir={redrawn(task, int(seed), folder / 'rows')}")
    if way == "genetic":
        sweep_there([f"+experiment={CLAIM}", *overrides], out, folder / "sweep")
        result = json.loads((folder / "sweep/result/result.json").read_text())
    else:
        result = run_here(CLAIM, out, folder / "run", overrides)
    keys = ("tolerance", "confidence", "examples", "kept_fraction", "drop", "certificate")
    spent = {key: result["search"][key] for key in ("evaluations", "examples")}
    return {key: result[key] for key in (*keys, "seconds")} | {"search": spent}


def redrawn(task: Any, seed: int, folder: Path) -> Path:
    """A folder with the rows of a task that a seed divides among the splits."""
    from sieve.tasks.rows import read_rows

    rows = {role: list(split.rows) for role, split in read_rows(task).items()}
    order, calibration = random.Random(f"{CLAIM} {seed}"), rows["calibration"]
    order.shuffle(calibration)
    pool = [*rows["selection"], *rows["test"], *calibration[CALIBRATION_ROWS:]]
    order.shuffle(pool)
    count = len(rows["selection"])
    splits = {
        "train": calibration[:CALIBRATION_ROWS],
        "validation": pool[:count],
        "test": pool[count:][:TEST_ROWS],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, split in splits.items():
        text = "".join(json.dumps(row) + "\n" for row in split)
        (folder / f"{name}.jsonl").write_text(text)
    return folder.absolute()


def summarize(results: Mapping[str, Any]) -> dict[str, Any]:
    """Every run, and the share of runs within the tolerance by way, by task and over all."""
    runs = [_run(name, record) for name, record in results.items()]
    promising = [run for run in runs if run["way"] != "point"]
    return {
        "runs": runs,
        "by_way": _by("way", runs),
        "by_task": _by("task", promising),
        "over_all": _held(promising),
        "rows_scored": rows_scored(runs),
    }


def _run(name: str, record: Mapping[str, Any]) -> dict[str, Any]:
    seed, way, subject = name.removeprefix(f"{CLAIM}/").split("-")
    certificate = record["certificate"] or {}
    return {
        "task": subject,
        "way": way,
        "seed": int(seed),
        "tolerance": record["tolerance"],
        "kept": round(record["kept_fraction"]["prunable"], 4),
        "certified": certificate.get("certified"),
        "bound": certificate.get("upper"),
        "certified_rows": certificate.get("rows", 0),
        "drop": figures.drop(record["drop"]),
        "within": record["drop"]["point"] <= record["tolerance"] + 1e-9,
        "rows_scored": record["search"]["examples"],
        "minutes": round(record["job"]["cpu_seconds"] / 60, 1),
    }


def _by(key: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = dict.fromkeys(run[key] for run in runs)
    return {name: _held([run for run in runs if run[key] == name]) for name in names}


def _held(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "runs": len(runs),
        "within": figures.share(float(np.mean([run["within"] for run in runs])), len(runs)),
        "beyond_surely": sum(run["drop"]["low"] > run["tolerance"] for run in runs),
        "certified": sum(run["certified"] is True for run in runs),
        "drop": round(float(np.mean([run["drop"]["value"] for run in runs])), 4),
        "kept": round(float(np.exp(np.mean([np.log(run["kept"]) for run in runs]))), 4),
        "minutes": round(float(np.median([run["minutes"] for run in runs])), 1),
    }


def rows_scored(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The rows scored with a confidence over the rows scored without, by task."""
    rows = {(r["way"], r["task"], r["seed"]): r["rows_scored"] for r in runs}
    ratios: dict[str, list[float]] = {}
    for (way, task, seed), count in rows.items():
        if way == "closed" and ("point", task, seed) in rows:
            ratios.setdefault(task, []).append(count / rows["point", task, seed])
    found = {task: round(float(np.mean(values)), 2) for task, values in ratios.items()}
    return {"tasks": found, "mean": round(float(np.mean(list(found.values()))), 2) if found else 0}


def tables(summary: Mapping[str, Any]) -> dict[str, str]:
    """Shares of runs within the tolerance, by way and by task, and rows scored."""
    ways = {NAMES[way]: entry for way, entry in summary["by_way"].items() if way in PROMISING}
    entries = {**ways, **summary["by_task"], "**all of them**": summary["over_all"]}
    if "point" in summary["by_way"]:
        entries["without a confidence"] = summary["by_way"]["point"]
    head = ["runs", "number", "within ε on test rows, %", "beyond ε surely", "certified"]
    head += ["mean drop, points", "mean size, %", "minutes"]
    rows, tasks = summary["rows_scored"], summary["rows_scored"]["tasks"]
    ratios = [f"{ratio:.2f}" for ratio in (*tasks.values(), rows["mean"])]
    label = "rows scored, over those without a confidence"
    return {
        CLAIM: figures.markdown(head, [[name, *_row(entry)] for name, entry in entries.items()]),
        f"{CLAIM}-rows": figures.markdown(["", *tasks, "mean"], [[label, *ratios]]),
    }


def _row(entry: Mapping[str, Any]) -> list[str]:
    within = figures.spread(entry["within"], 0, times=100)
    shares = [f"{100 * entry[key]:.1f}" for key in ("drop", "kept")]
    counts = [str(entry[key]) for key in ("beyond_surely", "certified")]
    return [str(entry["runs"]), within, *counts, *shares, f"{entry['minutes']:.1f}"]
