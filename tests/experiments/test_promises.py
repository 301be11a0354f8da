"""Whole runs at a confidence: their rows, and what their table counts."""

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.claims import promises
from experiments.jobs import composed
from sieve.tasks.rows import read_rows


def record(drop: float, rows: int = 20) -> dict[str, Any]:
    return {
        "tolerance": 0.02,
        "kept_fraction": {"prunable": 0.1},
        "drop": {"point": drop, "low": drop - 0.01, "high": drop + 0.01},
        "certificate": {"certified": True, "upper": 0.01, "rows": 800},
        "search": {"examples": rows},
        "job": {"cpu_seconds": 60.0},
    }


def test_a_seed_divides_the_rows_of_a_task_among_its_splits(tmp_path: Path) -> None:
    task = composed(["+experiment=promises", "subject=medicine"], tmp_path).task
    before = {role: list(split.rows) for role, split in read_rows(task).items()}
    drawn = [promises.redrawn(task, seed, tmp_path / str(seed)) for seed in (0, 1)]

    def rows(folder: Path, split: str) -> list[str]:
        return (folder / f"{split}.jsonl").read_text().splitlines()

    every = sorted(json.dumps(row) for split in before.values() for row in split)
    for folder in drawn:
        splits = [rows(folder, split) for split in ("train", "validation", "test")]
        assert sorted(sum(splits, [])) == every
        assert [len(split) for split in splits[:2]] == [2_400, len(before["selection"])]
        train = [json.loads(row) for row in splits[0]]
        assert all(row in before["calibration"] for row in train[:50])
    for split in ("train", "validation", "test"):
        assert rows(drawn[0], split) != rows(drawn[1], split)


def test_runs_without_a_confidence_are_no_promises_but_what_rows_are_compared_with() -> None:
    settings = [dict(job.settings) for job in promises.jobs()]
    results = {
        f"promises/{s['seed']}-{s['way']}-{s['subject']}": record(0.01, 40) for s in settings
    }
    results["promises/0-closed-medicine"] = record(0.021, 40)
    results |= {f"promises/0-point-{s}": record(0.05) for s in promises.SUBJECTS}
    summary = promises.summarize(results)
    count = len(settings) - len(promises.SUBJECTS)
    assert summary["over_all"]["runs"] == count >= 40
    assert summary["over_all"]["within"]["value"] == pytest.approx(1 - 1 / count, abs=1e-4)
    assert summary["by_task"]["medicine"]["within"]["value"] < 1
    assert summary["by_way"]["point"]["beyond_surely"] == len(promises.SUBJECTS)
    assert summary["rows_scored"]["mean"] == 2
    assert "without a confidence" in promises.tables(summary)["promises"]
