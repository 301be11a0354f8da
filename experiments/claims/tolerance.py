"""Does the tolerance hold on rows that the search never saw?

All rows that calibration left over are the population: every genome of a frontier has answered
them. Selection rows are drawn from them with replacement, a search chooses, and its drop on the
population says whether the promise held. The oracle knows the population.

The outcomes of real language models are committed: `python -m experiments.outcomes` measures them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments import figures
from experiments.jobs import Job, swept_values
from experiments.outcomes import Outcomes

CLAIM = "tolerance"
FOLDER = Path(__file__).parents[1] / "results" / "outcomes"
HERE = f"experiments.claims.{CLAIM}"
TOLERANCE = 0.02
ROWS = (300, 800, 1_658, 3_000)  # 1,658: the default for this tolerance
RULES: dict[str, float | None] = {"point": None, "confident": 0.9}
NAMES = {"point": "point estimate", "confident": "confidence .9"}
DRAWS = 200


def jobs() -> list[Job]:
    """One pass over all rows per task."""
    subjects = swept_values(CLAIM)["subject"].split(",")
    return [
        Job(CLAIM, (("subject", subject.strip()),), "call", f"{HERE}:measure")
        for subject in subjects
    ]


def measure(out: Path, subject: str) -> dict[str, Any]:
    """The outcomes of a frontier."""
    from experiments import outcomes
    from experiments.jobs import composed

    config = composed([f"+experiment={CLAIM}", f"subject={subject}"], out)
    return outcomes.measure(config, out / CLAIM / subject).record()


def real_models() -> dict[str, Any]:
    """The committed outcomes by the names of their files."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}


def summarize(results: Mapping[str, Any]) -> dict[str, Any]:
    """By task, number of rows and rule: how often the tolerance held, and the size kept."""
    records = {name.removeprefix(f"{CLAIM}/"): record for name, record in results.items()}
    records |= real_models()
    tasks = {name: simulate(Outcomes.of(record)) for name, record in records.items()}
    over_all = {}
    for rows in map(str, ROWS):
        over_all[rows] = {
            rule: {
                "held": float(np.mean([task["at"][rows][rule]["held"] for task in tasks.values()])),
                "least": min(task["at"][rows][rule]["held"] for task in tasks.values()),
                "times_oracle": figures.geometric(
                    [task["at"][rows][rule]["times_oracle"] for task in tasks.values()]
                ),
            }
            for rule in RULES
        }
    return {"tasks": tasks, "over_all": over_all, "draws": DRAWS}


def simulate(outcomes: Outcomes, draws: int = DRAWS) -> dict[str, Any]:
    """Searches on drawn rows, by number of rows and rule."""
    generator, drops = np.random.default_rng(0), outcomes.drops()
    best, population = outcomes.kept[outcomes.oracle(TOLERANCE)], outcomes.right.shape[1]
    at: dict[str, Any] = {}
    for rows in ROWS:
        samples = [outcomes.drawn(generator.integers(population, size=rows)) for _ in range(draws)]
        at[str(rows)] = {}
        for rule, confidence in RULES.items():
            chosen = [sample.chosen(TOLERANCE, confidence) for sample in samples]
            sizes = outcomes.kept[chosen]
            at[str(rows)][rule] = {
                "held": float(np.mean(drops[chosen] <= TOLERANCE)),
                "drop": float(drops[chosen].mean()),
                "times_oracle": float(np.exp(np.log(sizes / best).mean())),
            }
    return {"population": population, "oracle": float(best), "at": at}


def tables(summary: Mapping[str, Any]) -> dict[str, str]:
    """A row per number of rows and rule: how often the tolerance held, by task."""
    tasks, lines = summary["tasks"], []
    for rows in map(str, ROWS):
        for rule, label in NAMES.items():
            total = summary["over_all"][rows][rule]
            held = [task["at"][rows][rule]["held"] for task in tasks.values()]
            shares = [f"{100 * share:.0f}" for share in (*held, total["held"])]
            ratio = figures.spread(total["times_oracle"], 2)
            lines.append([f"{int(rows):,}", label, *shares, ratio])
    head = ["selection rows", "rule", *tasks, "mean", "size over the oracle's"]
    return {CLAIM: figures.markdown(head, lines)}
