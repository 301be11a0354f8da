"""Complete synthetic results for the tests of the report; tests remove or change parts."""

import copy
from typing import Any

KINDS = {
    "q": (256, 256),
    "k": (128, 256),
    "v": (128, 256),
    "o": (256, 256),
    "gate": (704, 256),
    "up": (704, 256),
    "down": (256, 704),
}
LEVELS = (1.0, 0.75, 0.5, 0.35, 0.25, 0.2, 0.1, 0.05)
DATA = {
    "source": "stanfordnlp/sst2 on the Hub",
    "read": {"calibration": 6920, "selection": 872, "test": 1821},
    "split_names": {"calibration": "train", "selection": "validation", "test": "test"},
    "rows": {"calibration": 6853, "selection": 872, "test": 1821},
    "carved": {},
    "duplicates": {"calibration/test": 12, "calibration/calibration": 55, "test/test": 3},
    "truncated": {"text": 41},
    "answers": {
        "calibration": {"positive": 3571, "negative": 3282},
        "selection": {"positive": 444, "negative": 428},
        "test": {"negative": 912, "positive": 909},
    },
}
ACCURACIES = (0.81, 0.811, 0.808, 0.8, 0.781, 0.76, 0.7, 0.56)


def full_result(n_layers: int = 6) -> dict[str, Any]:
    """A result with every key: sst2 on reader-6m, kept at 35 %, within the tolerance."""
    return {
        "sieve_version": "0.1.0",
        "command": "python -m sieve.run +task=sst2 model.path=models/reader-6m seed=0",
        "date": "2026-11-23T23:00:00Z",
        "task": "sst2",
        "domain": "sentiment",
        "model": "reader-6m",
        "seed": 0,
        "tolerance": 0.02,
        "confidence": None,
        "metric": "accuracy",
        "projection": "output",
        "storage": "plain",
        "baseline": {"accuracy": 0.807, "chance": 0.5, "beats_chance": True},
        "pruned": {"accuracy": 0.801},
        "examples": 1821,
        "drop": {"point": 0.006, "low": -0.004, "high": 0.016, "mcnemar_p": 0.31},
        "kept_fraction": {"prunable": 0.35, "model": 0.55},
        "parameters": {
            "prunable_dense": 4350000,
            "prunable_kept": 1522500,
            "model_dense": 6450000,
            "model_kept": 3547500,
        },
        "bytes": {"dense": 12906872, "pruned": 7200000},
        "memory": {"peak_mib": 900.0},
        "speed": {
            "prefill_ratio": 1.2,
            "decode_ratio": 0.95,
            "prefill_dense": 9000.0,
            "prefill_pruned": 10800.0,
            "decode_dense": 200.0,
            "decode_pruned": 190.0,
        },
        "search": {
            "method": "uniform",
            "evaluations": 8,
            "examples": 6376,
            "baseline_accuracy": 0.81,
            "curve": [_point(level, a) for level, a in zip(LEVELS, ACCURACIES, strict=True)],
        },
        "data": copy.deepcopy(DATA),
        "calibration": {"tokens": 200000, "rows": 6853},
        "seconds": {"calibrate": 10.2, "fit": 1.1, "search": 44.0, "evaluate": 20.3, "export": 0.4},
        "cached": {"calibrate": True, "fit": True, "search": False, "evaluate": False},
        "device": "cpu",
        "versions": {"torch": "2.13.0", "transformers": "5.20.0", "python": "3.12.3"},
        "matrices": [
            _matrix(layer, kind, d_out, d_in)
            for layer in range(n_layers)
            for kind, (d_out, d_in) in KINDS.items()
        ],
        "spectrum": {kind: _spectrum(steepness) for steepness, kind in enumerate(KINDS, start=2)},
    }


def _point(level: float, accuracy: float) -> dict[str, Any]:
    return {
        "level": level,
        "kept_fraction": level,
        "accuracy": accuracy,
        "margin": accuracy - 0.79,
        "examples_used": 872 if level > 0.06 else 272,
        "whole": level > 0.06,
        "feasible": accuracy >= 0.79,
        "chosen": level == 0.35,
    }


def _matrix(layer: int, kind: str, d_out: int, d_in: int) -> dict[str, Any]:
    block = "mlp" if kind in ("gate", "up", "down") else "self_attn"
    return {
        "name": f"model.layers.{layer}.{block}.{kind}_proj",
        "kind": kind,
        "layer": layer,
        "d_out": d_out,
        "d_in": d_in,
        "level": 0.35,
        "rank": 44,
        "kept_fraction": 0.344,
    }


def _spectrum(steepness: int) -> dict[str, list[float]]:
    ranks = [step / 32 for step in range(33)]
    return {"rank_fraction": ranks, "energy_left": [(1 - r) ** steepness for r in ranks]}


def genetic_result(n_layers: int = 6) -> dict[str, Any]:
    """The same from a genetic search: seven genomes, two of them dropped early, and unseen rows."""
    result = full_result(n_layers)
    names = [matrix["name"] for matrix in result["matrices"]]
    result["search"] = {
        "method": "genetic",
        "evaluations": 7,
        "examples": 2000,
        "baseline_accuracy": 0.81,
        "confirmation": {
            "rows": 348,
            "baseline_accuracy": 0.812,
            "kept_before": 0.2,
            "kept": 0.35,
            "examples": 1044,
            "tried": [
                _candidate(0.2, -0.004, False),
                _candidate(0.35, 0.006, True),
            ],
        },
        "generations": [_generation(1, None, 3, 0), _generation(2, 0.2, 2, 1)],
        "kept_high": dict.fromkeys(names, 0.3) | {names[0]: 0.9},
        "bottlenecks": [_alone(name, 0.7 if name == names[6] else 0.1) for name in names],
        "curve": [
            _genome(1.0, 0.81, 0.0),
            _genome(0.5, 0.8, 0.02),
            _genome(0.35, 0.805, 0.01, chosen=True),
            _genome(0.2, 0.79, 0.05),
            _genome(0.1, 0.6, 0.9),
            # At most, and at least: with these numbers they would lead either front.
            _genome(0.3, 0.81, 0.001, whole=False),
            _genome(0.05, 0.8, 0.002, whole=False),
        ],
    }
    return result


def _genome(
    kept: float, accuracy: float, divergence: float, whole: bool = True, chosen: bool = False
) -> dict[str, Any]:
    return {
        "kept_fraction": kept,
        "accuracy": accuracy,
        "margin": accuracy - 0.79,
        "examples_used": 524 if whole else 65,
        "loss": 0.5,
        "divergence": divergence,
        "whole": whole,
        "feasible": whole and accuracy >= 0.79,
        "chosen": chosen,
    }


def _candidate(kept: float, margin: float, feasible: bool) -> dict[str, Any]:
    point = _genome(kept, 0.792 + margin, 0.02)
    return point | {"margin": margin, "feasible": feasible}


def _generation(number: int, best: float | None, evaluated: int, memo: int) -> dict[str, Any]:
    return {
        "generation": number,
        "best": best,
        "median": 0.4,
        "low": 0.3,
        "high": 0.6,
        "feasible": 2,
        "evaluated": evaluated,
        "memo": memo,
        "seconds": 12.5,
    }


def _alone(name: str, kept: float) -> dict[str, Any]:
    return {"name": name, "level": kept, "kept_fraction": kept, "evaluations": 3}
