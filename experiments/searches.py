"""Searches on one bank and one objective: genetic against uniform, water-filling and references.

    python -m experiments.searches                                   # all; resumes
    python -m experiments.searches --tasks trec/reader-6m --seeds 0 --searches waterfill genetic
    python -m experiments.search_summary                             # the tables

Each search is one run of `python -m sieve.run` with the same cached bank and without refit, so that
runs differ only in the genome. Reference searches may score as many rows as the genetic search of
the same task and seed. Each run adds a JSON line to `experiments/searches.jsonl`.
"""

import argparse
import json
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

from experiments.projections import read_lines
from experiments.running import finished

log = logging.getLogger(__name__)
FOLDER = Path(__file__).parent
ALMANAC = ("medicine", "geography", "reviews", "reading")
TASKS = (
    *(f"almanac_{name}/embedded" for name in ALMANAC),
    *(f"{name}/reader-6m" for name in ("sst2", "trec", "ag_news")),
)
PAPER = ["projection=output", "projection.storage=plain", "search.normalize=relative"]
BANKS = {"default": [], "paper": PAPER}
PLAIN_MAP = "search.bottlenecks=false"  # part of the report only; does not affect the search
QUICK = [
    "search=genetic",
    PLAIN_MAP,
    "search.seeds=[waterfill]",
    "hydra.sweeper.population=4",
    "hydra.sweeper.generations=4",
    "calibration.tokens=10000",
    "confidence=0.975",
]
SEARCHES: dict[str, list[str]] = {
    "uniform": ["search=uniform", "search.confirmation=.4"],
    "waterfill": ["search=waterfill", "search.confirmation=.4"],
    "uniform, all rows": ["search=uniform"],
    "waterfill, all rows": ["search=waterfill"],
    "genetic": ["search=genetic", PLAIN_MAP],
    "random": ["search=random", "search.evaluations=5000"],
    "evopress": ["search=evopress", "search.evaluations=5000"],
    "genetic, unconfirmed": ["search=genetic", PLAIN_MAP, "search.confirmation=0"],
    "genetic, margin alone": ["search=genetic_margin", PLAIN_MAP],
    "unseeded": ["search=paper", "hydra.sweeper.generations=15"],
    "quick, guaranteed": QUICK,
}
EQUAL = ("random", "evopress")  # searches with the row budget of the genetic search
DEFAULT = ("uniform", "waterfill", "genetic", "random", "evopress")


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--banks", nargs="*", default=list(BANKS))
    parser.add_argument("--searches", nargs="*", default=list(DEFAULT))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=FOLDER / "searches.jsonl")
    parser.add_argument("--cache", type=Path, default=None, help="folder for the banks")
    parser.add_argument("overrides", nargs="*", default=[])
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    done = {key(record): record for record in read_lines(arguments.out)}
    with tempfile.TemporaryDirectory() as folder:
        for seed in arguments.seeds:
            for task in arguments.tasks:
                for bank in arguments.banks:
                    for search in arguments.searches:
                        if (task, bank, search, seed) in done:
                            continue
                        overrides = list(arguments.overrides)
                        if search in EQUAL:
                            if (task, bank, "genetic", seed) not in done:
                                parser.error(
                                    f"{search} scores as many rows as genetic: run that "
                                    f"for {task}, {bank}, seed {seed} first."
                                )
                            spent = done[task, bank, "genetic", seed]["examples"]
                            overrides.append(f"search.examples={spent}")
                        cache = arguments.cache or Path(folder)
                        record = run(task, bank, search, seed, cache, overrides)
                        done[key(record)] = record
                        with arguments.out.open("a") as file:
                            file.write(json.dumps(record) + "\n")
                        log.info(json.dumps(record))


def key(record: dict[str, Any]) -> tuple[str, str, str, int]:
    """The key of a record."""
    return record["task"], record["bank"], record["search"], record["seed"]


def run(
    task: str, bank: str, search: str, seed: int, cache: Path, overrides: list[str]
) -> dict[str, Any]:
    """Run one search: its result on selection rows and on test rows."""
    start = time.perf_counter()
    result = finished(
        task,
        cache,
        *BANKS[bank],
        *SEARCHES[search],
        f"seed={seed}",
        "projection.refit=false",
        *overrides,
    )
    found, drop = result["search"], result["drop"]
    confirmation = found["confirmation"] or {}
    [chosen] = [point for point in found["curve"] if point["chosen"]]
    return {
        "task": task,
        "bank": bank,
        "search": search,
        "seed": seed,
        "kept": result["kept_fraction"]["prunable"],
        "smallest_seen": min(p["kept_fraction"] for p in found["curve"] if p["feasible"]),
        "margin": chosen["margin"],
        "divergence": chosen["divergence"],
        "dense": result["baseline"]["accuracy"],
        "pruned": result["pruned"]["accuracy"],
        "drop": drop["point"],
        "drop_low": drop["low"],
        "drop_high": drop["high"],
        "rows": result["examples"],
        "tolerance": result["tolerance"],
        "evaluations": found["evaluations"],
        "examples": found["examples"],
        "confirmed_after": len(confirmation.get("tried", [])),
        "seconds": round(time.perf_counter() - start, 1),
    }


if __name__ == "__main__":
    main()
