"""Single runs of SmolLM2-135M by earlier versions of Sieve, and SVD-LLM's own code beside ours.

They took minutes to hours. Nothing repeats them; the claim `real` measures the present version.
"""

from collections.abc import Mapping
from typing import Any

from experiments.figures import markdown, spread

SVD_LLM = {
    "theirs": "SVD-LLM's code",
    "theirs_after_update": "after its update of U",
    "ours": "Sieve",
}


def tables(summary: Mapping[str, Any]) -> dict[str, str]:
    """A row per run, and a row per size of SVD-LLM's factors."""
    head = ["task", "settings", "kept, %", "of the whole model, %", "dense", "pruned"]
    head += ["drop (95 %)", "drop at most", "TF-IDF", "sizes tried, %"]
    svd = [
        [f"{row['kept']:g}", *(_score(row.get(key)) for key in SVD_LLM)]
        for row in summary["svd_llm"]["perplexity"]
    ]
    return {
        "single-runs": markdown(head, [_row(run) for run in summary["runs"].values()]),
        "svd-llm": markdown(["kept of the blocks", *SVD_LLM.values()], svd),
    }


def _row(run: Mapping[str, Any]) -> list[str]:
    upper, tuned = run["drop_at_most"], ", tuned" if run["tuned_first"] else ""
    return [
        run["task"] + tuned,
        f"`{run['settings']}`",
        f"**{_percent(run['kept'])}**",
        _percent(run["kept_of_model"]),
        _score(run["dense"]),
        _score(run["pruned"]),
        spread(run["drop"], times=100),
        "" if upper is None else _percent(upper),
        _score(run["tfidf"]),
        ", ".join(_tried(*attempt) for attempt in run["tried"]),
    ]


def _tried(kept: float, feasible: bool) -> str:
    """A size, struck out where it was refused."""
    return _percent(kept) if feasible else f"~~{_percent(kept)}~~"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _score(value: float | None) -> str:
    """An accuracy or a perplexity."""
    return "" if value is None else f"{value:.3f}" if value <= 1 else f"{value:.1f}"
