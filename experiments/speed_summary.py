"""Tables and figure of `experiments/speed.json`, for `experiments.speed`."""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot

from experiments import style
from experiments.pages import write_blocks
from experiments.running import FOLDER

matplotlib.use("svg")  # Write figures to files; do not open a display.
RECORDS = "records"
ENGINES = {
    "eager": ("#2e3440", "as it is"),
    "compile": ("#5e81ac", "torch.compile"),
    "onnx": ("#d08770", "onnxruntime"),
    "int8": ("#8c8c8c", "int8 weights"),
    "onnx_int8": ("#bf616a", "onnxruntime, int8"),
}
BATCH = 8


def write(found: dict[str, Any]) -> None:
    """Write figure and tables."""
    draw(found, FOLDER / "speed.svg")
    blocks = {"speed": table(found), "engines": engines(found), "break_even": break_even(found)}
    write_blocks(FOLDER / "longer.md", blocks)


def table(found: dict[str, Any]) -> str:
    """Speed-up by subject, level and batch, and as a fraction of the ideal, in Markdown."""
    lines = [
        "| model | level | FLOPs kept | ideal | prefill, 1 / 8 / 32 rows | of the ideal, 8 rows | "
        "decode, 1 / 8 / 32 rows | plain: prefill, decode, 8 rows |",
        "|" + "---|" * 8,
    ]
    eager = [r for r in found[RECORDS] if r["engine"] == "eager"]
    held = {(r["subject"], r["level"], r["storage"], r["batch"]): r for r in eager}
    for subject, level, storage, batch in sorted(held, key=lambda k: (k[0], -k[1])):
        if storage != "pivoted" or batch != BATCH:
            continue
        record, plain = held[subject, level, storage, batch], held[subject, level, "plain", batch]
        rows = [held.get((subject, level, storage, n)) for n in (1, 8, 32)]
        prefill, decode = (
            " / ".join("–" if row is None else f"{row[key]:.2f}" for row in rows)
            for key in ("prefill", "decode")
        )
        ideal = 1 / record["kept_flops"]
        lines.append(
            f"| {subject} | {level:g} | {record['kept_flops']:.2f} | {ideal:.2f} | {prefill} | "
            f"{record['prefill'] / ideal:.2f} | {decode} | "
            f"{plain['prefill']:.2f}, {plain['decode']:.2f} |"
        )
    return "\n".join(lines)


def engines(found: dict[str, Any]) -> str:
    """Speed-up of prefill by engine, 8 rows, in Markdown."""
    names = [name for name in ENGINES if any(r["engine"] == name for r in found[RECORDS])]
    held = {
        (r["subject"], r["level"], r["engine"]): r["prefill"]
        for r in found[RECORDS]
        if r["storage"] == "pivoted" and r["batch"] == BATCH
    }
    lines = [
        "| model | level | " + " | ".join(ENGINES[name][1] for name in names) + " |",
        "|" + "---|" * (2 + len(names)),
    ]
    settings = {(subject, level) for subject, level, _ in held}
    for subject, level in sorted(settings, key=lambda k: (k[0], -k[1])):
        figures = [held.get((subject, level, name)) for name in names]
        cells = ["–" if figure is None else f"{figure:.2f}" for figure in figures]
        lines.append(f"| {subject} | {level:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def break_even(found: dict[str, Any]) -> str:
    """Largest rank that is no slower, by shape and tokens, in Markdown; only measured ones."""
    rows = found["break_even"]
    if not rows:
        return ""
    tokens = sorted({row["tokens"] for row in rows})
    held = {(row["d_out"], row["d_in"], row["tokens"]): row for row in rows}
    lines = [
        "| outputs × inputs | " + " | ".join(f"{n} tokens" for n in tokens) + " |",
        "|" + "---|" * (1 + len(tokens)),
    ]
    for d_out, d_in in dict.fromkeys((row["d_out"], row["d_in"]) for row in rows):
        cells = [held[d_out, d_in, n] for n in tokens]
        told = " | ".join(f"{cell['rank']} ({cell['kept']:.2f} kept)" for cell in cells)
        lines.append(f"| {d_out} × {d_in} | {told} |")
    return "\n".join(lines)


def draw(found: dict[str, Any], path: Path) -> None:
    """Speed-up of prefill against the kept fraction of FLOPs, a panel per model."""
    style.plain()
    subjects = sorted({record["subject"] for record in found[RECORDS]})
    figure, axes = pyplot.subplots(
        1, len(subjects), figsize=(3.2 * len(subjects), 3.2), layout="constrained", squeeze=False
    )
    for panel, subject in zip(axes.flat, subjects, strict=True):
        for engine, (color, label) in ENGINES.items():
            points = sorted(
                (100 * r["kept_flops"], r["prefill"])
                for r in found[RECORDS]
                if (r["subject"], r["engine"], r["storage"], r["batch"])
                == (subject, engine, "pivoted", BATCH)
            )
            if points:
                panel.plot(*zip(*points, strict=True), color=color, label=label, marker=".")
        kept = [10, 15, 20, 30, 40, 50, 60, 70, 80, 90, 100]
        ideal = [100 / each for each in kept]
        panel.plot(kept, ideal, color="#a3be8c", linestyle="--", linewidth=1, label="ideal")
        panel.axhline(1, color="#b8b8b8", linewidth=0.8, zorder=0)
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xticks([10, 20, 50, 100], [10, 20, 50, 100])
        panel.set_yticks([1, 2, 5, 10], [1, 2, 5, 10])
        panel.minorticks_off()
        panel.set_title(subject, loc="left", fontsize=8, fontweight="bold")
        panel.set_xlabel("FLOPs kept, %")
    axes[0][0].set_ylabel("times as fast, prefill of 8 × 128 tokens")
    axes[0][0].legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
