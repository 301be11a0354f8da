"""What a run has logged, read back by the tests; and generations of a search to log."""

import json
from pathlib import Path
from typing import Any

GENERATIONS = [
    {"generation": 1, "best": None, "median": 0.4, "memo": 0, "seconds": 2.5},
    {"generation": 2, "best": 0.125, "median": 0.25, "memo": 3, "seconds": 1.5},
]


def lines(run_dir: Path) -> list[dict[str, Any]]:
    """What metrics.jsonl holds now; every line must be strict JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = (run_dir / "metrics.jsonl").read_text(encoding="utf-8")
    assert text == "" or text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The same without the time."""
    return [{key: value for key, value in line.items() if key != "time"} for line in lines(run_dir)]
