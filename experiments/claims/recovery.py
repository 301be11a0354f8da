"""Prune beyond the tolerance, then apply LoRA, 8-bit quantization, or both."""

from collections.abc import Mapping
from typing import Any

from experiments import figures
from experiments.jobs import Job, swept

CLAIM = "recovery"
FORMS = {
    "none-none": "pruned",
    "none-int8": "pruned, 8 bits",
    "lora-none": "pruned, LoRA",
    "lora-int8": "pruned, LoRA, 8 bits",
}


def jobs() -> list[Job]:
    """All four variants of two tasks; the variants of a task share moments and bank."""
    return swept(CLAIM)


def summarize(results: Mapping[str, Any]) -> dict[str, Any]:
    """By task and form: size, bytes against the dense model, accuracy and drop on test rows."""
    found: dict[str, Any] = {}
    for name, result in results.items():
        subject, form = name.removeprefix(f"{CLAIM}/").split("-", 1)
        stored = result["bytes"]
        entry = found.setdefault(
            subject,
            {
                "dense": figures.share(result["baseline"]["accuracy"], result["examples"]),
                "forms": {},
            },
        )
        entry["forms"][form] = {
            "kept": figures.kept(result),
            "bytes": round(stored["pruned"] / stored["dense"], 4),
            "prunable_bytes": round(prunable_bytes(result), 4),
            "drop": figures.drop(result["drop"]),
            "steps": (result["recovery"] or {"history": [{"step": 0}]})["history"][-1]["step"],
        }
    for entry in found.values():
        forms = entry["forms"]
        if {"none-none", "lora-none"} <= forms.keys():
            before, after = (forms[f]["drop"]["value"] for f in ("none-none", "lora-none"))
            entry["came_back"] = round(1 - after / before, 3) if before > 0 else None
    return {"tasks": found}


def prunable_bytes(result: Mapping[str, Any]) -> float:
    """Bytes of the pruned matrices against those of the dense ones, both in float16 or 8 bits."""
    parts, stored = result["parameters"], result["bytes"]
    width = stored["dense"] / parts["model_dense"]
    rest = (parts["model_dense"] - parts["prunable_dense"]) * width
    return (stored["pruned"] - rest) / (parts["prunable_dense"] * width)


def tables(summary: Mapping[str, Any]) -> dict[str, str]:
    """A row per task and form."""
    rows = []
    for subject, entry in summary["tasks"].items():
        for form, label in FORMS.items():
            if found := entry["forms"].get(form):
                shares = (found["kept"]["value"], found["prunable_bytes"], found["bytes"])
                cells = [f"{100 * share:.1f}" for share in shares]
                rows.append([subject, label, *cells, figures.spread(found["drop"], times=100)])
    head = ["task", "form", "kept, %", "bytes of the matrices, %", "bytes of the model, %"]
    return {CLAIM: figures.markdown([*head, "drop on test, points"], rows)}
