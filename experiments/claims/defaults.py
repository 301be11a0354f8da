"""What each default brings: one of them changed at a time, the others as they are.

All runs are without the refit, which `kept` compares. The runs of `kept` with the same settings
serve here too.
"""

from collections.abc import Mapping
from typing import Any

from experiments import figures
from experiments.claims import kept, tokens
from experiments.jobs import Job, swept

CLAIM = "defaults"
SUBJECTS = ("medicine", "reviews", "trec")
SIZES = (0.1, 0.05, 0.02)  # at which the points lost on test rows are compared
DEFAULT, TOLERANCE = "sieve", ".02"
WAYS = {
    DEFAULT: "the defaults, without the refit",
    "loss_aware": "one level for all matrices, not water-filled",
    "output": "no gradients: the output error alone (`projection=output`)",
    "plain": "plain factors, not pivoted (`projection.storage=plain`)",
    "alike": "all tokens count alike (`calibration.weighting=none`)",
    "gold": "gradients of the right answers (`calibration.answers=gold`)",
}


def jobs() -> list[Job]:
    """The runs of `kept` with the same settings, and a run per task and changed default."""
    same = [
        job
        for job in kept.jobs()
        if (set(dict(job.settings).values()) & {DEFAULT, "loss_aware"})
        and dict(job.settings)["subject"] in SUBJECTS
        and dict(job.settings)["tolerance"] == TOLERANCE
    ]
    return [*same, *swept(CLAIM)]


def summarize(results: Mapping[str, Any]) -> dict[str, Any]:
    """By way and task: kept, drop, points lost at some sizes; ratios to the defaults."""
    ways: dict[str, Any] = {way: {} for way in WAYS}
    for name, result in results.items():
        subject, way, *_ = name.partition("/")[2].split("-")
        at = {f"{z:g}": figures.drop(tokens.nearest(result, z)) for z in SIZES}
        ways[way][subject] = figures.chosen(result) | {"at": at}
    whole = {way: cells for way, cells in ways.items() if set(cells) == set(SUBJECTS)}
    return {
        "ways": ways,
        "times": {way: _times(cells, whole[DEFAULT]) for way, cells in whole.items()}
        if DEFAULT in whole
        else {},
        "mean": {way: _means(cells) for way, cells in whole.items()},
    }


def _times(cells: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, float]:
    """What a way keeps over what the defaults keep, without the refit."""
    return figures.geometric(
        [cells[s]["kept"]["value"] / ours[s]["kept"]["value"] for s in SUBJECTS]
    )


def _means(cells: Mapping[str, Any]) -> dict[str, Any]:
    """Mean points lost at each size."""
    return {
        f"{size:g}": figures.mean([cells[s]["at"][f"{size:g}"] for s in SUBJECTS]) for size in SIZES
    }


def tables(summary: Mapping[str, Any]) -> dict[str, str]:
    """A row per way: kept by task, how often as much as the defaults, points lost."""
    rows = []
    for way, label in WAYS.items():
        cells = [figures.cell(summary["ways"][way].get(subject)) for subject in SUBJECTS]
        times, means = summary["times"].get(way), summary["mean"].get(way)
        ratio = figures.spread(times, 2) if times and way != DEFAULT else ""
        lost = [f"{100 * means[f'{s:g}']['value']:.1f}" if means else "" for s in SIZES]
        rows.append([label, *cells, ratio, *lost])
    head = ["", *SUBJECTS, "times as much", *(f"lost at {100 * size:g} %" for size in SIZES)]
    return {CLAIM: figures.with_legend(figures.markdown(head, rows))}
