"""Measure everything and print the tables."""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from experiments.bench import forecast, parts
from experiments.bench.tables import tables
from sieve.evaluation.speed import describe_machine


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="Measure speed and memory.")
    parser.add_argument("--model", default=str(parts.EMBEDDED), help="folder of the parts' model")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    summary = measure(arguments.model, arguments.repeats)
    head = "{machine}, {threads} threads, {repeats} repeats, {model}".format(**summary)
    sys.stdout.write("\n\n".join([head, *tables(summary)]) + "\n")


def measure(path: str, repeats: int) -> dict[str, Any]:
    """All figures of one machine."""
    model, tokenizer = parts.load(path)
    models = {Path(path).name: model, "random-25m": forecast.build("wide").float()}
    return {
        "machine": describe_machine(torch.device("cpu")),
        "threads": torch.get_num_threads(),
        "repeats": repeats,
        "model": Path(path).name,
        "ratios": parts.ratios(model, tokenizer, models["random-25m"], repeats),
        "speed": {name: parts.speed_by_level(m, repeats) for name, m in models.items()},
        "forecast": {name: forecast.forecasts(name) for name in forecast.MEASURED},
    }


if __name__ == "__main__":
    main()
