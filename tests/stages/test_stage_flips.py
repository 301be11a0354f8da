"""A run writes the test rows that flipped, also when its stages come from the cache."""

import json
from pathlib import Path

import pytest
from runs import finished, make_world

pytestmark = pytest.mark.slow
QUICK = ("speed.enabled=false", "export=none", "projection.refit=false", "tolerance=0.9")


@pytest.mark.slow
def test_every_flipped_row_is_listed_and_the_cache_gives_the_same_file(tmp_path: Path) -> None:
    make_world(tmp_path)
    labels = "task.labels=[no,yes]"
    result = finished(tmp_path, "one", *QUICK, labels, "search=uniform")
    lines = (tmp_path / "one" / "flips.jsonl").read_text()
    flips = [json.loads(line) for line in lines.splitlines()]
    counts, rows = result["flips"], result["examples"]
    assert counts["rows"] == len(flips) == sum(counts[o] for o in ("lost", "won", "changed"))
    drop = (counts["lost"] - counts["won"]) / rows
    assert flips and drop == pytest.approx(result["drop"]["point"])
    tested = [json.loads(line) for line in (tmp_path / "data/test.jsonl").read_text().splitlines()]
    for flip in flips:
        row = tested[flip["row"]]
        assert row["text"] in flip["prompt"] and row["label"] == flip["right"]
        assert (flip["dense"] == flip["right"]) == (flip["dense_score"] == 1)
    assert sum(one["rows"] for one in result["classes"]) == rows
    accuracy = sum(one["rows"] * one["pruned"] for one in result["classes"]) / rows
    assert accuracy == pytest.approx(result["pruned"]["accuracy"])
    again = finished(tmp_path, "two", *QUICK, labels, "search=uniform")
    assert again["cached"]["evaluate"] and again["classes"] == result["classes"]
    assert (tmp_path / "two" / "flips.jsonl").read_text() == lines
    page = (tmp_path / "two" / "report.html").read_text()
    assert tested[flips[0]["row"]]["text"] in page
