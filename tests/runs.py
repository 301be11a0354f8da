"""Whole runs on a tiny model and data set, in processes of their own."""

import atexit
import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from models import tiny_llama, tiny_tokenizer

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def make_world(root: Path) -> Path:
    """Write a tiny model and a data set of two labels."""
    tiny_llama().save_pretrained(root / "model")
    tiny_tokenizer().save_pretrained(root / "model")
    rng = random.Random(0)
    for split, number in (("train", 120), ("validation", 60), ("test", 60)):
        write_rows(
            root / "data" / f"{split}.jsonl",
            [
                {"text": f"{split} {i} {rng.randint(0, 999)}", "label": ["no", "yes"][i % 2]}
                for i in range(number)
            ],
        )
    return root


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write JSON Lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def arguments(world: Path, run_dir: Path, *overrides: str, cache: str = "cache") -> list[str]:
    """Command line arguments of a quick run, whose few rows cannot certify anything."""
    return [
        "+task=jsonl",
        f"task.data_dir={world / 'data'}",
        f"model.path={world / 'model'}",
        f"hydra.run.dir={run_dir}",
        "logger=none",
        "confidence=null",
        "speed.repeats=1",
        "speed.prompt_tokens=8",
        "speed.new_tokens=2",
        "export.check_rows=0",
        f"paths.cache_dir={world / cache}",
        *overrides,
    ]


@dataclass
class Done:
    """How a run ended; a status of -9 is a kill."""

    status: int
    stdout: str
    stderr: str


def run_sieve(
    world: Path,
    run_dir: Path,
    *overrides: str,
    cache: str = "cache",
    kill: str | None = None,
    file_size: int | None = None,
    ranks: int = 1,
) -> Done:
    """Run the command line in a process of its own.

    Args:
        kill: where the run is killed, as `run_server.py` says.
        file_size: the largest size of a file, in bytes.
        ranks: the processes of a run with `trainer.devices=ranks`.
    """
    given = arguments(world, run_dir, *overrides, cache=cache)
    return execute(world, given, kill=kill, file_size=file_size, ranks=ranks)


def execute(folder: Path, given: list[str], **limits: Any) -> Done:
    """Run a complete command line in a folder."""
    request = {"arguments": given, "folder": str(folder), "kill": None, "kill_after": None}
    request |= {"file_size": None, "ranks": 1} | limits
    server = start_server()
    assert server.stdin and server.stdout
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    return Done(**json.loads(server.stdout.readline()))


@cache
def start_server() -> subprocess.Popen[str]:
    """One server for all tests; it ends with this process, whose end closes its stdin."""
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("run_server.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    atexit.register(stop, server)
    return server


def stop(server: subprocess.Popen[str]) -> None:
    """Close its stdin and wait for it."""
    server.communicate()


def finished(world: Path, name: str, *overrides: str, **options: Any) -> dict[str, Any]:
    """The result of a run that must succeed, in the folder `name`."""
    done = run_sieve(world, world / name, *overrides, **options)
    assert done.status == 0, done.stderr
    return read_result(world / name)


def read_result(run_dir: Path) -> dict[str, Any]:
    """What `result.json` holds."""
    return json.loads((run_dir / "result.json").read_text())
