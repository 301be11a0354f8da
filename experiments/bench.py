"""The speed of Sieve's parts, as ratios within one run.

    python -m experiments.bench                      # the embedded model
    python -m experiments.bench --model my_model     # any local model

calibration: streaming moments over a plain forward pass on the same tokens (target: at most 1.6);
for `loss_aware`, which adds a backward pass and gradient weights (target: at most 4).
switch: changing a whole genome over one selection evaluation of 1,000 rows (target: at most .02).
sharing: scoring genomes that differ from one genome in a single matrix over scoring them whole
(target: at most .67).
pivoted: a forward pass with pivoted factors over one with plain factors of the same size, for many
tokens and for one token per row (target: at most 1; CPUs miss it because they reorder slowly).
fit: seconds to fit the loss-aware bank (target for the embedded model: 5).
memory: the peak of calibrating and fitting beyond the loaded model, for all layers at once and for
one layer at a time, with the sizes of the bank and of one layer's moments.
sweeper: seconds that the genetic sweeper and Hydra add to a generation of 100 genomes with 224
genes in one chunk (target: at most 1).
"""

import argparse
import json
import logging
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import sieve
from sieve.bank.switch import Switch
from sieve.calibration.calibration import CalibrationModule
from sieve.model.matrices import blocks_of, find_matrices
from sieve.projections import get_projection
from sieve.projections.moments import StoredMoments
from sieve.search.lines import LEVELS, uniform_genome
from sieve.tasks import Example
from sieve.tasks.almanac import almanac_rows

ROOT = Path(__file__).resolve().parents[1]
EMBEDDED = ROOT / "sieve/assets/embedded"
CHUNKS = ROOT / "plugins/hydra_genetic_sweeper/tests/apps/chunks.py"


def main() -> None:
    """Measure everything and log one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=str(EMBEDDED))
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    figures = measure(arguments.model, arguments.repeats)
    figures |= {"sharing_over_whole": compare_sharing(arguments.model, arguments.repeats)}
    figures |= {"pivoted_over_plain": compare_storage(arguments.model, arguments.repeats)}
    figures |= {"memory_mib": compare_memory(arguments.model)}
    figures |= {"sweeper_generation_seconds": time_sweeper(arguments.repeats)}
    logging.info(json.dumps(figures, indent=2))


def measure(path: str, repeats: int) -> dict[str, Any]:
    """Medians over paired repeats."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    examples = review_examples()
    tokens = sieve.calibration_batches(examples, tokenizer)
    module = CalibrationModule(model.requires_grad_(False))
    needs = get_projection("loss_aware").needs
    both_ways = CalibrationModule(model, None, needs, "margin", needs.weighting)

    @torch.no_grad()
    def plain() -> None:
        for batch in tokens:
            model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                position_ids=batch.position_ids,
                use_cache=False,
            )

    def calibrate() -> None:
        for batch in tokens:
            module.predict_step(batch)

    def calibrate_both_ways() -> None:
        for batch in tokens:
            both_ways.predict_step(batch)

    calibration = paired(calibrate, plain, repeats)
    loss_aware = paired(calibrate_both_ways, plain, repeats)
    moments = both_ways.collector.moments()
    start = time.perf_counter()
    sieve.fit(model, moments, "loss_aware", "pivoted")
    seconds = time.perf_counter() - start
    bank = sieve.fit(model, sieve.calibrate(model, tokens))
    objective = sieve.Objective(model, bank, sieve.scoring_batches(examples[:1000], tokenizer))
    genomes = [uniform_genome(bank, LEVELS, i) for i in (3, 10)]

    def switch() -> None:
        for genome in genomes:
            objective.switch.to(genome)
        objective.switch.restore()

    def evaluate() -> None:
        objective.evaluated.clear()
        objective.score(genomes[1])

    return {
        "calibration_over_forward": round(calibration, 3),
        "loss_aware_calibration_over_forward": round(loss_aware, 3),
        "loss_aware_fit_seconds": round(seconds, 2),
        "switch_over_evaluation": round(paired(switch, evaluate, repeats) / 3, 5),
        "tokens": sum(batch.tokens for batch in tokens),
        "repeats": repeats,
        "threads": torch.get_num_threads(),
    }


