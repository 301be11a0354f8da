"""Kept parameters against the bits of knowledge that a task needs.

A language model stores at most about 2 bits per parameter (Allen-Zhu and Li, arXiv:2404.05405).
Almanac's medicine is a list of facts, each one of several candidates, so its knowledge in bits is a
sum of logarithms. Three models of the embedded shape learn worlds with one, two and four times the
facts. The embedded model is also asked for a part of its facts only.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import figures
from experiments.jobs import Job, run_here
from sieve.tasks.almanac import ROWS, Fact, WorldSize, almanac_rows, build_world, knowledge_bits

if TYPE_CHECKING:
    from experiments.embedded_model import Settings

CLAIM = "facts"
STEPS = {"1": 200, "2": 340, "4": 600}  # training steps by size of the world
PARTS = (".25", ".5", "1")
BITS = 2.0  # bits per parameter, arXiv:2404.05405
HERE = f"experiments.claims.{CLAIM}"


def jobs() -> list[Job]:
    """Three models to train and prune, and three parts of the embedded model's facts."""
    taught = [
        Job(CLAIM, (("how", "taught"), ("scale", s)), "call", f"{HERE}:taught") for s in STEPS
    ]
    return [
        *taught,
        *(Job(CLAIM, (("how", "asked"), ("part", p)), "call", f"{HERE}:asked") for p in PARTS),
    ]


def taught(out: Path, how: str, scale: str) -> dict[str, Any]:
    """Train a model of the embedded shape on the medicine of a world, and prune it."""
    from experiments.embedded_model import train

    settings = training(scale)
    model = out / CLAIM / f"model-{scale}"
    trained = train(settings, model, out / CLAIM / f"model-{scale}.json")
    result = run_here(
        CLAIM,
        out,
        out / CLAIM / f"run-{scale}",
        [f"model.path={model.absolute()}", f"++task.almanac.scale={scale}"],
    )
    world = build_world(0, WorldSize().scaled(float(scale)))
    known = {"facts": len(world.facts["medicine"]), "bits": knowledge_bits("medicine", world)}
    return known | {"minutes": trained["training_minutes"], "result": result}


def training(scale: str) -> "Settings":
    """The training settings: the embedded shape, with a vocabulary for the largest world."""
    from experiments.embedded_model import Settings

    shares = {"medicine": 1.0, "geography": 0.0, "reviews": 0.0, "reading": 0.0}
    return Settings(
        steps=STEPS[scale],
        scale=float(scale),
        shares=shares,
        vocabulary=4096,
        eval_rows=8,
        eval_steps=10_000,
        final_rows=64,
        warmup_steps=60,
    )


def asked(out: Path, how: str, part: str) -> dict[str, Any]:
    """Prune the embedded model for a part of its facts."""
    facts = [f for f in build_world().facts["medicine"] if _draw(f) < float(part)]
    wanted = {f"{fact.relation}:{fact.subject}" for fact in facts}
    folder = out / CLAIM / f"rows-{part}"
    folder.mkdir(parents=True, exist_ok=True)
    for split, role in (("train", "calibration"), ("validation", "selection"), ("test", "test")):
        rows = almanac_rows("medicine", split=role, n_rows=ROWS[role])
        lines = [json.dumps(row) for row in rows if row["fact"] in wanted]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    result = run_here(
        CLAIM,
        out,
        out / CLAIM / f"run-of-{part}",
        ["task.almanac=null", f"task.data_dir={folder.absolute()}"],
    )
    bits = sum(math.log2(len(fact.candidates)) for fact in facts)
    return {"facts": len(facts), "bits": bits, "result": result}


def _draw(fact: Fact) -> float:
    """A hash of a fact, from 0 to 1."""
    digest = hashlib.sha256(f"{fact.relation}:{fact.subject}".encode()).digest()
    return int.from_bytes(digest[:4]) / 2**32


def summarize(results: Mapping[str, Any]) -> dict[str, Any]:
    """By model: facts, bits, kept parameters, bits per kept parameter, and times the floor."""
    found: dict[str, Any] = {}
    for name, record in results.items():
        how, which = name.removeprefix(f"{CLAIM}/").split("-")
        result, bits = record["result"], record["bits"]
        size, kept = result["parameters"]["prunable_dense"], figures.kept(result)
        found.setdefault(how, {})[which] = {
            "facts": record["facts"],
            "bits": round(bits, 1),
            "dense": figures.share(result["baseline"]["accuracy"], result["examples"]),
            "drop": figures.drop(result["drop"]),
            "kept": kept,  # of prunable parameters; dense embeddings may also store facts
            "parameters": {end: round(value * size) for end, value in kept.items()},
            "bits_per_parameter": figures.number(
                *(bits / (kept[end] * size) for end in ("value", "high", "low")), digits=5
            ),
            "times_floor": figures.number(
                *(kept[end] * size * BITS / bits for end in ("value", "low", "high")), digits=1
            ),
            "model_parameters": result["parameters"]["model_kept"],
            "times_floor_of_model": round(result["parameters"]["model_kept"] * BITS / bits),
        }
    return (
        {"bits_per_parameter": BITS}
        | found
        | {"growth": {how: growth(list(es.values())) for how, es in found.items() if len(es) > 1}}
    )


def growth(entries: list[dict[str, Any]]) -> dict[str, float]:
    """The exponent of kept parameters against bits: 1 if proportional, 0 if constant."""
    bits = np.log([entry["bits"] for entry in entries])
    middle = bits - bits.mean()
    weights = middle / (middle**2).sum()
    sizes = [np.log([entry["kept"][end] for entry in entries]) for end in ("value", "low", "high")]
    half = [float(np.sqrt(((weights * (ends - sizes[0])) ** 2).sum())) for ends in sizes[1:]]
    value = float(weights @ sizes[0])
    return figures.number(value, value - half[0], value + half[1], digits=2)


def tables(summary: Mapping[str, Any]) -> dict[str, str]:
    """A row per model, and how kept parameters grow with the bits."""
    labels = {"taught": "taught {} times the facts", "asked": "embedded, asked for {} of them"}
    rows = [
        [
            label.format(which),
            str(entry["facts"]),
            f"{entry['bits']:.0f}",
            f"{100 * entry['dense']['value']:.1f}",
            f"{100 * entry['drop']['value']:.1f}",
            f"{entry['parameters']['value']:,}",
            f"{entry['bits_per_parameter']['value']:.4f}",
            f"{entry['times_floor']['value']:.0f}",
            f"{entry['model_parameters']:,}",
            f"{entry['times_floor_of_model']:,}",
        ]
        for how, label in labels.items()
        for which, entry in summary.get(how, {}).items()
    ]
    head = ["model", "facts", "bits", "dense, %", "drop, points", "kept of prunable"]
    head += ["bits per kept parameter", "times the floor", "all parameters", "times the floor"]
    table = figures.markdown(head, rows)
    return {CLAIM: "\n".join([table, *_reading(summary.get("growth", {}))])}


def _reading(growths: Mapping[str, Mapping[str, float]]) -> list[str]:
    """One sentence per exponent."""
    models = {"taught": "Of models taught more facts", "asked": "Of one model asked for more facts"}
    said = [
        f"{models[how]}, kept parameters grow as the power {g['value']:.2f} of the bits "
        f"({g['low']:.2f} to {g['high']:.2f})."
        for how, g in growths.items()
    ]
    end = "Where they were knowledge alone, the power would be 1."
    return ["", " ".join([*said, end])] if said else []
