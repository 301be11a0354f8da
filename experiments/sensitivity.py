"""How little calibration the loss-aware factors need, and how little their damping matters.

    python -m experiments.sensitivity

Defaults without refit on three subjects and three seeds: 32 to 4,096 calibration rows with the
default damping, and damping over eight orders of magnitude with 1,024 rows. Writes
`sensitivity.json` and the tables in `longer.md`.
"""

import json
import logging
from collections import defaultdict
from typing import Any

import numpy as np
import torch

from experiments.pages import write_blocks
from experiments.projections import FOLDER
from experiments.subjects import TaskSubject
from sieve.bank.bank import fit
from sieve.bank.switch import Switch
from sieve.calibration.calibration import calibrate
from sieve.data.batches import TokenBatch
from sieve.data.calibration_rows import calibration_batches
from sieve.projections.moments import Moments
from sieve.search.waterfill import waterfill

log = logging.getLogger(__name__)
SUBJECTS = ("almanac_reviews/embedded", "trec/reader-6m", "sst2/reader-6m")
LEVELS = (0.1, 0.05, 0.02)
ROWS = (32, 128, 512, 1024, 4096)
DAMPINGS = (None, 1e-8, 1e-6, 1e-4, 1e-2, 1.0)
SEEDS = (0, 1, 2)


def main() -> None:
    """Measure, and write records and tables."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    records = [record for name in SUBJECTS for record in measure(TaskSubject(*name.split("/")))]
    (FOLDER / "sensitivity.json").write_text(json.dumps(records, indent=1) + "\n")
    blocks = {
        "rows": table([r for r in records if r["damping"] is None], "rows"),
        "damping": table([r for r in records if r["rows"] == 1024], "damping"),
    }
    write_blocks(FOLDER / "longer.md", blocks)


def measure(subject: TaskSubject) -> list[dict[str, Any]]:
    """All settings on one subject."""
    dense = subject.measure().accuracy
    records = []
    for seed in SEEDS:
        for rows in ROWS:
            batches = rows_of(subject, rows, seed)
            if (seen := sum(len(batch.input_ids) for batch in batches)) < rows:
                log.info("%s has only %d rows for calibration", subject.name, seen)
                continue
            moments = calibrate(subject.model, batches, projection="loss_aware", seed=seed)
            for damping in DAMPINGS if rows == 1024 else (None,):
                found = accuracies(subject, moments, damping)
                log.info(
                    "%s seed %d rows %d damping %s: %s", subject.name, seed, rows, damping, found
                )
                records.append(
                    {
                        "subject": subject.name,
                        "seed": seed,
                        "rows": rows,
                        "damping": damping,
                        "dense": dense,
                        "accuracy": found,
                    }
                )
    return records


def rows_of(subject: TaskSubject, rows: int, seed: int) -> list[TokenBatch]:
    """The first `rows` calibration rows in the order of the seed."""
    examples = subject.task.splits["calibration"]
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))
    chosen = [examples[index] for index in order[:rows].tolist()]
    return calibration_batches(chosen, subject.backbone.tokenizer, batch_tokens=4096, seed=seed)


def accuracies(subject: TaskSubject, moments: Moments, damping: float | None) -> dict[str, float]:
    """Test accuracy at each level."""
    bank = fit(subject.model, moments, "loss_aware", "pivoted", damping=damping)
    frontier = waterfill(bank)
    found = {}
    for level in LEVELS:
        with Switch(subject.model, bank, as_stored=False).to(
            frontier.genome(frontier.steps_to(level))
        ):
            accuracy = subject.measure().accuracy
        assert accuracy is not None
        found[f"{level:g}"] = accuracy
    return found


def table(records: list[dict[str, Any]], key: str) -> str:
    """Drop of accuracy in points, mean over seeds, in Markdown."""
    heads = [
        f"{s.split('/')[0].removeprefix('almanac_')} .{f'{x:g}'[2:]}"
        for s in SUBJECTS
        for x in LEVELS
    ]
    lines = [f"| {key} | " + " | ".join(heads) + " | mean |", "|" + "---|" * (len(heads) + 2)]
    groups: dict[Any, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        for level, accuracy in record["accuracy"].items():
            cell = f"{record['subject']} {level}"
            groups[record[key]][cell].append(100 * (record["dense"] - accuracy))
    for value, cells in groups.items():
        means = [
            float(np.mean(cells[f"{s} {x:g}"])) if cells[f"{s} {x:g}"] else None
            for s in SUBJECTS
            for x in LEVELS
        ]
        known = [mean for mean in means if mean is not None]
        shown = ["" if mean is None else f"{mean:.1f}" for mean in means]
        mean = f"{np.mean(known):.1f}" if len(known) == len(means) else ""
        label = "rule" if value is None else f"{value:g}"
        lines.append(f"| {label} | " + " | ".join(shown) + f" | {mean} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
