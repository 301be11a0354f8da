"""A figure that two claims or two pages show has one value."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments import numbers
from experiments.claims import adaptive
from experiments.pages import RESULTS

ROOT = Path(__file__).resolve().parents[2]
Results = dict[str, Any]
Pair = tuple[str, Any, Any]


@pytest.fixture(scope="module")
def results() -> Results:
    return {path.stem: json.loads(path.read_text()) for path in RESULTS.glob("*.json")}


def shared_figures(results: Results) -> Iterator[Pair]:
    """Where it stands twice, the figure of the claim `kept` and that of another claim."""
    at = results["kept"]["at"]
    for task, searches in results["adaptive"]["searches"].items():
        subject, tolerance = task.split(", ε = ")
        for method in adaptive.LINES.keys() & searches.keys():
            yield (
                f"adaptive {task} {method}",
                at[f"0{tolerance}"][method][subject],
                searches[method],
            )
    sieve = at["0.02"]["sieve"]
    for subject, sources in results["calibration"]["tasks"].items():
        yield f"calibration {subject}", sieve[subject], sources["own"]
    for matrix in (entry["matrix"] for entry in results["transfer"].values()):
        for task, row in matrix.items():
            subject = task.removeprefix("almanac_")
            if subject in sieve:
                own = {"kept": row["kept"], "drop": row["on"][task]["drop"]}
                yield f"transfer {task}", sieve[subject], own
    for task, rivals in results["rivals"]["tasks"].items():
        methods = results["real"]["tasks"].get(task, {"methods": {}})["methods"]
        for rival, part in (("tuned", "dense"), ("sieve", "pruned")):
            if rival in rivals and "sieve" in methods:
                own = {"drop": {"value": methods["sieve"][part]}}
                yield f"rivals {task} {rival}", own, {"drop": rivals[rival]["accuracy"]}


def disagreements(results: Results) -> list[str]:
    """One line for each figure with two values."""
    found = []
    for name, one, other in shared_figures(results):
        for key in one.keys() & other.keys() & {"kept", "drop"}:
            first, second = one[key]["value"], other[key]["value"]
            if abs(first - second) > 2e-4:
                found.append(f"{name}, {key}: {first:g} and {second:g}")
    return found


def test_claims_that_share_runs_show_the_same_figures(results: Results) -> None:
    names = {name.split()[0] for name, *_ in shared_figures(results)}
    assert {"adaptive", "calibration", "transfer", "rivals"} <= names
    assert disagreements(results) == []


@pytest.mark.parametrize(
    ("path", "claim"),
    [
        ("kept/at/0.02/sieve/trec/kept/value", "calibration trec"),
        ("adaptive/searches/trec, ε = .02/paper/drop/value", "adaptive trec, ε = .02 paper"),
    ],
)
def test_a_figure_that_differs_is_found(results: Results, path: str, claim: str) -> None:
    changed = copy.deepcopy(results)
    *parents, last = path.split("/")
    place = changed
    for part in parents:
        place = place[part]
    place[last] += 0.001
    assert any(line.startswith(claim) for line in disagreements(changed))


@pytest.mark.parametrize("page", sorted(json.loads(numbers.SOURCES.read_text())))
def test_a_page_shows_the_figures_of_their_sources(page: str) -> None:
    assert list(numbers.differing(page)) == []
