"""Summary, table and figure of `experiments/projections.jsonl`.

    python -m experiments.summary

Writes `projections.json`, `projections.svg` and the table in `longer.md`. Methods are compared by
the smallest kept fraction with a drop of at most .02 on test rows. Seeds choose the calibration
rows; intervals are bootstrapped over subjects.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot

from experiments import style
from experiments.pages import write_blocks
from experiments.projections import FOLDER, METHODS, SUBJECTS, read_lines

matplotlib.use("svg")  # Write figures to files; do not open a display.
DROP = 0.02
BOOTSTRAP = 10_000
PAPER, OURS, REFITTED = "output", "sieve", "sieve, refitted"
POSITION = "sieve, per position"
TUNED = "sieve, refitted and tuned"
ROUNDS = ("sieve, in two rounds", "sieve, in four rounds")
FISHER = "sieve, Fisher, tokens alike"
PIECES = {
    "loss-aware": "sieve without loss-aware",
    "pivoted": "sieve without pivoting",
    "water-filled": "sieve without water-filling",
}
SHOWN = {
    "svd": "#b8b8b8",
    "whitened": "#8c8c8c",
    "learned": "#d08770",
    PAPER: "#bf616a",
    OURS: "#5e81ac",
    REFITTED: "#2e3440",
}
Records = dict[tuple[str, str], list[dict[str, Any]]]


def main() -> None:
    """Write the summary, table and figure."""
    found: Records = defaultdict(list)
    for record in read_lines(FOLDER / "projections.jsonl"):
        found[record["subject"], record["method"]].append(record)
    begun = {REFITTED: OURS, f"{POSITION}, refitted": POSITION, **dict.fromkeys(ROUNDS, OURS)}
    for method, basis in (begun | {TUNED: REFITTED}).items():
        for subject in SUBJECTS:
            for record in found.get((subject, method), []):
                complete(record, found.get((subject, basis), []))
    summary = summarize(found)
    (FOLDER / "projections.json").write_text(json.dumps(summary, indent=1) + "\n")
    draw(found, FOLDER / "projections.svg")
    blocks = {
        "projections": table(summary),
        "pieces": pieces(summary),
        "cost": cost(summary),
        "predicted": predicted(found),
    }
    write_blocks(FOLDER / "longer.md", blocks)


def complete(improved: dict[str, Any], basis: list[dict[str, Any]]) -> None:
    """Add the levels above the refitted (or trained) ones from the method they start from."""
    measured = max(point["level"] for point in improved["curve"])
    for record in basis:
        if record["seed"] == improved["seed"]:
            above = [point for point in record["curve"] if point["level"] > measured]
            improved["curve"] = above + improved["curve"]


def smallest(record: dict[str, Any]) -> float:
    """The smallest kept fraction within the drop; 1 if there is none."""
    floor = record["dense"]["accuracy"] - DROP - 1e-9
    return min((p["kept_fraction"] for p in record["curve"] if p["accuracy"] >= floor), default=1.0)


def loss_at(record: dict[str, Any], level: float) -> float | None:
    """The increase of the loss at a level, for text."""
    here = [p["loss"] for p in record["curve"] if p["level"] == level]
    return here[0] - record["dense"]["loss"] if here else None


def summarize(found: Records) -> dict[str, Any]:
    """Per method: smallest kept fraction by subject and seed, means, time and memory."""
    methods = {}
    for method in METHODS:
        kept = {
            subject: {str(r["seed"]): round(smallest(r), 4) for r in sorted(records, key=_seed)}
            for subject in SUBJECTS
            if (records := found.get((subject, method))) and records[0]["dense"]["accuracy"]
        }
        text = {
            f"{level:g}": {
                str(r["seed"]): round(rise, 4)
                for r in records
                if (rise := loss_at(r, level)) is not None
            }
            for level in (0.9, 0.75, 0.5, 0.3)
            if (records := found.get((SUBJECTS[-1], method)))
        }
        runs = [r for (_, name), records in found.items() if name == method for r in records]
        if runs:
            methods[method] = {
                "smallest_kept": kept,
                "mean": _mean_of(kept),
                "text_loss_rise": text,
                "seconds": {
                    part: round(float(np.median([r["seconds"][part] for r in runs])), 2)
                    for part in ("calibrate", "fit", "all")
                },
                "peak_mib": max(r["peak_mib"] for r in runs),
            }
    return {
        "drop": DROP,
        "methods": methods,
        "against": {
            method: ratio(methods, method, OURS)
            for method in methods
            if method not in (OURS, *PIECES.values())
        },
        "position_refitted": ratio(methods, f"{POSITION}, refitted", REFITTED),
        "pieces": {
            piece: ratio(methods, without, OURS)
            for piece, without in PIECES.items()
            if without in methods
        },
        "worse_somewhere": worse(found),
    }


def _seed(record: dict[str, Any]) -> int:
    return int(record["seed"])


def _mean_of(kept: dict[str, dict[str, float]]) -> float | None:
    tasks = [s for s in SUBJECTS if not s.startswith("lm_")]
    if any(task not in kept for task in tasks):
        return None
    return round(float(np.mean([np.mean(list(kept[task].values())) for task in tasks])), 4)


def ratio(methods: dict[str, Any], method: str, ours: str) -> dict[str, Any] | None:
    """Mean kept fraction of a method over that of the defaults, on common subjects and seeds."""
    if method not in methods or ours not in methods:
        return None
    theirs, own = methods[method]["smallest_kept"], methods[ours]["smallest_kept"]
    pairs = []
    for subject in theirs:
        seeds = [seed for seed in theirs[subject] if seed in own.get(subject, {})]
        if seeds:
            pairs.append([np.mean([kept[subject][s] for s in seeds]) for kept in (theirs, own)])
    if not pairs:
        return None
    array = np.array(pairs)
    drawn = np.random.default_rng(0).integers(len(array), size=(BOOTSTRAP, len(array)))
    means = array[drawn].mean(1)
    low, high = np.percentile(means[:, 0] / means[:, 1], [2.5, 97.5])
    return {
        "ratio": round(float(array[:, 0].mean() / array[:, 1].mean()), 2),
        "interval": [round(float(low), 2), round(float(high), 2)],
        "subjects": len(array),
        "wins": int((array[:, 0] > array[:, 1] + 1e-9).sum()),
        "losses": int((array[:, 0] < array[:, 1] - 1e-9).sum()),
    }


def worse(found: Records) -> list[dict[str, Any]]:
    """Levels at which another method beats the defaults by more than the 95 % interval.

    Both are compared with the dense model on the same rows. The variances of the two differences
    are added, so the interval is wider than a paired one.
    """
    rows = []
    for subject in SUBJECTS:
        ours = {r["seed"]: r for r in found.get((subject, OURS), [])}
        for method in METHODS:
            if method.startswith("sieve") or (subject, method) not in found:
                continue
            for record in found[subject, method]:
                own = {p["level"]: p for p in ours.get(record["seed"], {"curve": []})["curve"]}
                for point in record["curve"]:
                    mine = own.get(point["level"])
                    if mine is None or point["accuracy"] is None:
                        continue
                    n = record["dense"]["rows"]
                    differing = sum(p[k] for p in (point, mine) for k in ("lost", "won"))
                    half = 1.96 * np.sqrt(differing) / n
                    if point["accuracy"] - mine["accuracy"] > half:
                        rows.append(
                            {
                                "subject": subject,
                                "method": method,
                                "seed": record["seed"],
                                "level": point["level"],
                                "accuracy": point["accuracy"],
                                "ours": mine["accuracy"],
                                "half_interval": round(float(half), 4),
                            }
                        )
    return rows


def table(summary: dict[str, Any]) -> str:
    """Methods as rows, subjects as columns, in Markdown."""
    names = [s.split("/")[0].removeprefix("almanac_") for s in SUBJECTS[:-1]]
    lines = [
        "| method | " + " | ".join(names) + " | mean | seeds | stories, rise at .75 |",
        "|" + "---|" * (len(names) + 4),
    ]
    for method, entry in summary["methods"].items():
        cells = [_cell(entry["smallest_kept"].get(s), np.mean) for s in SUBJECTS[:-1]]
        seeds = [len(v) for v in entry["smallest_kept"].values()] or [0]
        rise = _cell(entry["text_loss_rise"].get("0.75"), np.mean)
        mean = "" if entry["mean"] is None else f"**{entry['mean']:.3f}**"
        many = f"{min(seeds)}" if min(seeds) == max(seeds) else f"{min(seeds)}–{max(seeds)}"
        lines.append(f"| {method} | " + " | ".join(cells) + f" | {mean} | {many} | {rise} |")
    return "\n".join(lines)


def _cell(values: dict[str, float] | None, of: Callable[[list[float]], Any]) -> str:
    return f"{of(list(values.values())):.3f}" if values else ""


def pieces(summary: dict[str, Any]) -> str:
    """The gain of each part, and of the defaults over each method, in Markdown."""
    lines = [
        "| without | keeps so many times as much (95 % interval) | more / less on tasks |",
        "|---|---|---|",
    ]
    rows: Iterable[tuple[str, Any]] = [*summary["pieces"].items(), *summary["against"].items()]
    for name, found in rows:
        if found:
            low, high = found["interval"]
            label = f"{name} pieces" if name in PIECES else f"instead: {name}"
            lines.append(
                f"| {label} | {found['ratio']:.2f} ({low:.2f} to {high:.2f}) | "
                f"{found['wins']} / {found['losses']} of {found['subjects']} |"
            )
    return "\n".join(lines)


def cost(summary: dict[str, Any]) -> str:
    """Time and memory per method, in Markdown."""
    lines = ["| method | calibrate, s | fit, s | peak of the process, MiB |", "|---|---|---|---|"]
    for method, entry in summary["methods"].items():
        took = entry["seconds"]
        lines.append(
            f"| {method} | {took['calibrate']:.1f} | {took['fit']:.2f} | {entry['peak_mib']:,} |"
        )
    return "\n".join(lines)


def predicted(found: Records) -> str:
    """KL(dense ‖ pruned), predicted by the energies and measured, in Markdown."""
    levels = (0.5, 0.3, 0.2, 0.1, 0.05, 0.03)
    lines = ["| subject | " + " | ".join(f"{x:g}" for x in levels) + " |", "|" + "---|" * 7]
    for subject in SUBJECTS:
        for record in found.get((subject, FISHER), [])[:1]:
            points = {p["level"]: p for p in record["curve"] if p.get("predicted") is not None}
            cells = [
                f"{points[x]['predicted']:.4f} / {points[x]['kl']:.4f}" if x in points else ""
                for x in levels
            ]
            lines.append(f"| {subject} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(found: Records, path: Path) -> None:
    """Accuracy (loss for text) against the kept fraction, a panel per subject; mean over seeds."""
    style.plain()
    figure, axes = pyplot.subplots(3, 4, figsize=(11, 7.5), layout="constrained")
    for panel, subject in zip(axes.flat, SUBJECTS, strict=False):
        for method, color in SHOWN.items():
            if records := found.get((subject, method)):
                text = records[0]["curve"][0]["accuracy"] is None
                points: dict[float, list[tuple[float, float]]] = defaultdict(list)
                for point in (p for r in records for p in r["curve"]):
                    value = point["loss"] if text else point["accuracy"]
                    points[point["level"]].append((point["kept_fraction"], value))
                line = np.array([np.mean(points[level], 0) for level in sorted(points)])
                panel.plot(
                    100 * line[:, 0],
                    line[:, 1],
                    color=color,
                    label=method,
                    marker=".",
                    linewidth=1.4,
                    markersize=4,
                )
                dense = records[0]["dense"]["loss" if text else "accuracy"]
                panel.axhline(dense, color="#a3be8c", linewidth=0.8, zorder=0)
        panel.set_xscale("log")
        panel.set_xticks([0.5, 1, 2, 5, 10, 20, 50, 90], ["0.5", 1, 2, 5, 10, 20, 50, 90])
        panel.minorticks_off()
        panel.set_title(subject, loc="left", fontsize=8, fontweight="bold")
    axes[-1][2].set_ylabel("loss, nats per token")
    for row in axes:
        row[0].set_ylabel("accuracy on test rows")
    for panel in axes[-1]:
        panel.set_xlabel("kept, % of prunable parameters")
    last = axes.flat[-1]
    last.axis("off")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    handles.append(pyplot.Line2D([], [], color="#a3be8c", linewidth=0.8))
    last.legend(handles, [*labels, "dense"], loc="center", frameon=False)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    main()
