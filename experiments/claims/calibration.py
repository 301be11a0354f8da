"""Task-specific against task-agnostic calibration: own rows, plain text, another domain, a mixture.

The task's rows always choose the genome; only the moments come from the other source.
"""

from collections.abc import Mapping
from typing import Any

from experiments import figures
from experiments.jobs import Job, swept

CLAIM = "calibration"
SOURCES = {
    "own": "its own rows",
    "mixed": "a mixture with them",
    "other": "another domain",
    "text": "plain text",
}
PLACES = {"geography": "other", "ag_news": "other", "almanac": "mixed", "reader": "mixed"}


def jobs() -> list[Job]:
    """Four sources for two tasks of each model."""
    reader = swept(CLAIM, subject="sst2,trec", source="own,text,ag_news,reader")
    return [*swept(CLAIM), *reader]


def summarize(results: Mapping[str, Any]) -> dict[str, Any]:
    """By task and source: kept and drop; ratios to the task's own rows."""
    found: dict[str, Any] = {}
    for name, result in results.items():
        subject, source = name.removeprefix(f"{CLAIM}/").split("-")
        found.setdefault(subject, {})[PLACES.get(source, source)] = {
            "source": source,
            **figures.chosen(result),
            "tokens": result["calibration"]["tokens"],
        }
    whole = [entry for entry in found.values() if set(entry) == set(SOURCES)]
    times = {
        source: figures.geometric(
            [entry[source]["kept"]["value"] / entry["own"]["kept"]["value"] for entry in whole]
        )
        for source in SOURCES
        if source != "own" and whole
    }
    return {"tasks": found, "times": times}


def tables(summary: Mapping[str, Any]) -> dict[str, str]:
    """Kept fraction by source, absolute and relative to the task's own rows."""
    tasks, rows = summary["tasks"], []
    for source, label in SOURCES.items():
        times = summary["times"].get(source)
        cells = [figures.cell(entry.get(source)) for entry in tasks.values()]
        rows.append([label, *cells, figures.spread(times) if times else ""])
    head = ["calibrated on", *tasks, "times its own rows'"]
    return {CLAIM: figures.with_legend(figures.markdown(head, rows))}
