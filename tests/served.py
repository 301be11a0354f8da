"""A tiny export with a task, rows of that task, their offline answers, and a server."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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


def export_to(folder: Path) -> Path:
    """A factorized export of a task with two labels."""
    model = tiny_llama()
    bank = banked(model, storage="pivoted")
    sieve.apply(model, bank, mixed(bank))
    sieve.export(model, tiny_tokenizer(), folder)
    write_task(REVIEWS, ("negative", "positive"), folder)
    return folder


def rows_of(number: int) -> list[dict[str, str]]:
    rng = random.Random(0)
    words = ("movie", "film", "good", "bad", "question", "true", "false", "review")
    return [
        {"text": " ".join(rng.choices(words, k=rng.randint(1, 12))), "what": rng.choice(words)}
        for _ in range(number)
    ]


def offline(folder: Path, rows: list[dict[str, str]]) -> list[int]:
    """The predictions of an evaluation for rows."""
    task = read_task(folder)
    model, tokenizer = sieve.load(folder)
    examples = [task.question(row) for row in rows]
    return score(model, sieve.scoring_batches(examples, tokenizer)).predicted.tolist()


@contextmanager
def serving(folder: Path, *more: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a server in another process; yields the process and its address."""
    server = subprocess.Popen(
        [sys.executable, "-m", "sieve.serve", str(folder), "--port", "0", *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
    )
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
