"""What training a pruned model brings back, by recipe, at fixed sizes and steps.

    python -m experiments.training_recipes training_recipes.jsonl --kept .2,.1 --hidden 0,1 \\
        +task=sst2 task.chat=never model.path=my_model recovery=full recovery.steps=200

Every combination of sizes, weights of the hidden states' error and learning rates is trained for
`recovery.steps` from the same closed form, and adds a line to the file: accuracy and loss on
calibration rows that training never reads, at every check. Runs that the file has are skipped.
After the options come the overrides of `sieve.run`, which choose the loss and everything else.
"""

import argparse
import itertools
import json
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from experiments.projections import read_lines
from sieve import stages
from sieve.bank.bank import Bank
from sieve.config import Config
from sieve.conversion import CONF, register_resolvers, to_config
from sieve.runtime.artifacts import fingerprint
from sieve.search.lines import largest_within
from sieve.stages.run import Run
from sieve.stages.seeds import line_of
from sieve.stages.training import Training

Record = dict[str, Any]


def main() -> None:
    """Train what the file lacks."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--kept", type=numbers, default=[0.2])
    parser.add_argument("--hidden", type=numbers, default=[0.0, 1.0])
    parser.add_argument("--rates", type=numbers, default=[1e-3])
    options, overrides = parser.parse_known_args()
    recipes = list(itertools.product(options.kept, options.hidden, options.rates))
    measure(configured(overrides), recipes, options.file)


def numbers(text: str) -> list[float]:
    """Numbers between commas."""
    return [float(part) for part in text.split(",")]


def configured(overrides: list[str]) -> Config:
    """The configuration of a run without a logger."""
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return to_config(compose("config", ["logger=none", *overrides]))


def measure(config: Config, recipes: list[tuple[float, float, float]], file: Path) -> None:
    """Train by each recipe (kept fraction, weight of hidden states, learning rate)."""
    done = [record["recipe"] for record in read_lines(file)]
    with tempfile.TemporaryDirectory() as folder, stages.opened(config, Path(folder)) as run:
        bank = stages.fit(run, stages.calibrate(run))
        for kept, hidden, rate in recipes:
            settings = replace(config.recovery, hidden=hidden, learning_rate=rate)
            recipe = {"task": run.task.name, "model": run.backbone.name, "kept": kept}
            recipe |= {"seed": config.seed} | asdict(settings)
            if recipe not in done:
                run.config.recovery = settings
                record = {"recipe": recipe} | trained(run, bank, kept)
                with file.open("a") as out:
                    out.write(json.dumps(record) + "\n")


def trained(run: Run, bank: Bank, kept: float) -> Record:
    """Train the water-filled genome of a kept fraction, and measure the dense model too."""
    genome = largest_within(line_of(run, bank, "waterfill"), bank.kept_fraction, kept)
    assert genome is not None, f"no genome keeps {kept}"
    training = Training(run, bank)
    dense = training.objective.baseline
    batches = len(training.batches)  # The rows are read before the time is taken.
    start = time.perf_counter()
    result = training.to_the_end(bank, genome, fingerprint("recipe", bank.fingerprint, time.time()))
    return {
        "batches": batches,
        "kept": round(bank.kept_fraction(genome), 4),
        "rows_checked": len(dense.values),
        "dense": {"accuracy": dense.accuracy, "loss": dense.loss},
        "checks": result.record["history"],
        "seconds": round(time.perf_counter() - start),
    }


if __name__ == "__main__":
    main()
