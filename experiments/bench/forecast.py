"""Seconds and memory that a dry run forecasts, beside measured ones, for random Llamas.

`wide` and `deep` are `small` with twice the width and with four times the blocks. Weights are
rounded to bfloat16 and computed in float32 on the CPU. Each stage runs in its own process.
"""

import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import sieve
from experiments.bench.timing import Work, apart, memory_bytes, seconds
from experiments.figures import timed
from sieve.bank.switch import Switch
from sieve.config import Config, DeviceConfig
from sieve.costs.lengths import Lengths
from sieve.costs.plan import KEPT, Plan, Stage
from sieve.costs.probe import GIB, find_device
from sieve.costs.shape import shape_of
from sieve.costs.stages import calibrate, fit
from sieve.data.batches import TokenBatch
from sieve.data.choices import encoded_batches
from sieve.data.encoding import EncodedExample
from sieve.evaluation.evaluation import score
from sieve.model.matrices import find_matrices
from sieve.projections.moments import StoredMoments
from sieve.search.lines import LEVELS, uniform_genome
from sieve.tasks import TaskConfig

SHAPES = {  # (hidden, inner, blocks)
    "small": (256, 688, 8),
    "wide": (512, 1376, 8),
    "deep": (256, 688, 32),
    "tiny": (32, 48, 2),
}
MEASURED = ("small", "wide", "deep")
LENGTH, BATCH, VOCABULARY, HEAD = 128, 2048, 2048, 64
TOKENS, ROWS = 8192, 64
LONG = 20.0  # seconds; longer work is not repeated


def forecasts(name: str, tokens: int = TOKENS) -> dict[str, Any]:
    """Measured and forecast costs of every stage for one shape."""
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, Any] = {}
        for stage in (collect, solve, search):
            found |= apart(stage, name, tokens, Path(folder))
    return found


def build(name: str) -> Any:
    """A random Llama in float32, with weights rounded to bfloat16."""
    hidden, inner, layers = SHAPES[name]
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // HEAD),
        vocab_size=VOCABULARY,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16).float()
    return model.eval().requires_grad_(False)


def collect(name: str, tokens: int, folder: Path) -> dict[str, Any]:
    """Collect and write loss-aware moments."""
    model, plan, before = prepared(name, tokens)
    matrices = find_matrices(model)

    def work() -> None:
        moments = sieve.calibrate(model, calibration(tokens), matrices, projection="loss_aware")
        moments.save(folder / "moments.safetensors")

    measured = beside(work, calibrate(plan), plan, before)
    return {"prunable": plan.shape.prunable, "tokens": tokens, "calibrate": measured}


def solve(name: str, tokens: int, folder: Path) -> dict[str, Any]:
    """Fit and write the loss-aware bank of these moments."""
    model, plan, before = prepared(name, tokens)

    def work() -> None:
        moments = StoredMoments([folder / "moments.safetensors"])
        bank = sieve.fit(model, moments, "loss_aware", "pivoted", dtype=torch.bfloat16)
        bank.save(folder / "bank.safetensors")

    stage = fit(plan)  # A run writes the bank block by block; here the whole bank is in memory.
    stage = replace(stage, parts_bytes=stage.parts_bytes | {"bank": plan.bank_bytes})
    return {"fit": beside(work, stage, plan, before)}


def search(name: str, tokens: int, folder: Path) -> dict[str, Any]:
    """Score a genome of that bank."""
    model, plan, _ = prepared(name, tokens)
    bank = sieve.Bank.load(folder / "bank.safetensors")
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(3, VOCABULARY, (ROWS, LENGTH), generator=generator).tolist()
    rows = [EncodedExample(tuple(row), ((3,), (4,)), 0) for row in ids]
    batches = encoded_batches(rows, 0, BATCH)
    switch = Switch(model, bank, as_stored=False)
    with switch.to(uniform_genome(bank, LEVELS, LEVELS.index(KEPT))):
        spent = min(seconds(lambda: score(model, batches)) for _ in range(3))
    return {
        "genome": {"seconds": timed(spent), "forecast_seconds": round(plan.score(ROWS, KEPT), 2)}
    }


def prepared(name: str, tokens: int) -> tuple[Any, Plan, int]:
    """The model, the dry run's plan, and the bytes in use before the model was built."""
    warm = build("tiny")
    with torch.enable_grad():
        sieve.calibrate(warm, calibration(LENGTH), projection="loss_aware")
    before = memory_bytes()
    device = find_device(DeviceConfig("cpu"), "cpu", {"float32", "float64"})
    model = build(name)
    config = Config(TaskConfig(name="random"), batch_tokens=BATCH)
    config.calibration.tokens = tokens
    lengths = Lengths(
        {"calibration": tokens // LENGTH, "selection": ROWS, "test": 0}, LENGTH, LENGTH, "random"
    )
    return model, Plan(config, shape_of(model), lengths, device, "float32", "bfloat16"), before


def beside(work: Work, stage: Stage, plan: Plan, before: int) -> dict[str, Any]:
    """Measured and forecast seconds and peak memory of a stage; short work is repeated."""
    with watched() as samples:
        spent = [seconds(work)]
    while sum(spent) < LONG and len(spent) < 3:
        spent.append(seconds(work))
    forecast = stage.peak(plan.device) - plan.device.overhead_gib * GIB
    return {
        "seconds": timed(min(spent)),
        "forecast_seconds": round(stage.seconds, 2),
        "peak_mib": timed((max(samples) - before) / 2**20),
        "forecast_peak_mib": round(forecast / 2**20, 1),
    }


@contextmanager
def watched() -> Iterator[list[int]]:
    """Sample the memory of this process 50 times per second; yields the list of bytes."""
    samples, done = [memory_bytes()], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            samples.append(memory_bytes())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield samples
    finally:
        done.set()
        thread.join()


def calibration(tokens: int) -> list[TokenBatch]:
    """Rows of random tokens without padding; the last token is the answer."""
    generator = torch.Generator().manual_seed(1)
    batches = []
    for _ in range(max(1, tokens // BATCH)):
        size = (min(tokens, BATCH) // LENGTH, LENGTH)
        ids = torch.randint(3, VOCABULARY, size, generator=generator)
        targets = torch.full_like(ids, -100)
        targets[:, -1] = ids[:, 0]
        places = torch.arange(LENGTH).expand_as(ids)
        batches.append(TokenBatch(ids, torch.ones_like(ids), places, targets >= 0, targets))
    return batches
