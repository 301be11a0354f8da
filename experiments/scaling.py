"""How costs grow with model size, measured and as forecast by a dry run.

    python -m experiments.scaling                          # Llama shapes of 25M, 100M and 400M
    python -m experiments.scaling --shapes wide-25 --tokens 512

Weights are random, rounded to bfloat16 and computed in float32 on the CPU. Each stage runs in its
own process. `wide` shapes grow in width and depth, as model families do; `deep` shapes only grow in
depth. The closed form costs the cube of the width, but a model has its square in parameters, so
`fit` takes more time per parameter for wider models. Genomes are scored on more and more rows, and
with a shared prefix. With one thread (OMP_NUM_THREADS=1) processor time is measured, which excludes
other processes. Results are added to `scaling.json`.
"""

import argparse
import gc
import json
import logging
import multiprocessing
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import sieve
from experiments.running import FOLDER
from experiments.sharing import compare_sharing
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
from sieve.evaluation.speed import describe_machine
from sieve.model.matrices import find_matrices
from sieve.projections.moments import StoredMoments
from sieve.search.lines import LEVELS, uniform_genome
from sieve.tasks import TaskConfig

RESULTS = FOLDER / "scaling.json"
# (hidden, inner, blocks)
SHAPES = {
    "wide-25": (512, 1376, 8),
    "wide-100": (768, 2048, 14),
    "wide-400": (1280, 3456, 20),
    "deep-100": (512, 1376, 32),
    "deep-400": (512, 1376, 128),
    "tiny": (32, 48, 2),
    "tiny-deep": (32, 48, 4),
}
DEFAULT = "wide-25,wide-100,deep-100,wide-400,deep-400"
LENGTH, BATCH, VOCABULARY, HEAD = 128, 2048, 2048, 64
LONG = 60.0  # seconds; longer work is not repeated
EXAMPLES = (16, 32, 64)
TASK_TOKENS = 50_000  # calibration tokens by default
PREFIXED = "wide-25"  # the shape on which shared prefixes are timed


def main() -> None:
    """Measure every shape and write the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", default=DEFAULT)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    report = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"shapes": {}}
    report["machine"] = describe_machine(torch.device("cpu"))
    report |= {"threads": torch.get_num_threads(), "tokens": arguments.tokens}
    for name in arguments.shapes.split(","):
        report["shapes"][name] = measure(name, arguments.tokens)
        report["growth"] = {kind: growth(report["shapes"], kind) for kind in ("wide", "deep")}
        if name == PREFIXED:
            report["shared_prefix"] = apart(share, PREFIXED, 2)
            report["tokens_quadrupled"] = quadrupled(arguments.tokens, report["shapes"][PREFIXED])
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    logging.info(json.dumps(report["growth"], indent=1))


def quadrupled(tokens: int, row: dict[str, Any]) -> float:
    """Seconds of calibration on four times the tokens, over four times the measured seconds."""
    with tempfile.TemporaryDirectory() as folder:
        more = apart(collect, PREFIXED, 4 * tokens, Path(folder))
    return round(more["calibrate"]["seconds"] / row["calibrate"]["seconds"] / 4, 3)


def apart(work: Callable[..., Any], *given: Any) -> Any:
    """Call a function in its own process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(work, given)
    logging.info("%s: %s", given[0], json.dumps(found))
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


def plan_of(model: Any, tokens: int, device: DeviceConfig) -> Plan:
    """The plan that a dry run makes for the same work."""
    config = Config(TaskConfig(name="random"), batch_tokens=BATCH)
    config.calibration.tokens = tokens
    rows = {"calibration": tokens // LENGTH, "selection": max(EXAMPLES), "test": 0}
    lengths = Lengths(rows, LENGTH, LENGTH, "random")
    return Plan(config, shape_of(model), lengths, device, "float32", "bfloat16")


def measure(name: str, tokens: int) -> dict[str, Any]:
    """Measured and forecast costs of every stage for one shape, each in its own process."""
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, Any] = {}
        for stage in (collect, solve, search):
            found |= apart(stage, name, tokens, Path(folder))
    return found


def collect(name: str, tokens: int, folder: Path) -> dict[str, Any]:
    """Collect and write loss-aware moments."""
    model, plan, before = prepared(name, tokens)
    matrices = find_matrices(model)

    def work() -> None:
        moments = sieve.calibrate(model, calibration(tokens), matrices, projection="loss_aware")
        moments.save(folder / "moments.safetensors")

    return {
        "parameters": plan.shape.parameters,
        "prunable": plan.shape.prunable,
        "calibrate": compared(work, calibrate(plan), plan, before) | {"tokens": tokens},
    }


def solve(name: str, tokens: int, folder: Path) -> dict[str, Any]:
    """Fit and write the loss-aware bank of these moments."""
    model, plan, before = prepared(name, tokens)

    def work() -> None:
        moments = StoredMoments([folder / "moments.safetensors"])
        bank = sieve.fit(model, moments, "loss_aware", "pivoted", dtype=torch.bfloat16)
        bank.save(folder / "bank.safetensors")

    stage = fit(plan)  # A run writes the bank block by block; here the whole bank is in memory.
    stage = replace(stage, parts_bytes=stage.parts_bytes | {"bank": plan.bank_bytes})
    return {"fit": compared(work, stage, plan, before)}


def search(name: str, tokens: int, folder: Path) -> dict[str, Any]:
    """Score genomes of that bank on more and more rows."""
    model, plan, _ = prepared(name, tokens)
    return {"search": score_genomes(model, sieve.Bank.load(folder / "bank.safetensors"), plan)}


