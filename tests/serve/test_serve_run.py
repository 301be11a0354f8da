"""The export of a run answers over HTTP with the accuracy that the run reported."""

import json
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from runs import finished, make_world

from sieve.serve.app import make_app
from sieve.serve.body import Limits
from sieve.serve.engine import Engine


@pytest.mark.slow
def test_a_served_export_has_the_accuracy_that_the_run_reported(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    result = finished(world, "run", "tolerance=0.9", "speed.enabled=false")
    lines = (world / "data" / "test.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    engine = Engine(world / "run" / "export")
    with TestClient(make_app(engine, Limits())) as client:
        asked = [{"text": row["text"]} for row in rows]
        answers = client.post("/predict", json={"rows": asked}).json()["answers"]
    right = [answer["label"] == row["label"] for answer, row in zip(answers, rows, strict=True)]
    assert sum(right) / len(right) == pytest.approx(result["pruned"]["accuracy"], abs=1e-9)
