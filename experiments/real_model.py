"""Runs of whole tasks on a real language model: what a task needs, untrained and trained.

    python -m experiments.real_model runs/sst2/<date>_<time> ...   # add runs, then write the table
    python -m experiments.real_model                               # write the table

Each run is one `python -m sieve.run` on a local model; its overrides are in the record, without
paths. Records are lines of `real_model.jsonl`, and the table is in `longer.md`. A model that was
tuned first is the adapter of `python -m sieve.tune`, pruned with `model.adapter`.
"""

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.pages import write_blocks
from experiments.projections import read_lines
from experiments.running import FOLDER

FILE = FOLDER / "real_model.jsonl"
PATHS = ("model.path", "model.adapter", "task.data_dir", "paths.", "hydra.", "logger", "speed.")
Record = dict[str, Any]


def main(folders: Sequence[str]) -> None:
    """Add the results of runs to the file, and write the table."""
    with FILE.open("a") as file:
        for folder in folders:
            result = json.loads((Path(folder) / "result.json").read_text())
            file.write(json.dumps(condensed(result)) + "\n")
    write_blocks(FOLDER / "longer.md", {"real-model": table(read_lines(FILE))})


def condensed(result: Record) -> Record:
    """What the table and a reader need of a result, without paths."""
    tried = (result["recovery"] or {}).get("search") or {}
    return {
        "task": result["task"],
        "model": result["model"],
        "tuned_first": bool(result["dense"]),
        "overrides": overrides(result["command"]),
        **{key: result[key] for key in ("tolerance", "confidence", "metric", "examples")},
        "kept": result["kept_fraction"],
        "bytes": result["bytes"],
        "dense": result["baseline"]["accuracy"],
        "pruned": result["pruned"]["accuracy"],
        "drop": result["drop"],
        "tfidf": ((result["rivals"] or {}).get("tfidf") or {}).get("accuracy"),
        "prompt": result.get("prompt"),
        "vocabulary": result.get("vocabulary"),
        "head_start": tried.get("head_start"),
        "attempts": tried.get("attempts"),
        "certified": tried.get("certified"),
        "seconds": {k: round(v) for k, v in result["seconds"].items() if v},
    }


def overrides(command: str) -> list[str]:
    """The settings of a command line that are not paths."""
    return without_paths([word for word in shlex.split(command) if "=" in word])


def without_paths(settings: Sequence[str]) -> list[str]:
    """The settings that are not paths, and say something of the result."""
    return [word for word in settings if not word.lstrip("+").startswith(PATHS)]


def table(records: Sequence[Record]) -> str:
    """A row per run; drops in points, or in percent of a perplexity."""
    lines = [
        "| task | dense model | settings | kept, % | of the whole model, % | dense | pruned | "
        "drop (95 %) | drop at most | TF-IDF | sizes tried, % |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for record in records:
        drop, kept = record["drop"], record["kept"]
        upper, tfidf = drop.get("upper"), record["tfidf"]
        settings = [word for word in record["overrides"] if not word.startswith("+task")]
        cells = [
            record["task"],
            record["model"] + (", tuned" if record["tuned_first"] else ""),
            "`" + " ".join(settings) + "`",
            f"**{percent(kept['prunable'])}**",
            percent(kept["model"]),
            number(record["dense"]),
            number(record["pruned"]),
            f"{percent(drop['point'])} ({percent(drop['low'])} to {percent(drop['high'])})",
            "" if upper is None else percent(upper),
            "" if tfidf is None else number(tfidf),
            ", ".join(tried(attempt) for attempt in record["attempts"] or []),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def percent(value: float) -> str:
    """A fraction in percent."""
    return f"{100 * value:.1f}"


def number(value: float) -> str:
    """An accuracy, or a perplexity."""
    return f"{value:.3f}" if value <= 1 else f"{value:.1f}"


def tried(attempt: Record) -> str:
    """The size of an attempt, struck out where it was refused."""
    size = percent(attempt["kept_fraction"])
    return size if attempt["feasible"] else f"~~{size}~~"


if __name__ == "__main__":
    main(sys.argv[1:])
