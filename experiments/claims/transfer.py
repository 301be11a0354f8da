"""Prune for one data set, test on the others inside and outside its domain."""

import functools
from collections.abc import Mapping
from typing import Any

from experiments import figures
from experiments.jobs import SHARED, Job, composed_raw

CLAIM = "transfer"
MODELS = {"sentiment": "reader-6m", "almanac": "embedded"}
LABELS = {"own": "its own test rows", "inside": "others of the domain", "outside": "outside"}
SMALL = (
    "confidence=null",
    "calibration.tokens=25_000",
    "projection.rank_multiple=1",
    "projection.refit=false",
    "speed.enabled=false",
    "export=none",
    "task.max_rows.selection=300",
    "logger.group=generalization",
)
ROWS = 500  # rows of each test split


def jobs() -> list[Job]:
    """One run per data set of both domains."""
    return [_job(domain, task) for domain in MODELS for task in sets_of(domain)[0]]


@functools.cache
def sets_of(domain: str) -> tuple[list[str], list[str]]:
    """The tasks of a domain to prune for, and all tasks to test on, from `conf/`."""
    found = composed_raw(["+experiment=generalization", f"domain={domain}"])
    return found.hydra.sweeper.params.task.split(","), list(found.also)


def same_domain(domain: str, one: str, other: str) -> bool:
    """Whether two data sets belong to one domain; Almanac data sets are compared by topic."""
    if domain == "almanac":
        return one.split("_")[1] == other.split("_")[1]
    return "trec" not in (one, other)


def _job(domain: str, task: str) -> Job:
    sets = sets_of(domain)[1]
    extra = [*SMALL, f"task.max_rows.test={ROWS}"]
    extra += [f"also.{name}.max_rows.test={ROWS}" for name in sets]
    if domain == "sentiment":
        extra += [
            f"model.path={SHARED / 'models' / MODELS[domain]}",
            f"task.data_dir={SHARED / 'data' / task}",
        ]
        extra += [f"also.{name}.data_dir={SHARED / 'data' / name}" for name in sets]
    return Job(CLAIM, (("domain", domain), ("task", task)), extra=tuple(extra))


def summarize(results: Mapping[str, Any]) -> dict[str, Any]:
    """The matrix of drops of each domain, and how many pairs are within the tolerance."""
    found: dict[str, Any] = {}
    for name, result in results.items():
        domain, task = name.removeprefix(f"{CLAIM}/").split("-")
        own = {key: result[key] for key in ("baseline", "pruned", "drop", "examples")}
        cells = {task: own} | result["also"]
        found.setdefault(domain, {"matrix": {}})["matrix"][task] = {
            "kept": figures.kept(result),
            "on": {
                other: {
                    "dense": round(cell["baseline"]["accuracy"], 4),
                    "drop": figures.drop(cell["drop"]),
                    "place": _place(domain, task, other),
                }
                for other, cell in sorted(cells.items())
            },
        }
        tolerance = result["tolerance"]
    for entry in found.values():
        cells = [cell for row in entry["matrix"].values() for cell in row["on"].values()]
        entry["tolerance"] = tolerance
        entry["summary"] = {
            place: {
                "pairs": len(chosen),
                "drop": figures.pooled([cell["drop"] for cell in chosen]),
                "within": sum(c["drop"]["value"] <= tolerance + 1e-9 for c in chosen),
                "beyond": sum(c["drop"]["low"] > tolerance for c in chosen),
            }
            for place in ("own", "inside", "outside")
            if (chosen := [cell for cell in cells if cell["place"] == place])
        }
    return found


def _place(domain: str, task: str, other: str) -> str:
    if task == other:
        return "own"
    return "inside" if same_domain(domain, task, other) else "outside"


def tables(summary: Mapping[str, Any]) -> dict[str, str]:
    """The matrices of drops in points, and their summary."""
    blocks, pairs = {}, []
    for domain, entry in summary.items():
        names = sorted({name for row in entry["matrix"].values() for name in row["on"]})
        rows = [
            [
                _short(task),
                f"{100 * row['kept']['value']:.1f}",
                *(_cell(row["on"].get(name)) for name in names),
            ]
            for task, row in entry["matrix"].items()
        ]
        blocks[f"{CLAIM}-{domain}"] = figures.markdown(
            ["sieved on", "kept, %", *map(_short, names)], rows
        )
        for place, found in entry["summary"].items():
            counts = [str(found[key]) for key in ("within", "beyond")]
            drop = figures.spread(found["drop"], times=100)
            pairs.append([domain, LABELS[place], str(found["pairs"]), drop, *counts])
    head = ["domain", "pairs", "number", "mean drop, points", "within ε", "beyond ε surely"]
    return blocks | {CLAIM: figures.markdown(head, pairs)}


def _cell(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return ""
    value = f"{100 * cell['drop']['value']:+.1f}"
    return {"own": f"**{value}**", "inside": value, "outside": f"*{value}*"}[cell["place"]]


def _short(name: str) -> str:
    return name.removeprefix("almanac_").replace("_alternate", " 2").replace("_", " ")
