"""The paper's claims on a real language model, beside those on the small ones, and both sizes.

Verdicts are rules on committed figures, as in `verdicts.py`.
"""

from collections.abc import Mapping
from typing import Any

from experiments.verdicts import LATER, NO, OPEN, PART, YES

Summaries = Mapping[str, Any]
SMALL = {"reader-6m": "reader-6m (6.5 million)", "smollm2": "SmolLM2 (135 million), tuned first"}
QUARTER_GONE, MOST_LOST = ".75", 0.05  # a size of the curve, and the most that the paper gives up
METHODS = {"paper": "the paper's objective, uniform", "sieve": "loss-aware, water-filled"}


def real_verdicts(summaries: Summaries) -> str:
    """One row per claim that the runs of `real` can judge, in Markdown."""
    tasks = summaries["real"]["tasks"]
    lines = ["| claim of the paper | measured on SmolLM2 | verdict |", "|---|---|---|"]
    for claim, needs, rule in ROWS:
        known = {name: e for name, e in tasks.items() if judgeable(e, needs)}
        if not known:
            continue
        measured, verdict = rule(known)
        lines.append(f"| {claim} | {measured} | {verdict} |")
    return "\n".join(lines)


def judgeable(entry: Mapping[str, Any], needs: set[str]) -> bool:
    """Whether a task has accuracies of all methods that a rule compares."""
    cells = [entry["methods"].get(method) for method in needs]
    return entry["metric"] == "accuracy" and all(
        cell and QUARTER_GONE in cell["curve"] for cell in cells
    )


def removed(tasks: Summaries) -> tuple[str, str]:
    """20 to 75 % removed by the paper's method, one level for all matrices, for 1 to 5 points."""
    cells = {name: e["methods"]["paper"] for name, e in tasks.items()}
    lost = {n: c["dense"] - c["curve"][QUARTER_GONE]["value"] for n, c in cells.items()}
    certified = ", ".join(f"{n} {100 * (1 - c['kept']['value']):.0f} %" for n, c in cells.items())
    points = ", ".join(f"{name} {100 * share:.1f}" for name, share in lost.items())
    text = (
        f"by the paper's method (uniform) a quarter of the parameters costs points: {points}; "
        f"within the tolerance, certified, go: {certified}"
    )
    good = [share <= MOST_LOST for share in lost.values()]
    return text, YES if all(good) else PART if any(good) else NO


def levels(tasks: Summaries) -> tuple[str, str]:
    """A level per matrix keeps less than one level for all, on the same bank."""
    text, verdict = smaller(tasks, "sieve", "loss_aware")
    return f"kept in closed form, and with one level for all: {text}", verdict


def trained(tasks: Summaries) -> tuple[str, str]:
    """Training makes pruned models smaller still."""
    text, verdict = smaller(tasks, "trained", "sieve")
    return f"kept with training, and without: {text}", verdict


def smaller(tasks: Summaries, method: str, other: str) -> tuple[str, str]:
    """What two methods keep, and whether the first keeps less on every task."""
    pairs = {
        name: tuple(e["methods"][m]["kept"]["value"] for m in (method, other))
        for name, e in tasks.items()
    }
    text = ", ".join(
        f"{n} {100 * own:.0f} and {100 * rest:.0f} %" for n, (own, rest) in pairs.items()
    )
    less = [own < rest for own, rest in pairs.values()]
    return text, YES if all(less) else PART if any(less) else NO


def quantized(tasks: Summaries) -> tuple[str, str]:
    """8 bits on top of pruning, of the bytes of the matrices and on the same genome."""
    cells = {name: e["methods"]["int8"] for name, e in tasks.items()}
    costs = [cell["eight_bits"]["cost"] for cell in cells.values()]
    saved = [1 - 2 * (1 - cell["eight_bits"]["saved"]) for cell in cells.values()]  # was of 32 bits
    text = "share of the bytes in 16 bits that is saved, and points lost by 8 bits: "
    text += ", ".join(
        f"{name} {100 * share:.0f} % and {100 * cost:.1f}"
        for name, share, cost in zip(cells, saved, costs, strict=True)
    )
    cheap, small = [cost <= 0.02 for cost in costs], [share >= 0.85 for share in saved]
    within = [cell["within"] for cell in cells.values()]
    return text, YES if all(cheap + small + within) else PART if all(cheap + small) else NO


def hours(tasks: Summaries) -> tuple[str, str]:
    """1 to 36 GPU hours."""
    parts = []
    for method, label in {"sieve": "the closed form", "genetic": "the genetic search"}.items():
        found = [e["methods"].get(method, {}).get("minutes") for e in tasks.values()]
        if spent := [minutes["value"] for minutes in found if minutes]:
            ends = dict.fromkeys(f"{end:.0f}" for end in (min(spent), max(spent)))
            parts.append(f"{label} takes {' to '.join(ends)} minutes of one processor core")
    return (
        f"{', '.join(parts) or LATER}; `dry_run=true` says what the paper's models would take",
        OPEN,
    )


def sizes(summaries: Summaries) -> str:
    """Kept fraction and kept parameters of one task on two models, in Markdown."""
    small, real = summaries["kept"]["at"]["0.02"], summaries["real"]["tasks"]
    lines = [
        "| task | method | " + " | ".join(f"{model}: kept, %" for model in SMALL.values()) + " |",
        "|---|---|---|---|",
    ]
    for task in real:
        for method, label in METHODS.items():
            own = real[task]["methods"].get(method)
            if own and task in small[method]:
                cells = (small[method][task], own)
                shown = " | ".join(f"{100 * cell['kept']['value']:.1f}" for cell in cells)
                lines.append(f"| {task} | {label} | {shown} |")
    return "\n".join(lines)


ROWS = (  # claim, the methods that its rule compares, rule
    ("20 to 75 % of the parameters go for 1 to 5 % of accuracy", {"paper"}, removed),
    ("a level per matrix keeps less than one level for all", {"sieve", "loss_aware"}, levels),
    ("the pruned model still takes fine-tuning", {"sieve", "trained"}, trained),
    ("pruning and 8 bits together save about 90 % of memory", {"int8"}, quantized),
    ("1 to 36 GPU hours", {"sieve"}, hours),
)
