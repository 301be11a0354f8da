"""The genetic search against one level for all matrices and against water-filling.

The genetic search uses the selection rows of `kept`. EvoPress and random search score as many rows
as it does, from the same seeds.
"""

from collections.abc import Mapping
from typing import Any

from experiments import figures
from experiments.claims import kept
from experiments.jobs import Job

CLAIM = "adaptive"
SEARCHED = (
    *((subject, ".02") for subject in ("medicine", "reviews", "sst2", "trec")),
    *((subject, tolerance) for subject in ("reviews", "trec") for tolerance in (".01", ".05")),
)
REFERENCES = {"evopress": "EvoPress, as many rows", "random": "random, as many rows"}
LINES = {
    "paper": "the paper's objective, uniform",
    "loss_aware": "uniform",
    "sieve": "water-filled",
}
REFERRED = "trec"


def jobs() -> list[Job]:
    """Genetic searches, the searches to compare with, and references on one subject."""
    mine = [Job(CLAIM, (("subject", s), ("tolerance", t)), "sweep") for s, t in SEARCHED]
    references = [
        Job(
            "kept",
            (("subject", REFERRED), ("method", m), ("tolerance", ".02")),
            rows_of=f"{CLAIM}/{REFERRED}-.02",
        )
        for m in REFERENCES
    ]
    others = [
        job
        for job in kept.jobs()
        if dict(job.settings)["method"] in LINES
        and (dict(job.settings)["subject"], dict(job.settings)["tolerance"]) in SEARCHED
    ]
    return [*others, *mine, *references]


def summarize(results: Mapping[str, Any]) -> dict[str, Any]:
    """By subject and tolerance, what each search kept, lost on test rows, and spent."""
    found: dict[str, Any] = {}
    for name, result in results.items():
        claim, _, rest = name.partition("/")
        subject, *method, tolerance = rest.split("-")
        label = "genetic" if claim == CLAIM else method[0]
        entry = found.setdefault(f"{subject}, ε = {tolerance}", {})
        entry[label] = figures.chosen(result) | {
            "evaluations": result["search"]["evaluations"],
            "rows": result["search"]["examples"],
        }
    shared = [e for n, e in found.items() if n.endswith(".02") and {"genetic", *LINES} <= e.keys()]
    return {"searches": found, "ratio": {m: ratio(shared, m) for m in LINES if shared}}


def ratio(entries: list[dict[str, Any]], method: str) -> dict[str, float]:
    """Kept fraction of the genetic search over another's at ε = .02; geometric mean."""
    return figures.geometric(
        [e["genetic"]["kept"]["value"] / e[method]["kept"]["value"] for e in entries]
    )


def tables(summary: Mapping[str, Any]) -> dict[str, str]:
    """Kept fraction and drop by search, and the rows that the genetic search scored."""
    labels = LINES | {"genetic": "genetic"} | REFERENCES
    rows = []
    for task, entry in summary["searches"].items():
        spent = f"{entry['genetic']['rows']:,}" if "genetic" in entry else ""
        rows.append([task, *(figures.cell(entry.get(label)) for label in labels), spent])
    head = ["task", *labels.values(), "rows scored, genetic"]
    return {CLAIM: figures.with_legend(figures.markdown(head, rows))}
