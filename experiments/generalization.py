"""The cross-data-set matrix: prune for one data set, test on all of its domain and on one outside.

    python -m experiments.generalization almanac      # the embedded model; resumes
    python -m experiments.generalization sentiment    # reader-6m on the shared data sets
    python -m experiments.generalization --summary    # tables, heat maps and JSON, no runs

Each row of a matrix is one run, tested on the test rows of every data set. It is calibrated on the
rows of its data set, on plain text ("text": the data set still chooses the genome), or on a mixture
of all data sets of the domain ("mixed"). Each run adds a JSON line to `generalization.jsonl`.
"""

import argparse
import functools
import json
import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from hydra import compose, initialize_config_dir
from matplotlib import pyplot

from experiments.pages import write_blocks
from experiments.projections import FOLDER, read_lines
from experiments.running import SHARED, finished
from sieve.conversion import CONF, register_resolvers

matplotlib.use("svg")  # Write figures to files; do not open a display.
log = logging.getLogger(__name__)
MODELS = {"sentiment": "reader-6m", "almanac": "embedded"}
ROWS = ("own", "text", "mixed")  # sources of calibration rows
DARK = 13  # points; darker cells get white text
TEXT = "lm_wikitext"
PATH = FOLDER / "generalization.jsonl"


def main() -> None:
    """Run what is missing, then write the summary."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("domains", nargs="*", choices=[*MODELS, []], default=[])
    parser.add_argument("--rows", nargs="*", default=list(ROWS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--cache", type=Path, default=None, help="folder for the banks")
    parser.add_argument("--summary", action="store_true")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if arguments.domains and not arguments.summary:
        with tempfile.TemporaryDirectory() as folder:
            measure(arguments, arguments.cache or Path(folder))
    summarize()


def measure(arguments: argparse.Namespace, cache: Path) -> None:
    """Append a record for every row that is missing."""
    done = {key(record) for record in read_lines(PATH)}
    for domain in arguments.domains:
        tasks, sets = sets_of(domain)
        for seed in arguments.seeds:
            for row in arguments.rows:
                for task in tasks:
                    if (domain, row, task, seed) not in done:
                        record = run(domain, row, task, sets, seed, cache)
                        with PATH.open("a") as file:
                            file.write(json.dumps(record) + "\n")
                        log.info(json.dumps(record))


def key(record: dict[str, Any]) -> tuple[str, str, str, int]:
    """The key of a record."""
    return record["domain"], record["row"], record["task"], record["seed"]


@functools.cache
def sets_of(domain: str) -> tuple[list[str], list[str]]:
    """The tasks of a domain to prune for, and all tasks to test on, from `conf/`."""
    register_resolvers()
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        overrides = ["+experiment=generalization", f"domain={domain}"]
        found = compose("config", overrides, return_hydra_config=True)
    return found.hydra.sweeper.params.task.split(","), list(found.also)


def run(
    domain: str, row: str, task: str, sets: Sequence[str], seed: int, cache: Path
) -> dict[str, Any]:
    """Run one row: the kept fraction, and both accuracies and the drop on every data set."""
    start, shared = time.perf_counter(), domain != "almanac"
    others = [name for name in sets if name != task]
    overrides = [f"+task@also.{name}={name}" for name in others]
    if shared:
        overrides += [f"also.{name}.data_dir={SHARED / 'data' / name}" for name in others]
    if row == "text":
        overrides += [
            "+task@calibration.mix.text=perplexity",
            "+calibration.weights.self=0",
            f"calibration.mix.text.data_dir={SHARED / 'data' / TEXT}",
        ]
    if row == "mixed":
        fellows = [name for name in others if same_domain(domain, name, task)]
        overrides += [f"+task@calibration.mix.{name}={name}" for name in fellows]
        if shared:
            overrides += [
                f"calibration.mix.{name}.data_dir={SHARED / 'data' / name}" for name in fellows
            ]
    result = finished(
        f"{task}/{MODELS[domain]}", cache, f"seed={seed}", "projection.refit_tries=1", *overrides
    )
    own = {part: result[part] for part in ("baseline", "pruned", "drop", "examples")}
    return {
        "domain": domain,
        "row": row,
        "task": task,
        "seed": seed,
        "kept": result["kept_fraction"]["prunable"],
        "tolerance": result["tolerance"],
        "tokens": result["calibration"]["tokens"],
        "on": {name: _cell(found) for name, found in ({task: own} | result["also"]).items()},
        "seconds": round(time.perf_counter() - start, 1),
    }


def same_domain(domain: str, one: str, other: str) -> bool:
    """Whether two data sets belong to one domain; Almanac data sets are compared by topic."""
    if domain == "almanac":
        return one.split("_")[1] == other.split("_")[1]
    return "trec" not in (one, other)


def _cell(found: dict[str, Any]) -> dict[str, Any]:
    return {
        "dense": found["baseline"]["accuracy"],
        "pruned": found["pruned"]["accuracy"],
        "rows": found["examples"],
        **found["drop"],
    }


def summarize() -> None:
    """Tables, heat maps and JSON of all records."""
    records = {key(record): record for record in read_lines(PATH)}
    body: dict[str, Any] = {}
    blocks = {}
    for domain in MODELS:
        found = [record for record in records.values() if record["domain"] == domain]
        if found:
            body[domain] = {
                "matrix": {f"{r['task']}, {r['row']}, seed {r['seed']}": r for r in found},
                "transfer": transfer(domain, found),
            }
            draw(domain, found)
        blocks[f"generalization-{domain}"] = table(domain, found) if found else ""
    blocks["generalization-transfer"] = transfer_table(body)
    (FOLDER / "generalization.json").write_text(json.dumps(body, indent=1) + "\n")
    write_blocks(FOLDER / "longer.md", blocks)


def transfer(domain: str, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Per kind of row: size and drop on the own data set, inside and outside the domain.

    `beyond` counts the pairs whose whole 95 % interval exceeds the tolerance.
    """
    result = {}
    for row in ROWS:
        records = [record for record in found if record["row"] == row]
        if not records:
            continue
        groups: dict[str, list[dict[str, float]]] = {"own": [], "inside": [], "outside": []}
        for record in records:
            for name, cell in record["on"].items():
                inside = same_domain(domain, name, record["task"])
                place = "own" if name == record["task"] else "inside" if inside else "outside"
                groups[place].append(cell)
        result[row] = {"kept": float(np.mean([r["kept"] for r in records]))} | {
            place: {
                "drop": float(np.mean([cell["point"] for cell in cells])),
                "worst": float(max(cell["point"] for cell in cells)),
                "pairs": len(cells),
                "within": sum(cell["point"] <= records[0]["tolerance"] + 1e-9 for cell in cells),
                "beyond": sum((cell["low"] or 0) > records[0]["tolerance"] for cell in cells),
            }
            for place, cells in groups.items()
            if cells
        }
    return result


