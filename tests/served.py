"""A tiny export with a task, rows to ask of it, its offline answers, and a server of it."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
from models import tiny_llama, tiny_tokenizer
from sieved import banked, mixed

import sieve
from sieve.evaluation.evaluation import score
from sieve.exports.task_file import read_task, write_task
from sieve.tasks.config import TaskConfig

REVIEWS = TaskConfig(
    name="reviews",
    prompt="{text}\\nIs it {what}?",
    labels=["negative", "positive"],
    fields={"text": ["sentence"]},
)
QUESTIONS = TaskConfig(
    name="questions", kind="multiple_choice", prompt="{question}\n{options}\nAnswer:"
)
GOOD = {"text": "good", "what": "film"}


def export_to(folder: Path, **shape: Any) -> Path:
    """A factorized export of a task of two labels."""
    model = tiny_llama(**shape)
    bank = banked(model, storage="pivoted")
    sieve.apply(model, bank, mixed(bank))
    sieve.export(model, tiny_tokenizer(), folder)
    write_task(REVIEWS, ("negative", "positive"), folder)
    return folder


def rows_of(number: int) -> list[dict[str, Any]]:
    rng = random.Random(0)
    words = ("movie", "film", "good", "bad", "question", "true", "false", "review")
    return [
        {"text": " ".join(rng.choices(words, k=rng.randint(1, 12))), "what": rng.choice(words)}
        for _ in range(number)
    ]


def offline(folder: Path, rows: list[dict[str, Any]]) -> list[int]:
    """What the evaluation of a run predicts for rows."""
    task = read_task(folder)
    model, tokenizer = sieve.load(folder)
    examples = [task.question(row) for row in rows]
    return score(model, sieve.scoring_batches(examples, tokenizer)).predicted.tolist()


@contextmanager
def serving(folder: Path, *more: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in a process of its own, and its address."""
    server = subprocess.Popen(
        [sys.executable, "-m", "sieve.serve", str(folder), "--port", "0", *more],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    try:
        assert server.stdout
        address = server.stdout.readline().split()[-1]
        for _ in range(600):
            try:
                httpx.get(f"{address}/health")
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield server, address
    finally:
        server.kill()
        server.communicate()
