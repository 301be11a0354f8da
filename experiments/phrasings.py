"""Why the test rows of Almanac's reading task are harder than its selection rows.

The two splits differ in their passages and in the phrasings of their questions. Both passages are
asked in both phrasings, of the dense model and of genomes on the closed-form frontier.

    python -m experiments.phrasings        # two minutes on one core; prints tables
"""

import argparse
import json
import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from experiments.jobs import composed
from sieve import stages
from sieve.bank.switch import Switch
from sieve.evaluation.evaluation import score
from sieve.search.lines import largest_within
from sieve.stages.seeds import line_of
from sieve.tasks import Example, build_task
from sieve.tasks.almanac import almanac_rows
from sieve.tasks.almanac.reading import TELLINGS, VALUES
from sieve.tasks.config import ROLES

SIZES = (0.15, 0.08, 0.03)  # kept fractions, beside the dense model
HELD_OUT = ("selection", "test")
CONTRAST = ("medicine", "geography")  # other tasks whose splits differ in their phrasings
SHUFFLES = 10_000
Row = dict[str, Any]
Right = dict[str, np.ndarray]  # model -> which rows it answers correctly
console = Console(width=120)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/experiments"))
    out = parser.parse_args().out
    rows = {role: almanac_rows("reading", split=role) for role in ROLES}
    with tempfile.TemporaryDirectory() as folder:
        asked = {
            phrasing: rephrased_splits(rows, phrasing, Path(folder) / phrasing, out)
            for phrasing in ROLES
        }
        cells = {(p, split): examples for p, s in asked.items() for split, examples in s.items()}
        right = answers("reading", cells, out)
    print_cells(right)
    print_phrasings(right["test", "test"], rows["test"])
    for subject in CONTRAST:
        splits = build_task(_config(subject, out).task).splits
        print_splits(subject, answers(subject, {(s, s): splits[s] for s in HELD_OUT}, out))


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


def print_cells(right: Mapping[tuple[str, str], Right]) -> None:
    """Accuracy by passages and phrasings, and what each of the two changes."""
    models = list(next(iter(right.values())))
    console.print(f"\nreading: accuracy, %{'':36}" + "".join(f"{m:>12}" for m in models))
    for (phrasing, split), by_model in right.items():
        label = f"{split} passages, {phrasing} phrasings"
        values = "".join(f"{100 * by_model[m].mean():12.1f}" for m in models)
        console.print(f"  {label:50}{values}", highlight=False)
    for label, one, other in (
        ("test passages - selection passages", ("test", "selection"), ("test", "test")),
        ("test phrasings - selection phrasings", ("selection", "test"), ("test", "test")),
    ):
        changes = (difference(right[other][m], right[one][m]) for m in models)
        values = "".join(f"{100 * d:+7.1f} ({p:.2g})" for d, p in changes)
        console.print(f"  {label}, points (p): {values}", highlight=False)


def print_phrasings(right: Right, rows: Sequence[Row]) -> None:
    """Accuracy by phrasing of the test rows."""
    names = np.array([phrasing_of(row)[1] for row in rows])
    console.print("\nreading: accuracy on test rows by phrasing, %")
    for name in sorted(set(names)):
        chosen = names == name
        values = "".join(f"{100 * values[chosen].mean():12.1f}" for values in right.values())
        console.print(f"  {name:40}{chosen.sum():6} rows{values}", highlight=False)


def print_splits(subject: str, right: Mapping[tuple[str, str], Right]) -> None:
    """Accuracy and drop on the selection and on the test split of another task."""
    console.print(f"\n{subject}: accuracy, %, and drop, points")
    for (split, _), by_model in right.items():
        dense = by_model["dense"].mean()
        drops = "".join(
            f"{100 * v.mean():8.1f} ({100 * (dense - v.mean()):+.1f})" for v in by_model.values()
        )
        console.print(f"  {split:12}{len(by_model['dense']):6} rows{drops}", highlight=False)


def _config(subject: str, out: Path, *overrides: str) -> Any:
    """Settings without further selection rows."""
    small = ["+experiment=_small", f"+subject={subject}", "search.rows=1", "confidence=null"]
    return composed([*small, *overrides], out)


if __name__ == "__main__":
    main()
