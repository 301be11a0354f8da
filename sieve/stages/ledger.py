"""The sweeper's file of generations, read as genomes and scores."""

import json
import math
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import numpy as np

from sieve.bank.bank import Bank
from sieve.bank.genome import Genome
from sieve.runtime.artifacts import read_json
from sieve.search.score import Score
from sieve.search.space import genome_of_levels
from sieve.stages.cached import Record


class Ledger:
    """A ledger and the bank that its genomes belong to.

    Raises:
        ValueError: the ledger belongs to another bank.
    """

    def __init__(self, path: Path, bank: Bank) -> None:
        header, *lines = [json.loads(line) for line in path.read_text().splitlines()]
        self.prepared: Record = header["prepared"]  # what `genetic.prepare` returned
        if self.prepared["bank"] != bank.fingerprint:
            raise ValueError(
                f"{path} belongs to bank {self.prepared['bank']!r}, got {bank.fingerprint!r}; "
                "search again on this bank."
            )
        self.bank = bank
        self.variables = header["settings"]["space"]["variables"]
        self.lines = [line for line in lines if "generation" in line]

    @cached_property
    def seeding(self) -> dict[Genome, Score]:
        """Scores of the genomes that were evaluated to find the seeds."""
        scored = read_json(Path(self.prepared["space"]))["scored"]
        return {genome_of_levels(self.bank, row["levels"]): _score(row) for row in scored}

    @cached_property
    def evolved(self) -> dict[Genome, Score]:
        """Scores of the genomes of all generations that did not fail, in order."""
        return {
            self._genome(positions): _score(values)
            for line in self.lines
            for positions, values in zip(line["genomes"], line["values"], strict=True)
            if "error" not in values
        }

    def generations(self) -> list[Record]:
        """For each generation the smallest feasible size so far, and percentiles of the sizes."""
        rows, best = [], math.inf
        for line in self.lines:
            scores = [_score(values) for values in line["values"] if "error" not in values]
            sizes = [score.kept_fraction for score in scores]
            feasible = [score.kept_fraction for score in scores if score.feasible]
            best = min([best, *feasible])
            low, median, high = np.percentile(sizes, [10, 50, 90]) if sizes else [math.nan] * 3
            rows.append(
                {
                    "generation": line["generation"],
                    "best": best if math.isfinite(best) else None,
                    "median": float(median),
                    "low": float(low),
                    "high": float(high),
                    "feasible": len(feasible),
                    "evaluated": line["evaluated"],
                    "memo": len(line["genomes"]) - line["evaluated"],
                    "seconds": line["seconds"],
                }
            )
        return rows

    def mean_levels(self) -> dict[str, float]:
        """Mean level of each matrix over the smallest tenth of the feasible genomes."""
        feasible = [genome for genome, score in self.evolved.items() if score.feasible]
        feasible.sort(key=lambda genome: self.evolved[genome].kept_fraction)
        levels = [list(g.levels.values()) for g in feasible[: max(1, len(feasible) // 10)]]
        means = np.mean(levels, axis=0) if levels else []
        return dict(zip(self.bank.names, map(float, means), strict=False))

    def _genome(self, positions: list[float]) -> Genome:
        levels = [v["values"][int(x)] for v, x in zip(self.variables, positions, strict=True)]
        return genome_of_levels(self.bank, levels)


def score_record(score: Score) -> Record:
    """A score for JSON, where numbers that are not finite become null."""
    numbers = {k: v if math.isfinite(v) else None for k, v in asdict(score).items()}
    return numbers | {"whole": int(score.whole)}


def _score(values: Record) -> Score:
    def number(name: str) -> float:
        return math.nan if values.get(name) is None else float(values[name])

    return Score(
        kept_fraction=values["kept_fraction"],
        accuracy=values["accuracy"],
        margin=values["margin"],
        examples_used=int(values["examples_used"]),
        loss=number("loss"),
        divergence=number("divergence"),
        whole=bool(values["whole"]),
    )
