"""The paper's claims, our measurements on small models, and a verdict for each.

A verdict is computed from the committed figures.
"""

from collections.abc import Callable, Mapping
from typing import Any

Summaries = Mapping[str, Any]
YES, PART, NO = "**holds**", "**holds in part**", "**does not hold**"
OPEN, LATER = "**cannot be tested here**", "not measured"
STEEP = 3  # ratio between the sizes at the edge and in the middle of the cliff
PAPER = "paper"  # the paper's objective at the optimum, with one level for all matrices


def verdicts(summaries: Summaries) -> str:
    """One row per claim, in Markdown."""
    lines = ["| claim of the paper | measured | verdict |", "|---|---|---|"]
    for claim, needs, rule in ROWS:
        measured, verdict = ("", LATER)
        if all(name in summaries for name in needs):
            measured, verdict = rule(summaries)
        lines.append(f"| {claim} | {measured} | {verdict} |")
    return "\n".join(lines)


def removed(summaries: Summaries) -> tuple[str, str]:
    """20 to 75 % removed for 1 to 5 % of accuracy."""
    at = summaries["kept"]["at"]
    told, enough, within, count = [], [], 0, 0
    for tolerance in ("0.01", "0.05"):
        cells = at[tolerance][PAPER].values()
        gone = [1 - cell["kept"]["value"] for cell in cells]
        within += sum(cell["within"] for cell in cells)
        count += len(gone)
        enough += [share >= 0.2 for share in gone]
        told.append(f"{_percent(min(gone))} to {_percent(max(gone))} % at ε = {tolerance[1:]}")
    text = (
        f"by the paper's method (uniform) {' and '.join(told)} go; on test rows {within} of "
        f"{count} are within ε"
    )
    good = all(enough)
    return text, YES if good and within == count else PART if any(enough) else NO


def cliff(summaries: Summaries) -> tuple[str, str]:
    """Flat until 25 to 60 % is gone, then a cliff."""
    subjects = summaries["curve"]["subjects"]
    edges = [1 - s["methods"][PAPER]["edge"]["value"] for s in subjects.values()]
    halves = [1 - s["methods"][PAPER]["half"]["value"] for s in subjects.values()]
    text = (
        f"within two points until {_percent(min(edges))} to {_percent(max(edges))} % are gone; "
        f"half of the accuracy above chance is gone at {_percent(min(halves))} to "
        f"{_percent(max(halves))} %"
    )
    flat = all(edge >= 0.25 for edge in edges)
    steep = all(1 - half >= (1 - edge) / STEEP for edge, half in zip(edges, halves, strict=True))
    if not flat:
        return text, NO
    return text, YES if steep and max(edges) <= 0.6 else PART


def bottlenecks(summaries: Summaries) -> tuple[str, str]:
    """A few matrices hold the knowledge."""
    maps = [seeds["0"] for seeds in summaries["bottlenecks"]["maps"].values()]
    gaps, few = [], []
    for entry in maps:
        without = {side: part["accuracy"] for side, part in entry["without"].items()}
        gaps.append(without["others"]["low"] > without["bottlenecks"]["high"])
        few.append(entry["needy"] / entry["matrices"])
    text = (
        f"{_percent(min(few))} to {_percent(max(few))} % of the matrices need more than 5 % of "
        "themselves; without a quarter of the parameters a model loses far more where those are "
        f"the neediest, on {sum(gaps)} of {len(gaps)} tasks"
    )
    return text, YES if all(gaps) and max(few) <= 0.25 else PART if any(gaps) else NO


def adaptive(summaries: Summaries) -> tuple[str, str]:
    """The genetic search finds smaller models than one level for all."""
    found = summaries["adaptive"]["ratio"]
    uniform, closed = found["loss_aware"], found["sieve"]
    text = (
        f"it keeps {_interval(uniform)} of what one level on the same bank keeps, and "
        f"{_interval(closed)} of what the closed form keeps without evaluating a genome"
    )
    return text, YES if uniform["high"] < 1 else PART if uniform["value"] < 1 else NO


def transfer(summaries: Summaries) -> tuple[str, str]:
    """Sieved on one data set, still good on another of the domain."""
    parts, inside, pairs = [], 0, 0
    for domain, entry in summaries["transfer"].items():
        found, own = entry["summary"]["inside"], entry["summary"]["own"]
        parts.append(
            f"{domain}: {found['within']} of {found['pairs']} pairs within ε (own rows "
            f"{own['within']} of {own['pairs']}), outside "
            f"{entry['summary']['outside']['within']} of {entry['summary']['outside']['pairs']}"
        )
        inside, pairs = inside + found["within"], pairs + found["pairs"]
    share = inside / pairs
    return "; ".join(parts), YES if share > 0.9 else PART if share > 0.3 else NO


