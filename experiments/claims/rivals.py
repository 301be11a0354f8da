"""What a user of a language model would pick instead, on the rows of the claim `real`.

    SIEVE_SMOLLM2=my_model python -m experiments.reproduce real rivals --workers 1

Static embeddings with published weights (model2vec) are not among them: their weights come from
the Hub alone. The mean of the model's own token embeddings stands in their place. GGUF forms of
fewer than four bits need rows of 256 weights, which this model's width of 576 does not have.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments import figures
from experiments.claims import real
from experiments.jobs import Job, composed

CLAIM = "rivals"
TASKS = real.TUNED
RIVALS = {
    "majority": "majority",
    "words": "TF-IDF, logistic regression",
    "static": "mean token embedding, logistic regression",
    "probe": "half of the blocks, logistic regression",
    "fresh": "fresh small model, distilled",
    "untuned": "dense model as it comes",
    "tuned": "dense model, tuned",
    "int8": "tuned, 8 bits",
    "q8_0": "tuned, GGUF Q8_0",
    "q5_1": "tuned, GGUF Q5_1",
    "q4_1": "tuned, GGUF Q4_1",
    "blocks": "tuned, blocks dropped",
    "sieve": "**tuned, sieved**, closed form",
    "trained": "**tuned, sieved and trained**",
}
OURS = ("sieve", "trained")
PLAIN = ("majority", "words", "static", "probe", "untuned")  # need no tuned model


def jobs() -> list[Job]:
    """All rivals of all tasks, after the runs of `real` whose exports are timed."""
    ours = [job for job in real.jobs() if job.name.removeprefix(f"{real.MODEL}_") in _needed()]
    return [
        *ours,
        *(
            Job(
                CLAIM,
                (("subject", f"{real.MODEL}_{task}"), ("rival", rival)),
                "call",
                f"{__name__}:measure",
            )
            for task in TASKS
            for rival in RIVALS
        ),
    ]


def _needed() -> set[str]:
    return {f"{task}-{step}" for task in TASKS for step in ("tune", *OURS)}


def measure(out: Path, subject: str, rival: str) -> dict[str, Any]:
    """Make a rival, then score and time it on the test rows."""
    from experiments.rivals import record
    from sieve import stages

    adapter = ["model.adapter=null"] if rival in PLAIN else []
    config = composed([f"+experiment={real.CLAIM}", f"subject={subject}", *adapter], out)
    with stages.opened(config, out / CLAIM) as run:
        start = time.process_time()
        made = _make(run, out, subject, rival)
        return record(made, run.task.splits["test"], time.process_time() - start)


def _make(run: Any, out: Path, subject: str, rival: str) -> Any:
    from gguf.constants import GGMLQuantizationType as Form

    from experiments import rivals as makers
    from sieve.exports.loading import load

    if rival in OURS:
        model, _ = load(out / real.CLAIM / f"{subject}-{rival}" / "export")
        return makers.sieved(run, model)
    if rival in ("q4_1", "q5_1", "q8_0"):
        return makers.gguf_form(run, Form[rival.upper()])
    functions = {
        "untuned": makers.dense,
        "tuned": makers.dense,
        "int8": makers.eight_bits,
        "blocks": makers.fewer_blocks,
    }
    return (functions.get(rival) or getattr(makers, rival))(run)


def summarize(results: Mapping[str, Any]) -> dict[str, Any]:
    """By task and rival: accuracy, bytes, milliseconds a row, labelled rows and minutes."""
    tasks: dict[str, Any] = {}
    for name, result in results.items():
        if not name.startswith(f"{CLAIM}/"):
            continue
        subject, rival = name.removeprefix(f"{CLAIM}/{real.MODEL}_").split("-")
        minutes = figures.timed(result["minutes"])
        if rival in OURS:
            ours = results[f"{real.CLAIM}/{real.MODEL}_{subject}-{rival}"]
            minutes = real.minutes(ours, results, subject)
        tasks.setdefault(subject, {})[rival] = {
            "accuracy": figures.share(result["accuracy"], result["rows"]),
            "bytes": result["bytes"],
            "ms": {size: figures.timed(ms) for size, ms in result["ms"].items()},
            "labels": result["labels"],
            "minutes": minutes,
            "note": result["note"],
        }
    return {"model": real.MODEL, "tasks": tasks}


def tables(summary: Mapping[str, Any]) -> dict[str, str]:
    """A table of accuracies with intervals, and one of costs."""
    tasks = summary["tasks"]

    def table(cell: Any) -> str:
        rows = (
            [label, *(cell(task.get(rival)) for task in tasks.values())]
            for rival, label in RIVALS.items()
        )
        return figures.markdown(["", *tasks], [row for row in rows if any(row[1:])])

    return {CLAIM: table(accuracy_cell), f"{CLAIM}-cost": table(cost_cell)}


def accuracy_cell(found: Mapping[str, Any] | None) -> str:
    """Accuracy in percent with its interval."""
    if not found:
        return ""
    share = found["accuracy"]
    ends = f"{100 * share['low']:.1f} to {100 * share['high']:.1f}"
    note = f"; {found['note']}" if found["note"] else ""
    return f"{100 * share['value']:.1f} ({ends}{note})"


def cost_cell(found: Mapping[str, Any] | None) -> str:
    """Megabytes; milliseconds a row at 1 and 32 rows; labelled rows; minutes to make."""
    if not found:
        return ""
    ms = " / ".join(f"{found['ms'][size]['value']:.1f}" for size in found["ms"]) or "–"
    megabytes = found["bytes"] / 1e6
    minutes = f"{found['minutes']['value']:.1f}" if found["minutes"] else "–"
    return f"{megabytes:.1f} MB; {ms} ms; {found['labels']:,}; {minutes} min"
