"""Summary of `experiments/searches.jsonl`: what each search kept, and its drop on test rows.

    python -m experiments.search_summary

Writes `searches.json`, `searches.svg` and the tables in `longer.md`. A ratio compares the mean kept
fractions of two searches on the tasks and seeds that both have; its 95 % interval is bootstrapped
over tasks.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot

from experiments import style
from experiments.projections import FOLDER, read_lines
from experiments.searches import BANKS, SEARCHES, TASKS
from experiments.summary import BOOTSTRAP, write_blocks

matplotlib.use("svg")  # Write figures to files; do not open a display.
COLORS = {
    "uniform": "#bf616a",
    "waterfill": "#d08770",
    "random": "#b8b8b8",
    "evopress": "#8c8c8c",
    "genetic": "#2e3440",
}
OURS, QUICK = "genetic", "quick, guaranteed"
Record = dict[str, Any]
Found = dict[tuple[str, str], dict[str, dict[int, Record]]]  # bank and search -> task -> seed


def main() -> None:
    """Write the summary, figure and tables."""
    found: Found = defaultdict(lambda: defaultdict(dict))
    for record in read_lines(FOLDER / "searches.jsonl"):
        found[record["bank"], record["search"]][record["task"]][record["seed"]] = record
    body = summarize(found)
    (FOLDER / "searches.json").write_text(json.dumps(body, indent=1) + "\n")
    draw(found)
    blocks = {"searches": kept_table(found), "against": against_table(body), "word": word(found)}
    write_blocks(FOLDER / "longer.md", blocks)


def summarize(found: Found) -> dict[str, Any]:
    """Per bank: the kept fraction of every search relative to the genetic one."""
    body: dict[str, Any] = {}
    for bank in BANKS:
        others = [s for s in SEARCHES if s not in (OURS, QUICK) and (bank, s) in found]
        body[bank] = {
            "tasks": {
                search: {
                    task: {str(seed): record for seed, record in sorted(seeds.items())}
                    for task, seeds in found[bank, search].items()
                }
                for search in SEARCHES
                if (bank, search) in found
            },
            "against": {other: compared(found[bank, other], found[bank, OURS]) for other in others},
        }
    return body


def compared(theirs: Any, ours: Any) -> dict[str, Any] | None:
    """Means over seeds of what two searches kept, task by task, and the ratio of their means."""
    pairs, drops = [], []
    for task in theirs:
        seeds = [seed for seed in theirs[task] if seed in ours.get(task, {})]
        if seeds:
            both = [[side[task][seed] for seed in seeds] for side in (theirs, ours)]
            pairs.append([np.mean([r["kept"] for r in side]) for side in both])
            drops.append([np.mean([r["drop"] for r in side]) for side in both])
    if not pairs:
        return None
    array, lost = np.array(pairs), np.array(drops).mean(0)
    low, high = bootstrap(array, lambda drawn: drawn[:, 1].mean() / drawn[:, 0].mean())
    return {
        "ratio": round(float(array[:, 1].mean() / array[:, 0].mean()), 3),
        "interval": [round(low, 3), round(high, 3)],
        "tasks": len(array),
        "smaller": int((array[:, 1] < array[:, 0] - 1e-9).sum()),
        "larger": int((array[:, 1] > array[:, 0] + 1e-9).sum()),
        "drop_theirs": round(float(lost[0]), 4),
        "drop_ours": round(float(lost[1]), 4),
    }


def bootstrap(rows: np.ndarray, of: Callable[[np.ndarray], float]) -> tuple[float, float]:
    """95 % interval of a statistic of rows, resampled."""
    drawn = np.random.default_rng(0).integers(len(rows), size=(BOOTSTRAP, len(rows)))
    low, high = np.percentile([of(rows[index]) for index in drawn], [2.5, 97.5])
    return float(low), float(high)


def kept_table(found: Found) -> str:
    """What each search kept (%) and lost on test rows (points); means over seeds."""
    names = [task.split("/")[0].removeprefix("almanac_") for task in TASKS]
    lines = [
        "| bank | search | " + " | ".join(names) + " | mean kept | mean drop | rows scored |",
        "|" + "---|" * (len(names) + 5),
    ]
    for bank in BANKS:
        for search in SEARCHES:
            if search == QUICK or (tasks := found.get((bank, search))) is None:
                continue
            cells = [_cell(list(tasks[task].values())) if task in tasks else "" for task in TASKS]
            every = [list(seeds.values()) for seeds in tasks.values()]
            whole = len(tasks) == len(TASKS)
            kept = f"**{100 * _mean(every, 'kept'):.2f}**" if whole else ""
            drop = f"{100 * _mean(every, 'drop'):.2f}" if whole else ""
            rows = f"{_mean(every, 'examples'):,.0f}" if whole else ""
            lines.append(
                f"| {bank} | {search} | " + " | ".join(cells) + f" | {kept} | {drop} | {rows} |"
            )
    return "\n".join(lines)


def _cell(records: Sequence[Record]) -> str:
    kept = 100 * np.mean([r["kept"] for r in records])
    drop = 100 * np.mean([r["drop"] for r in records])
    return f"{kept:.2f} ({drop:.1f})"


def _mean(tasks: Sequence[Sequence[Record]], key: str) -> float:
    return float(np.mean([np.mean([r[key] for r in seeds]) for seeds in tasks]))


def against_table(body: dict[str, Any]) -> str:
    """The genetic search against every other search, in Markdown."""
    lines = [
        "| bank | against | keeps of it (95 % interval) | smaller / larger on tasks | "
        "mean drop on test, theirs / ours |",
        "|---|---|---|---|---|",
    ]
    for bank, held in body.items():
        for other, found in held["against"].items():
            if found:
                low, high = found["interval"]
                lines.append(
                    f"| {bank} | {other} | {found['ratio']:.2f} ({low:.2f} to {high:.2f}) | "
                    f"{found['smaller']} / {found['larger']} of {found['tasks']} | "
                    f"{100 * found['drop_theirs']:.2f} / {100 * found['drop_ours']:.2f} |"
                )
    return "\n".join(lines)


def word(found: Found) -> str:
    """How often a search was within its tolerance on test rows, and its mean optimism."""
    lines = [
        "| bank | search | runs | test drop within the tolerance | margin on its rows | "
        "margin on test |",
        "|---|---|---|---|---|---|",
    ]
    for bank in BANKS:
        for search in SEARCHES:
            records = [
                r for seeds in found.get((bank, search), {}).values() for r in seeds.values()
            ]
            if records:
                within = sum(r["drop"] <= r["tolerance"] + 1e-9 for r in records)
                seen = 100 * np.mean([r["margin"] for r in records])
                unseen = 100 * np.mean([r["tolerance"] - r["drop"] for r in records])
                lines.append(
                    f"| {bank} | {search} | {len(records)} | {within} of {len(records)} | "
                    f"{seen:.2f} | {unseen:.2f} |"
                )
    return "\n".join(lines)


def draw(found: Found) -> None:
    """Kept fractions by task: one panel per bank, one dot per seed, a bar for the mean."""
    style.plain()
    names = [task.split("/")[0].removeprefix("almanac_") for task in TASKS]
    figure, axes = pyplot.subplots(1, len(BANKS), figsize=(11, 3.6), layout="constrained")
    for panel, bank in zip(axes, BANKS, strict=True):
        searches = [s for s in COLORS if (bank, s) in found]
        width = 0.8 / max(1, len(searches))
        for place, search in enumerate(searches):
            for column, task in enumerate(TASKS):
                kept = [100 * r["kept"] for r in found[bank, search].get(task, {}).values()]
                x = column + (place - (len(searches) - 1) / 2) * width
                if kept:
                    label = search if column == 0 else None
                    panel.bar(x, np.mean(kept), 0.9 * width, color=COLORS[search], label=label)
                    panel.scatter(
                        [x] * len(kept),
                        kept,
                        s=5,
                        color="white",
                        edgecolor="black",
                        linewidth=0.5,
                        zorder=3,
                    )
        panel.set_xticks(range(len(names)), names)
        panel.set_yscale("log")
        ticks = [1, 2, 5, 10, 20, 50]
        panel.set_yticks(ticks, [str(tick) for tick in ticks])
        panel.minorticks_off()
        panel.set_title(f"bank: {bank}", loc="left", fontsize=8, fontweight="bold")
    axes[0].set_ylabel("kept, % of prunable parameters")
    axes[0].legend(frameon=False, ncols=2)
    figure.savefig(FOLDER / "searches.svg", metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    main()