def lora(summaries: Summaries) -> tuple[str, str]:
    """LoRA still works on the pruned model."""
    tasks = summaries["recovery"]["tasks"]
    parts, better, surely = [], [], []
    for name, entry in tasks.items():
        before, after = (entry["forms"][form]["drop"] for form in ("none-none", "lora-none"))
        parts.append(f"{name} {_points(before)} → {_points(after)} points lost")
        better.append(after["value"] < before["value"])
        surely.append(after["high"] < before["low"])
    return "; ".join(parts), YES if all(surely) else PART if any(better) else NO


def quantized(summaries: Summaries) -> tuple[str, str]:
    """8 bits on top; some 90 % of the memory saved together."""
    tasks = summaries["recovery"]["tasks"]
    saved, whole, worse, lost = [], [], [], []
    for entry in tasks.values():
        plain, both = (entry["forms"][form] for form in ("lora-none", "lora-int8"))
        saved.append(1 - both["prunable_bytes"])
        whole.append(1 - both["bytes"])
        worse.append(both["drop"]["value"] - plain["drop"]["value"])
        lost.append(both["drop"]["value"])
    text = (
        f"pruning, LoRA and 8 bits together save {_percent(min(saved))} to {_percent(max(saved))} "
        f"% of the bytes of the matrices, {_percent(min(whole))} to {_percent(max(whole))} % of "
        f"the model's (its embeddings stay), at {_percent(min(lost), 1)} to "
        f"{_percent(max(lost), 1)} points lost; 8 bits cost {_percent(max(worse), 1)} of these at "
        "most"
    )
    if max(worse) > 0.02 or min(saved) < 0.8:
        return text, NO
    return text, YES if min(whole) >= 0.85 and max(lost) <= 0.05 else PART


def learned(summaries: Summaries) -> tuple[str, str]:
    """Its projections are learnt by gradient."""
    rows = summaries["kept"]["at"]["0.02"]
    ours, theirs = rows[PAPER]["medicine"]["kept"], rows["learned"]["medicine"]["kept"]
    text = (
        f"on medicine factors learnt at half of the parameters and cut from there need "
        f"{_percent(theirs['value'])} % where the closed form of the same objective needs "
        f"{_percent(ours['value'])} %: it works, and the closed form is as good or better"
    )
    times = theirs["value"] / ours["value"]
    return text, YES if times <= 1.5 else PART if times <= 3 else NO


def cost(summaries: Summaries) -> tuple[str, str]:
    """1 to 36 GPU hours."""
    methods = summaries["cost"]["methods"]
    closed = sum(n["value"] for n in methods["sieve"]["seconds"].values())
    genetic = methods["genetic"]["seconds"]["search"]["value"]
    text = (
        f"models of some millions of parameters on one core: {closed:.0f} seconds by the closed "
        f"form, {genetic / 60:.1f} minutes by the genetic search; `dry_run=true` says what the "
        "paper's models would take"
    )
    return text, OPEN


def large(summaries: Summaries) -> tuple[str, str]:
    """Phi-3-mini, Llama-3.1-8B and 70B."""
    return "configured, composed and costed: `+experiment=paper_llama3_1_8b dry_run=true`", OPEN


def _percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f}"


def _points(found: Mapping[str, float]) -> str:
    return f"{100 * found['value']:.1f}"


def _interval(found: Mapping[str, float]) -> str:
    return f"{found['value']:.2f} ({found['low']:.2f} to {found['high']:.2f})"


Rule = Callable[[Summaries], tuple[str, str]]
ROWS: tuple[tuple[str, tuple[str, ...], Rule], ...] = (
    ("20 to 75 % of the parameters go for 1 to 5 % of accuracy", ("kept",), removed),
    ("accuracy is flat until some 25 to 60 % is gone, then falls off a cliff", ("curve",), cliff),
    ("a few bottleneck matrices hold the knowledge", ("bottlenecks",), bottlenecks),
    (
        "a genetic search, a level per matrix, keeps less than one level for all",
        ("adaptive",),
        adaptive,
    ),
    ("projections learnt by gradient on the task's tokens", ("kept",), learned),
    ("the pruned model still takes LoRA fine-tuning", ("recovery",), lora),
    ("and 8-bit quantization, which together save about 90 % of memory", ("recovery",), quantized),
    ("sieved on one data set, it works on another of the same domain", ("transfer",), transfer),
    ("all of it on Phi-3-mini, Llama-3.1-8B and 70B", (), large),
    ("1 to 36 GPU hours", ("cost",), cost),
)