def compare_sharing(path: str, repeats: int) -> float:
    """Seconds of genomes that differ in one matrix, from there on over whole; the same scores."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer, examples = AutoTokenizer.from_pretrained(path), review_examples()[:64]
    bank = sieve.fit(model, sieve.calibrate(model, sieve.calibration_batches(examples, tokenizer)))
    batches, start = sieve.scoring_batches(examples, tokenizer), uniform_genome(bank, LEVELS, 10)
    step = len(bank.names) // 12
    genomes = [
        replace(start, indexes=(*start.indexes[:i], 11, *start.indexes[i + 1 :]))
        for i in range(0, len(bank.names), step)
    ]
    whole, shared = (sieve.Objective(model, bank, batches) for _ in range(2))
    shared.share_blocks(start)

    def score(objective: sieve.Objective) -> None:
        objective.evaluated.clear()
        for genome in genomes:
            objective.score(genome)

    ratio = paired(partial(score, shared), partial(score, whole), repeats)
    assert shared.evaluated == whole.evaluated
    return round(ratio, 3)


def compare_storage(path: str, repeats: int) -> dict[str, float]:
    """Seconds with pivoted over plain factors, by level and tokens per row."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokens = sieve.calibration_batches(review_examples()[:500], tokenizer)
    moments = sieve.calibrate(model, tokens)
    banks = {name: sieve.fit(model, moments, storage=name) for name in ("pivoted", "plain")}
    ratios = {}
    for level in (0.75, 0.5, 0.2):
        for length in (128, 1):
            ids = torch.arange(8 * length).reshape(8, length) % model.config.vocab_size

            found = [
                _forward(model, banks["pivoted"], level, ids)
                / _forward(model, banks["plain"], level, ids)
                for _ in range(repeats + 1)
            ][1:]
            ratios[f"level {level:g}, {length} tokens a row"] = round(statistics.median(found), 3)
    return ratios


def _forward(model: Any, bank: sieve.Bank, level: float, ids: torch.Tensor) -> float:
    """Seconds of forward passes at one level."""
    with Switch(model, bank).to(uniform_genome(bank, (1.0, level), 1)), torch.inference_mode():
        model(input_ids=ids, use_cache=False)
        start = time.perf_counter()
        for _ in range(max(1, 256 // ids.shape[1])):
            model(input_ids=ids, use_cache=False)
        return time.perf_counter() - start


def compare_memory(path: str) -> dict[str, float]:
    """Peak memory beyond the loaded model, each measured in its own process."""
    context = multiprocessing.get_context("spawn")
    figures = {}
    for name, at_once in (("all_layers_at_once", False), ("one_layer_at_once", True)):
        queue = context.SimpleQueue()
        process = context.Process(target=_memory, args=(path, at_once, queue))
        process.start()
        figures[name], bank, layer = queue.get()
        process.join()
    figures |= {"bank": bank, "moments_of_one_layer": layer}
    return {name: round(value / 2**20, 1) for name, value in figures.items()}


def _memory(path: str, by_layer: bool, queue: Any) -> None:
    """Bytes: peak of loss-aware calibration and fit, the bank, one layer's moments.

    The batches are small, so that moments and bank dominate over activations.
    """
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokens = sieve.calibration_batches(review_examples()[:64], tokenizer, batch_tokens=128)
    matrices = find_matrices(model)
    blocks = list(blocks_of(matrices).values())
    with torch.enable_grad():
        sieve.calibrate(model, tokens[:1], matrices[:1], projection="loss_aware")
    before = _peak(fresh=True)
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for index, group in enumerate(blocks if by_layer else [matrices]):
            moments = sieve.calibrate(model, tokens, group, projection="loss_aware")
            paths.append(Path(folder) / f"{index}.safetensors")
            moments.save(paths[-1])
            if index == 0:
                held = [moments.of(m) for m in blocks[0]]
            del moments
        layer = sum(4 * (h.second.numel() + h.gradient.second.numel()) for h in held if h.gradient)
        bank = sieve.fit(model, StoredMoments(paths), "loss_aware", "pivoted")
    peak = _peak()
    size = sum(4 * (f.u.numel() + f.v.numel()) for f in bank.factors.values())
    queue.put((peak - before, size, layer))


def _peak(fresh: bool = False) -> int:
    """Peak memory of this process in bytes; `fresh` restarts the count (Linux)."""
    if fresh:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def time_sweeper(repeats: int) -> float:
    """Median seconds from one generation's chunk to the next, with a trivial objective."""
    settings = {"population": 100, "generations": repeats + 2, "finalize": []}
    overrides = [f"hydra.sweeper.{key}={value}" for key, value in settings.items()]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, str(CHUNKS), "-m", "genes=224", *overrides],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(CHUNKS.parent)},
            check=True,
            stdout=subprocess.DEVNULL,
        )
        chunks = sorted((Path(folder) / "sweep/chunks").glob("*/*.json"))
        times = [path.stat().st_mtime for path in chunks]
    return round(statistics.median(after - before for before, after in pairwise(times[1:])), 3)


def review_examples() -> list[Example]:
    """3,000 rendered rows of the Almanac reviews task."""
    words = (" negative", " positive")
    return [
        Example(f"Review: {row['text']}\nSentiment:", words, int(str(row["label"])))
        for row in almanac_rows("reviews")
    ]


def paired(first: Callable[[], None], second: Callable[[], None], repeats: int) -> float:
    """Median ratio of seconds, first over second, measured alternately after a warm-up."""
    ratios = []
    for repeat in range(repeats + 1):
        times = []
        for work in (first, second):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        if repeat:
            ratios.append(times[0] / times[1])
    return statistics.median(ratios)


if __name__ == "__main__":
    main()
