"""Why the test rows of Almanac's reading task are harder than its selection rows.

The two splits differ in their passages and in the phrasings of their questions. Both passages are
asked in both phrasings, of the dense model and of genomes on the closed-form frontier.
"""

import json
import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import figures
from experiments.jobs import Job, composed
from sieve import stages
from sieve.bank.switch import Switch
from sieve.evaluation.evaluation import score
from sieve.search.lines import largest_within
from sieve.stages.seeds import line_of
from sieve.tasks import Example, build_task
from sieve.tasks.almanac import almanac_rows
from sieve.tasks.almanac.reading import TELLINGS, VALUES
from sieve.tasks.config import ROLES

CLAIM = "phrasings"
HERE = f"experiments.claims.{CLAIM}"
SIZES = (0.15, 0.08, 0.03)  # kept fractions, beside the dense model
HELD_OUT = ("selection", "test")
CONTRAST = ("medicine", "geography")  # other tasks whose splits differ in their phrasings
SHUFFLES = 10_000
Row = dict[str, Any]
Right = dict[str, np.ndarray]  # model -> which rows it answers correctly


def jobs() -> list[Job]:
    """One pass over the held-out rows of every task."""
    return [
        Job(CLAIM, (("subject", subject),), "call", f"{HERE}:measure")
        for subject in ("reading", *CONTRAST)
    ]


def measure(out: Path, subject: str) -> dict[str, Any]:
    """Accuracies by passages, phrasings and model; of reading also by phrasing."""
    if subject != "reading":
        splits = build_task(_config(subject, out).task).splits
        cells = {(split, split): splits[split] for split in HELD_OUT}
        return {"cells": _shares(answers(subject, cells, out))}
    rows = {role: almanac_rows("reading", split=role) for role in ROLES}
    with tempfile.TemporaryDirectory() as folder:
        asked = {p: rephrased_splits(rows, p, Path(folder) / p, out) for p in ROLES}
        cells = {(split, p): splits[split] for p, splits in asked.items() for split in splits}
        right = answers("reading", cells, out)
    names = np.array([phrasing_of(row)[1] for row in rows["test"]])
    return {
        "cells": _shares(right),
        "changes": {
            "passages": _changes(right["selection", "test"], right["test", "test"]),
            "phrasings": _changes(right["test", "selection"], right["test", "test"]),
        },
        "phrasings": {
            name: _share({m: v[names == name] for m, v in right["test", "test"].items()})
            for name in sorted(set(names))
        },
    }


def summarize(results: Mapping[str, Any]) -> dict[str, Any]:
    """The measurements by task."""
    return {
        name.removeprefix(f"{CLAIM}/"): {k: v for k, v in record.items() if k != "job"}
        for name, record in results.items()
    }


def phrasing_of(row: Row, dataset: str = "primary") -> tuple[str, str, str]:
    """The kind of value that a question asks for, its phrasing and the person in it.

    Raises StopIteration if the question is of another data set.
    """
    return next(
        (kind, phrasing, name)
        for kind, telling in TELLINGS[dataset].items()
        for phrasings in telling["questions"].values()
        for phrasing in phrasings
        for name in VALUES["friend"]
        if phrasing.replace("{n}", name) == row["question"]
    )


def rephrased(rows: Sequence[Row], split: str, dataset: str = "primary") -> list[Row]:
    """The same rows with the questions of a split, drawn at random; its own rows are unchanged."""
    draw, changed = random.Random(split), []
    for row in rows:
        kind, phrasing, name = phrasing_of(row, dataset)
        phrasings = TELLINGS[dataset][kind]["questions"][split]
        if phrasing not in phrasings:
            row = row | {"question": draw.choice(phrasings).replace("{n}", name)}
        changed.append(row)
    return changed


def rephrased_splits(
    rows: Mapping[str, Sequence[Row]], phrasing: str, folder: Path, out: Path
) -> dict[str, list[Example]]:
    """The selection and test split in the phrasings of a split."""
    folder.mkdir()
    for name, role in (("train", "calibration"), ("validation", "selection"), ("test", "test")):
        split = rows[role] if role == "calibration" else rephrased(rows[role], phrasing)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in split))
    splits = build_task(_config("reading", out, f"task.data_dir={folder}").task).splits
    return {split: splits[split] for split in HELD_OUT}