def prepared(name: str, tokens: int) -> tuple[Any, Plan, int]:
    """The model, the dry run's plan, and the bytes in use before the model was built."""
    warm = build("tiny")
    with torch.enable_grad():
        sieve.calibrate(warm, calibration(LENGTH), projection="loss_aware")
    before = anonymous()
    device = find_device(DeviceConfig("cpu"), "cpu", {"float32", "float64"})
    model = build(name)
    return model, plan_of(model, tokens, device), before


def compared(work: Callable[[], None], stage: Stage, plan: Plan, before: int) -> dict[str, Any]:
    """Measured and forecast seconds and peak memory of a stage; short work is repeated."""
    with watched() as samples:
        spent = [timed(work)]
    while sum(spent) < LONG and len(spent) < 3:
        spent.append(timed(work))
    reckoned = stage.peak(plan.device) - plan.device.overhead_gib * GIB
    return {
        "seconds": round(min(spent), 3),
        "reckoned_seconds": round(stage.seconds, 3),
        "peak_mib": round((max(samples) - before) / 2**20, 1),
        "reckoned_peak_mib": round(reckoned / 2**20, 1),
    }


def timed(work: Callable[[], None]) -> float:
    """Seconds of one call."""
    gc.collect()
    start = now()
    work()
    return now() - start


@contextmanager
def watched() -> Iterator[list[int]]:
    """Sample the memory of this process 50 times per second; yields the list of bytes."""
    samples, done = [anonymous()], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            samples.append(anonymous())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield samples
    finally:
        done.set()
        thread.join()


def now() -> float:
    """Processor seconds with one thread, which exclude other processes; else wall time."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def score_genomes(model: Any, bank: Any, plan: Plan) -> dict[str, Any]:
    """Seconds per genome by number of rows, with a linear fit."""
    genome, spent = uniform_genome(bank, LEVELS, LEVELS.index(KEPT)), {}
    for count in EXAMPLES:
        objective = Rows(model, bank, count)
        objective.score(genome)  # The first call loads and caches.
        spent[count] = min(objective.score(genome) for _ in range(3))
    each = [seconds / count for count, seconds in spent.items()]
    forecast = plan.score(max(EXAMPLES))
    slope, base = np.polyfit(list(spent), list(spent.values()), 1)
    return {
        "seconds": {str(count): round(seconds, 3) for count, seconds in spent.items()},
        "reckoned_seconds": round(forecast, 3),
        "seconds_per_example": [round(one, 5) for one in each],
        "spread_per_example": round(max(each) / min(each) - 1, 3),
        "seconds_beside": round(float(base), 4),
        "slope": round(float(slope), 5),
    }


class Rows:
    """Scores genomes on random rows, without a dense baseline."""

    def __init__(self, model: Any, bank: Any, count: int) -> None:
        self.batches = encoded_batches(examples(count), 0, BATCH)
        self.switch = Switch(model, bank, as_stored=False)

    def score(self, genome: Any) -> float:
        """Seconds of switching to a genome and scoring it."""
        start = now()
        with self.switch.to(genome):
            score(self.switch.model, self.batches)
        return now() - start


def growth(shapes: dict[str, dict[str, Any]], kind: str) -> dict[str, Any]:
    """Nanoseconds per parameter for the shapes of one kind, and their spread (max/min - 1).

    `calibrate` is per token, `both` as measured, `at_50k` for the default number of tokens. The
    smallest shape belongs to both kinds.
    """
    rows = {n: row for n, row in shapes.items() if n.startswith((kind, PREFIXED))}
    tokens = {n: row["calibrate"]["tokens"] for n, row in rows.items()}
    found: dict[str, dict[str, float]] = {"calibrate": {}, "fit": {}, "both": {}, "at_50k": {}}
    for name, row in rows.items():
        one = 1e9 / row["prunable"]
        first, second = row["calibrate"]["seconds"], row["fit"]["seconds"]
        found["calibrate"][name] = one * first / tokens[name]
        found["fit"][name] = one * second
        found["both"][name] = one * (first + second)
        found["at_50k"][name] = one * (first * TASK_TOKENS / tokens[name] + second)
    return {
        key: {name: round(value, 3) for name, value in values.items()}
        | {"spread": round(max(values.values()) / min(values.values()) - 1, 3)}
        for key, values in found.items()
        if values
    }


def calibration(tokens: int) -> list[TokenBatch]:
    """Rows of random tokens without padding; the last token is the answer."""
    generator = torch.Generator().manual_seed(1)
    batches = []
    for _ in range(max(1, tokens // BATCH)):
        ids = torch.randint(
            3, VOCABULARY, (min(tokens, BATCH) // LENGTH, LENGTH), generator=generator
        )
        targets = torch.full_like(ids, -100)
        targets[:, -1] = ids[:, 0]
        places = torch.arange(LENGTH).expand_as(ids)
        batches.append(TokenBatch(ids, torch.ones_like(ids), places, targets >= 0, targets))
    return batches


def examples(count: int) -> list[EncodedExample]:
    """Rows of random tokens with two one-token answers."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(3, VOCABULARY, (count, LENGTH), generator=generator).tolist()
    return [EncodedExample(tuple(row), ((3,), (4,)), 0) for row in ids]


def share(name: str, repeats: int) -> dict[str, dict[str, float]]:
    """The ratio of seconds with and without a shared prefix, for one shape."""
    return compare_sharing(build(name), repeats, rows=48)


def anonymous() -> int:
    """Bytes of anonymous memory of this process, without mapped files (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


if __name__ == "__main__":
    main()
