"""Measure everything and print the tables."""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

import sieve
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
    return {
        "machine": describe_machine(torch.device("cpu")),
        "threads": torch.get_num_threads(),
        "repeats": repeats,
        "model": Path(path).name,
        "ratios": parts.ratios(path, repeats)
        | {"fit": parts.fit_ratio(forecast.build("wide"), forecast.calibration(2048), repeats)},
        "speed": {
            Path(path).name: _speed(parts.load(path)[0], repeats),
            "random-25m": _speed(forecast.build("wide"), repeats),
        },
        "forecast": {name: forecast.forecasts(name) for name in forecast.MEASURED},
    }


def _speed(model: Any, repeats: int) -> dict[str, Any]:
    """Speed by level with the factors of the weights alone, which have the same shapes."""
    moments = sieve.calibrate(model, forecast.calibration(512), projection="svd")
    return parts.speed_by_level(model, sieve.fit(model, moments, "svd", "pivoted"), repeats)


if __name__ == "__main__":
    main()
