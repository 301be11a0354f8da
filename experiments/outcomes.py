"""Which rows the genomes of one frontier answer correctly, and searches on rows drawn from them.

All rows that calibration left over are scored once; a search on some of them then takes no pass.

    python -m experiments.outcomes FILE +task=sst2 model.path=my_model search.rows=100000

`experiments/results/outcomes` has files of real language models, which the claim `tolerance` reads.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sieve.config import Config
from sieve.search.lines import bisect, last_feasible
from sieve.tasks.drop_test import upper_drop
from sieve.tasks.scores import Scores, drop_of

RUN = Path("runs/outcomes")
PATHS = ("model.path", "model.adapter", "task.data_dir", "paths.")  # settings left out of a record
GENOMES = 40  # of a frontier, at most
LOST = 0.2  # of the accuracy; the frontier ends after three genomes that lose more


@dataclass(frozen=True)
class Outcomes:
    """The rows that are right (G, N), of the dense model first, and the kept fractions (G,)."""

    right: np.ndarray
    kept: np.ndarray

    def record(self) -> dict[str, Any]:
        """For JSON: rows as hexadecimal digits of their bits."""
        return {
            "rows": self.right.shape[1],
            "kept": self.kept.tolist(),
            "right": [np.packbits(row).tobytes().hex() for row in self.right],
        }

    @classmethod
    def of(cls, record: dict[str, Any]) -> "Outcomes":
        """From a record."""
        rows = [np.frombuffer(bytes.fromhex(row), np.uint8) for row in record["right"]]
        right = np.stack([np.unpackbits(row, count=record["rows"]) for row in rows])
        return cls(right.astype(bool), np.array(record["kept"]))

    def drops(self) -> np.ndarray:
        """The drop of every genome on all rows (G,)."""
        share: np.ndarray = self.right.mean(1)
        return share[0] - share

    def oracle(self, tolerance: float) -> int:
        """The smallest genome within the tolerance on all rows, all larger ones within it too."""
        beyond = np.flatnonzero(self.drops() > tolerance)
        return int(beyond[0]) - 1 if len(beyond) else len(self.kept) - 1

    def drawn(self, rows: np.ndarray) -> "Outcomes":
        """The same genomes on some rows, by their indexes."""
        return Outcomes(self.right[:, rows], self.kept)

    def chosen(self, tolerance: float, confidence: float | None) -> int:
        """The genome that a search on all rows chooses, by the rule of `search=waterfill`."""

        def feasible(index: int) -> bool:
            dense, pruned = (_scores(self.right[i]) for i in (0, index))
            if confidence is None:
                return drop_of(dense, pruned) <= tolerance + 1e-12
            return upper_drop(dense, pruned, confidence) <= tolerance

        search = last_feasible if confidence is None else bisect
        return search(len(self.kept), feasible)


def _scores(right: np.ndarray) -> Scores:
    return Scores(right.astype(int), right, np.zeros(len(right)))


def measure(config: Config, folder: Path) -> Outcomes:
    """Score the genomes of the closed-form frontier on all selection and test rows."""
    from sieve import stages
    from sieve.bank.switch import Switch
    from sieve.evaluation.evaluation import score
    from sieve.stages.seeds import line_of

    with stages.opened(config, folder) as run:
        bank = stages.fit(run, stages.calibrate(run))
        rows = [*run.task.splits["selection"], *run.task.splits["test"]]
        batches = run.data.scoring_batches(rows)
        line = line_of(run, bank, "waterfill")
        switch, right, kept = Switch(run.backbone.model, bank), list[np.ndarray](), list[float]()
        lost = 0
        for index in range(0, line.count, max(1, line.count // GENOMES)):
            genome = line.genome(index)
            with switch.to(genome):
                right.append(score(run.backbone.model, batches).values.astype(bool))
            kept.append(bank.kept_fraction(genome))
            lost = lost + 1 if right[0].mean() - right[-1].mean() > LOST else 0
            if lost == 3:
                break
    return Outcomes(np.stack(right), np.array(kept))


def main() -> None:
    """Measure the outcomes of a run and write them to a file."""

    from experiments.jobs import composed

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path, help="where the outcomes go, as JSON")
    parser.add_argument("overrides", nargs="+", help="settings, such as +task=sst2 model.path=m")
    arguments = parser.parse_args()
    outcomes = measure(composed(arguments.overrides, RUN), RUN)
    settings = [word for word in arguments.overrides if not word.lstrip("+").startswith(PATHS)]
    record = outcomes.record() | {"overrides": settings}
    arguments.file.write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