def transfer_table(body: dict[str, Any]) -> str:
    """A table of sizes, mean drops, and pairs within the tolerance."""
    lines = [
        "| domain | calibrated on | sets | kept, % | own set | others of the domain | outside |",
        "|---|---|---|---|---|---|---|",
    ]
    for domain, found in body.items():
        for row, groups in found["transfer"].items():
            cells = [
                f"{100 * groups[place]['drop']:.1f} ({groups[place]['within']} of "
                f"{groups[place]['pairs']} within ε, worst {100 * groups[place]['worst']:.1f})"
                for place in ("own", "inside", "outside")
            ]
            sets, kept = groups["own"]["pairs"], f"{100 * groups['kept']:.2f}"
            lines.append(f"| {domain} | {row} | {sets} | {kept} | {' | '.join(cells)} |")
    return "\n".join(lines)


def table(domain: str, found: Sequence[dict[str, Any]]) -> str:
    """A table of accuracies on every data set, with drops and intervals in points."""
    names = list(dict.fromkeys(name for record in found for name in sorted(record["on"])))
    short = [name.removeprefix("almanac_").replace("_alternate", " 2") for name in names]
    dense = {name: record["on"][name]["dense"] for record in found for name in record["on"]}
    lines = [
        "| sieved on | kept, % | " + " | ".join(short) + " |",
        "|" + "---|" * (len(names) + 2),
        "| dense | 100 | " + " | ".join(f"{100 * dense[name]:.1f}" for name in names) + " |",
    ]
    for record in sorted(found, key=lambda r: (ROWS.index(r["row"]), r["task"], r["seed"])):
        label = record["task"].removeprefix("almanac_").replace("_alternate", " 2")
        label += {"own": "", "text": ", calibrated on text", "mixed": ", mixed"}[record["row"]]
        cells = [_written(record["on"].get(name), name == record["task"]) for name in names]
        lines.append(f"| {label} | {100 * record['kept']:.1f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _written(cell: dict[str, float] | None, own: bool) -> str:
    if cell is None:
        return ""
    low, high = 100 * (cell["low"] or 0), 100 * (cell["high"] or 0)
    mark = "**" if own else ""
    return f"{mark}{100 * cell['pruned']:.1f}{mark} ({low:+.1f} to {high:+.1f})"


def draw(domain: str, found: Sequence[dict[str, Any]]) -> None:
    """A heat map of drops in points: one row per run, one column per data set."""
    names = list(dict.fromkeys(name for record in found for name in sorted(record["on"])))
    rows = sorted(found, key=lambda r: (ROWS.index(r["row"]), r["task"], r["seed"]))
    drops = np.array([[100 * r["on"][name]["point"] for name in names] for r in rows])
    figure, axes = pyplot.subplots(
        figsize=(2.4 + 0.78 * len(names), 1.6 + 0.3 * len(rows)), layout="constrained"
    )
    image = axes.imshow(drops, cmap="RdYlGn_r", vmin=-20, vmax=20, aspect="auto")
    axes.set_xticks(
        range(len(names)), [_short(name) for name in names], rotation=40, ha="right", fontsize=7
    )
    labels = [f"{_short(r['task'])} · {r['row']} · {100 * r['kept']:.1f} %" for r in rows]
    axes.set_yticks(range(len(rows)), labels, fontsize=7)
    for i, record in enumerate(rows):
        for j, name in enumerate(names):
            weight = "bold" if name == record["task"] else "normal"
            color = "white" if abs(drops[i, j]) > DARK else "black"
            axes.text(
                j,
                i,
                f"{drops[i, j]:.1f}",
                ha="center",
                va="center",
                fontsize=6.5,
                fontweight=weight,
                color=color,
            )
    axes.set_title(f"{domain}: points lost on test rows, by where it was sieved", fontsize=9)
    figure.colorbar(image, ax=axes, label="drop, points", shrink=0.8)
    figure.savefig(FOLDER / f"generalization_{domain}.svg", metadata={"Date": None})
    pyplot.close(figure)


def _short(name: str) -> str:
    return name.removeprefix("almanac_").replace("_alternate", " 2").replace("_", " ")


if __name__ == "__main__":
    main()
