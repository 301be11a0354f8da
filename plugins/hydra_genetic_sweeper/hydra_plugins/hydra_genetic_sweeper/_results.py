"""The results of a search: `optimization_results.yaml`, and one file per solution."""

import json
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ._evolution import Evolution
from ._files import write
from ._space import Genome

NAME = "optimization_results.yaml"


def results(evolution: Evolution, generations: int, evaluated: int, reason: str) -> dict[str, Any]:
    """The results, with the keys of Hydra's other sweepers.

    One objective: `best_params`, `best_value`. Several objectives: `solutions`. `feasible` says
    whether the constraints are met. There are no times, so that equal searches write equal files.
    """
    objectives = evolution.objectives
    solutions = [_solution(evolution, genome) for genome in evolution.best()]
    body: dict[str, Any] = {"name": "genetic"}
    if len(objectives.directions) == 1 and solutions:
        key = next(iter(objectives.directions))
        body |= {
            "best_params": solutions[0]["params"],
            "best_value": solutions[0]["values"][key],
            "best_values": solutions[0]["values"],
        }
    else:
        body["solutions"] = solutions
    return body | {
        "feasible": bool(solutions) and all(s["feasible"] for s in solutions),
        "generations": generations,
        "evaluations": evaluated,
        "stopped_by": reason,
    }


def save(folder: Path, body: dict[str, Any]) -> None:
    """Write the results atomically."""
    write(folder / NAME, OmegaConf.to_yaml(OmegaConf.create(body)))


def save_solutions(folder: Path, evolution: Evolution) -> list[Path]:
    """Write one JSON file per solution: {"params", "values", "feasible"}."""
    paths = []
    for number, genome in enumerate(evolution.best()):
        path = (folder / f"solution-{number}.json").absolute()
        write(path, json.dumps(_solution(evolution, genome), indent=2) + "\n")
        paths.append(path)
    return paths


def _solution(evolution: Evolution, genome: Genome) -> dict[str, Any]:
    evaluation = evolution.evaluations[genome]
    return {
        "params": evolution.space.values(genome),
        "values": evaluation.values,
        "feasible": evolution.objectives.violation(evaluation) == 0,
    }