def answers(
    subject: str, cells: Mapping[tuple[str, str], Sequence[Example]], out: Path
) -> dict[tuple[str, str], Right]:
    """By cell, the rows that the dense model and genomes of some sizes answer correctly."""
    with stages.opened(_config(subject, out), out / "phrasings") as run:
        bank = stages.fit(run, stages.calibrate(run))
        line, model = line_of(run, bank, "waterfill"), run.backbone.model
        batches = {cell: run.data.scoring_batches(rows) for cell, rows in cells.items()}
        right = {c: {"dense": score(model, b).values.astype(bool)} for c, b in batches.items()}
        switch = Switch(model, bank)
        for size in SIZES:
            genome = largest_within(line, bank.kept_fraction, size)
            assert genome is not None
            with switch.to(genome):
                for cell, rows in batches.items():
                    values = score(model, rows).values.astype(bool)
                    right[cell][f"{100 * size:.0f} % kept"] = values
    return right


def difference(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """The difference of two means, and the p-value of a permutation test over rows."""
    observed, pool = one.mean() - other.mean(), np.concatenate([one, other])
    generator, count = np.random.default_rng(0), len(one)
    first = np.array([generator.permutation(pool)[:count].mean() for _ in range(SHUFFLES)])
    shuffled = first - (pool.sum() - count * first) / len(other)
    p_value = (1 + int((abs(shuffled) >= abs(observed) - 1e-12).sum())) / (1 + SHUFFLES)
    return float(observed), p_value


def tables(summary: Mapping[str, Any]) -> dict[str, str]:
    """Accuracy by passages and phrasings, and by phrasing of the test split."""
    models = ["dense", *(f"{100 * size:.0f} % kept" for size in SIZES)]
    head = " | ".join(models) + " |\n" + "|---" * (len(models) + 3) + "|"
    cells = [f"| task | passages or facts | phrasings | {head}"]
    for task, record in summary.items():
        for cell, shares in record["cells"].items():
            cells.append(f"| {task} | {' | '.join(cell.split('/'))} | {_cells(shares, models)}")
    head = " | ".join(models) + " |\n" + "|---" * (len(models) + 2) + "|"
    phrasings = [f"| test phrasing of reading | rows | {head}"]
    for name, shares in summary["reading"]["phrasings"].items():
        rows = shares["rows"]
        phrasings.append(f"| {name.replace('{n}', '…')} | {rows} | {_cells(shares, models)}")
    for name, changes in summary["reading"]["changes"].items():
        values = " | ".join(
            f"{100 * changes[m]['points']:+.1f} (p = {changes[m]['p']:.2g})" for m in models
        )
        phrasings.append(f"| **test {name} instead of selection's, points** |  | {values} |")
    return {CLAIM: "\n".join(cells), f"{CLAIM}-each": "\n".join(phrasings)}


def _cells(shares: Mapping[str, Any], models: Sequence[str]) -> str:
    return " | ".join(f"{100 * shares[model]['value']:.1f}" for model in models) + " |"


def _shares(right: Mapping[tuple[str, str], Right]) -> dict[str, Any]:
    return {"/".join(cell): _share(by_model) for cell, by_model in right.items()}


def _share(by_model: Right) -> dict[str, Any]:
    shares = {m: figures.share(float(v.mean()), len(v)) for m, v in by_model.items()}
    return {"rows": len(by_model["dense"]), **shares}


def _changes(one: Right, other: Right) -> dict[str, Any]:
    """What the second cell changes against the first, by model."""
    found = {}
    for model, values in other.items():
        points, p_value = difference(values, one[model])
        found[model] = {"points": round(points, 4), "p": round(p_value, 4)}
    return found


def _config(subject: str, out: Path, *overrides: str) -> Any:
    """Settings without further selection rows."""
    small = ["+experiment=_small", f"+subject={subject}", "search.rows=1", "confidence=null"]
    return composed([*small, *overrides], out)
