"""What a run has logged, read back by the tests; and generations of a search to log."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KINDS = ("run", "history", "metric", "artifact")  # of the records that a page is made of

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


def offline_run(run_dir: Path) -> Path:
    """The one offline run under a run directory, once W&B's service has written all of it."""
    import wandb

    wandb.teardown()
    (folder,) = run_dir.glob("wandb/*run-*")
    assert folder.name.startswith("offline-run-")
    return folder


def records(folder: Path) -> list[Any]:
    """The records of an offline run: protocol buffers in LevelDB's log format.

    A file header of 7 bytes, then blocks of 32 KiB with fragments of checksum (4 bytes), length
    (2), type (1: whole, 2 to 4: first, middle, last) and data.
    """
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("*.wandb")
    data, at, held, found = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        held += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            found.append(wandb_internal_pb2.Record.FromString(held))
            held = b""
    return found


def mirrored(folder: Path, kind: str) -> dict[str, Any]:
    """All values that the records of a kind (summary, history) set."""
    values: dict[str, Any] = {}
    for record in records(folder):
        if record.WhichOneof("record_type") != kind:
            continue
        part = getattr(record, kind)
        for item in part.item if kind == "history" else part.update:
            values["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
    return values


@dataclass
class Page:
    """What the page of a run on W&B would hold, read from what an offline run would send.

    settings, summary: flat, by dotted path; history: every key of a logged row, with its values;
    media: the kind of each figure and table; steps: the step of each series; artifacts: the files
    of each that the run has logged itself.
    """

    run: Any
    settings: dict[str, Any]
    summary: dict[str, Any]
    history: dict[str, list[Any]]
    media: dict[str, str]
    steps: dict[str, str]
    artifacts: dict[str, list[str]]
    folder: Path


def page(run_dir: Path) -> Page:
    """The page of the one offline run under a run directory."""
    (folder,) = run_dir.glob("wandb/offline-run-*")
    found = records(folder)
    assert any(record.HasField("exit") for record in found), "the run's log is not finished"
    of = {kind: [getattr(r, kind) for r in found if r.HasField(kind)] for kind in KINDS}
    run = of["run"][0]
    settings = flat({item.key: json.loads(item.value_json) for item in run.config.update})
    history: dict[str, list[Any]] = {}
    for row in of["history"]:
        for item in row.item:
            key = "/".join(item.nested_key) or item.key
            history.setdefault(key, []).append(json.loads(item.value_json))
    media = {k.removesuffix("/_type"): v[-1] for k, v in history.items() if k.endswith("/_type")}
    return Page(
        run=run,
        settings=settings,
        summary=flat({k: v for k, v in mirrored(folder, "summary").items() if k[0] != "_"}),
        history={k: v for k, v in history.items() if k.rsplit("/", 1)[0] not in media},
        media=media,
        steps={m.glob_name or m.name: m.step_metric for m in of["metric"]},
        artifacts={
            a.name: [entry.path for entry in a.manifest.contents]
            for a in of["artifact"]
            if a.type != "run_table"
        },
        folder=folder,
    )


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by their dotted path."""
    found: dict[str, Any] = {}
    for key, value in nested.items():
        inner = isinstance(value, Mapping)
        found |= flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return found
