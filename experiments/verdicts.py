"""The paper's claims, our measurements on small models, and a verdict for each.

A verdict is computed from the committed figures.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.figures import markdown, spread

Summaries = Mapping[str, Any]
YES, PART, NO = "**holds**", "**holds in part**", "**does not hold**"
OPEN, LATER = "**cannot be tested here**", "not measured"
STEEP = 3  # ratio between the sizes at the edge and in the middle of the cliff
PAPER = "paper"  # the paper's objective at the optimum, with one level for all matrices


def verdicts(summaries: Summaries) -> str:
    """One row per claim, in Markdown."""
    rows = []
    for claim, needs, rule in ROWS:
        measured, verdict = ("", LATER)
        if all(name in summaries for name in needs):
            measured, verdict = rule(summaries)
        rows.append([claim, measured, verdict])
    return markdown(["claim of the paper", "measured", "verdict"], rows)


def removed(summaries: Summaries) -> tuple[str, str]:
    """20 to 75 % removed for 1 to 5 % of accuracy."""
    cells = {
        tolerance: list(summaries["kept"]["at"][tolerance][PAPER].values())
        for tolerance in ("0.01", "0.05")
    }
    gone = {t: [1 - cell["kept"]["value"] for cell in found] for t, found in cells.items()}
    within = [cell["within"] for found in cells.values() for cell in found]
    enough = [share >= 0.2 for shares in gone.values() for share in shares]
    told = " and ".join(f"{_span(shares)} % at ε = {t[1:]}" for t, shares in gone.items())
    text = (
        f"by the paper's method (uniform) {told} go; on test rows {sum(within)} of {len(within)} "
        "are within ε"
    )
    return text, YES if all(enough) and all(within) else PART if any(enough) else NO


def cliff(summaries: Summaries) -> tuple[str, str]:
    """Flat until 25 to 60 % is gone, then a cliff."""
    papers = [s["methods"][PAPER] for s in summaries["curve"]["subjects"].values()]
    edges, halves = ([1 - paper[end]["value"] for paper in papers] for end in ("edge", "half"))
    text = (
        f"within two points until {_span(edges)} % are gone; half of the accuracy above chance is "
        f"gone at {_span(halves)} %"
    )
    steep = all(1 - half >= (1 - edge) / STEEP for edge, half in zip(edges, halves, strict=True))
    if min(edges) < 0.25:
        return text, NO
    return text, YES if steep and max(edges) <= 0.6 else PART


def bottlenecks(summaries: Summaries) -> tuple[str, str]:
    """A few matrices hold the knowledge."""
    maps = [seeds["0"] for seeds in summaries["bottlenecks"]["maps"].values()]
    every = [m for seeds in summaries["bottlenecks"]["maps"].values() for m in seeds.values()]
    few = [entry["needy"] / entry["matrices"] for entry in every]
    without = [{k: part["accuracy"] for k, part in entry["without"].items()} for entry in maps]
    gaps = [sides["others"]["low"] > sides["bottlenecks"]["high"] for sides in without]
    text = (
        f"{_span(few)} % of the matrices need more than 5 % of themselves; without a quarter of "
        "the parameters a model loses far more where those are the neediest, on "
        f"{sum(gaps)} of {len(gaps)} tasks"
    )
    return text, YES if all(gaps) and max(few) <= 0.25 else PART if any(gaps) else NO


def adaptive(summaries: Summaries) -> tuple[str, str]:
    """The genetic search finds smaller models than one level for all."""
    found = summaries["adaptive"]["ratio"]
    uniform, closed = found["loss_aware"], found["sieve"]
    text = (
        f"it keeps {spread(uniform, 2)} of what one level on the same bank keeps, and "
        f"{spread(closed, 2)} of what the closed form keeps without evaluating a genome"
    )
    return text, YES if uniform["high"] < 1 else PART if uniform["value"] < 1 else NO


def transfer(summaries: Summaries) -> tuple[str, str]:
    """Sieved on one data set, still good on another of the domain."""
    parts, domains = [], [entry["summary"] for entry in summaries["transfer"].values()]
    for domain, found in zip(summaries["transfer"], domains, strict=True):
        inside, own, outside = (
            f"{found[place]['within']} of {found[place]['pairs']}"
            for place in ("inside", "own", "outside")
        )
        parts.append(f"{domain}: {inside} pairs within ε (own rows {own}), outside {outside}")
    within, pairs = (sum(d["inside"][key] for d in domains) for key in ("within", "pairs"))
    return "; ".join(parts), YES if within > 0.9 * pairs else PART if within > 0.3 * pairs else NO


def lora(summaries: Summaries) -> tuple[str, str]:
    """LoRA still works on the pruned model."""
    tasks = summaries["recovery"]["tasks"]
    drops = [
        [entry["forms"][form]["drop"] for form in ("none-none", "lora-none")]
        for entry in tasks.values()
    ]
    text = "; ".join(
        f"{name} {_percent(before['value'], 1)} → {_percent(after['value'], 1)} points lost"
        for name, (before, after) in zip(tasks, drops, strict=True)
    )
    better = any(after["value"] < before["value"] for before, after in drops)
    surely = all(after["high"] < before["low"] for before, after in drops)
    return text, YES if surely else PART if better else NO


def quantized(summaries: Summaries) -> tuple[str, str]:
    """8 bits on top; some 90 % of the memory saved together."""
    forms = [entry["forms"] for entry in summaries["recovery"]["tasks"].values()]
    pairs = [(form["lora-none"], form["lora-int8"]) for form in forms]
    saved, whole = ([1 - both[k] for _, both in pairs] for k in ("prunable_bytes", "bytes"))
    worse = max(both["drop"]["value"] - plain["drop"]["value"] for plain, both in pairs)
    lost = [both["drop"]["value"] for _, both in pairs]
    text = (
        f"pruning, LoRA and 8 bits together save {_span(saved)} % of the bytes of the matrices, "
        f"{_span(whole)} % of the model's (its embeddings stay), at {_span(lost, 1)} points lost; "
        f"8 bits cost {_percent(worse, 1)} of these at most"
    )
    if worse > 0.02 or min(saved) < 0.8:
        return text, NO
    return text, YES if min(whole) >= 0.85 and max(lost) <= 0.05 else PART


def learned(summaries: Summaries) -> tuple[str, str]:
    """Its projections are learnt by gradient."""
    rows = summaries["kept"]["at"]["0.02"]
    ours, theirs = (rows[m]["medicine"]["kept"]["value"] for m in (PAPER, "learned"))
    text = (
        f"on medicine factors learnt at half of the parameters and cut from there need "
        f"{_percent(theirs)} % where the closed form of the same objective needs "
        f"{_percent(ours)} %: it works, and the closed form is as good or better"
    )
    return text, YES if theirs <= 1.5 * ours else PART if theirs <= 3 * ours else NO


def large(summaries: Summaries) -> tuple[str, str]:
    """Phi-3-mini, Llama-3.1-8B and 70B."""
    return "configured, composed and costed: `+experiment=paper_llama3_1_8b dry_run=true`", OPEN


def _percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f}"


def _span(shares: Sequence[float], digits: int = 0) -> str:
    return " to ".join(dict.fromkeys(_percent(end, digits) for end in (min(shares), max(shares))))


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
)
