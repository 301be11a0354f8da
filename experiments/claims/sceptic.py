"""How good are word counts, and a fresh model as small as the pruned one?

The baselines are a TF-IDF logistic regression on the calibration rows (those that Sieve saw, and
all), and a Llama with as many parameters as the pruned model, trained from scratch on the same rows
and the dense model's answers.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments import figures
from experiments.claims import kept
from experiments.jobs import Job

CLAIM = "sceptic"
HERE = f"experiments.claims.{CLAIM}"
BASELINES = {
    "words": "TF-IDF, the same rows",
    "all_words": "TF-IDF, all rows",
    "fresh": "fresh model, the same rows",
}


def jobs() -> list[Job]:
    """Both baselines on every task of `kept`, after the run they are compared with."""
    ours = [
        job
        for job in kept.jobs()
        if dict(job.settings)["method"] == kept.OURS and dict(job.settings)["tolerance"] == ".02"
    ]
    return [
        *ours,
        *(
            Job(
                CLAIM,
                (("subject", subject),),
                "call",
                f"{HERE}:measure",
                rows_of=f"kept/{subject}-{kept.OURS}-.02",
            )
            for subject in kept.SUBJECTS
        ),
    ]


def measure(out: Path, subject: str) -> dict[str, Any]:
    """Accuracies on the test rows of `kept`."""
    from experiments.baselines import distilled, materials, words

    given = materials(out, subject)
    ours = Job("kept", (("subject", subject), ("method", kept.OURS), ("tolerance", ".02")))
    result = ours.result(out)
    assert result is not None
    every = given.task.splits["calibration"]
    return {
        "rows": {"same": len(given.seen), "all": len(every), "test": len(given.test)},
        "words": words(given.seen, given.test),
        "all_words": words(every, given.test),
        "fresh": distilled(given, result["parameters"]["model_kept"])[1],
    }


def summarize(results: Mapping[str, Any]) -> dict[str, Any]:
    """By task: dense, sieved, and the baselines; whether one is as good as the sieved model."""
    found: dict[str, Any] = {}
    for name, record in results.items():
        if not name.startswith(f"{CLAIM}/"):
            continue
        subject = name.removeprefix(f"{CLAIM}/")
        ours = results[f"kept/{subject}-{kept.OURS}-.02"]
        rows = record["rows"]["test"]
        sieved = ours["pruned"]["accuracy"]
        entry = {
            "dense": figures.share(ours["baseline"]["accuracy"], rows),
            "sieved": figures.share(sieved, rows),
            "rows": record["rows"],
            "words": figures.share(record["words"], rows),
            "all_words": figures.share(record["all_words"], rows),
            "fresh": figures.share(record["fresh"]["accuracy"], rows),
            "parameters": {
                "sieved": ours["parameters"]["model_kept"],
                "fresh": record["fresh"]["parameters"],
            },
        }
        entry["matched_by"] = [
            name for name in BASELINES if entry[name]["value"] >= sieved - ours["tolerance"]
        ]
        found[subject] = entry
    return found


def tables(summary: Mapping[str, Any]) -> dict[str, str]:
    """A row per task."""
    rows = []
    for subject, entry in summary.items():
        shares = [f"{100 * entry[key]['value']:.1f}" for key in ("dense", "sieved", *BASELINES)]
        matched = ", ".join(BASELINES[name] for name in entry["matched_by"]) or "none"
        seen, sizes = entry["rows"], entry["parameters"]
        counts = f"{seen['same']:,}, {seen['all']:,}", f"{sizes['sieved']:,}, {sizes['fresh']:,}"
        rows.append([subject, counts[0], *shares, counts[1], matched])
    head = ["task", "rows: same, all", "dense", "sieved", *BASELINES.values()]
    head += ["parameters: sieved, fresh", "as good as the sieved one"]
    return {CLAIM: figures.markdown(head, rows)}
