"""Calibrate and fit a model of the Llama-3.1-8B shape with random weights: seconds and memory.

    python -m experiments.large                                       # on a GPU of 80 GB or more
    python -m experiments.large --layers 2 --width 256 --device cpu   # a quick trial
    python -m experiments.large --stream DIR --device cpu --layers 24 --width 2048 --tokens 2048 \
        --batch-tokens 512 --vocabulary 32000   # 1.3B parameters, one block in memory at a time

Random weights cost as much as trained ones, but their accuracy means nothing. The log is one JSON
object: seconds of a plain forward pass, of calibration (loss-aware: forward, backward, both second
moments) and of the fit of every matrix, and the peak memory of the device.
"""

import argparse
import json
import logging
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedModel

import sieve
from sieve.bank.bank import Bank, finish, fit_blocks, unfinished
from sieve.bank.solver import Solver
from sieve.data.batches import as_inputs
from sieve.model.backbone import forward
from sieve.model.matrices import Matrix, block_of
from sieve.projections import get_projection
from sieve.projections.moments import Moments, StoredMoments
from sieve.runtime.memory import peak_memory_mib
from sieve.runtime.progress import track
from sieve.streaming.blocks import BlockModel
from sieve.streaming.checkpoint import Checkpoint
from sieve.streaming.hidden_states import hidden_states
from sieve.streaming.streaming import StreamingModule

ROW = 512  # tokens per row
log = logging.getLogger(__name__)


def main() -> None:
    """Measure everything and log one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--batch-tokens", type=int, default=8192)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--projection", default="loss_aware")
    parser.add_argument("--vocabulary", type=int, default=128_256)
    parser.add_argument(
        "--stream",
        type=Path,
        help="folder for weights, moments and bank; one block in memory at a time",
    )
    arguments = vars(parser.parse_args())
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folder = arguments.pop("stream")
    found = measure(**arguments) if folder is None else measure_stream(folder, **arguments)
    log.info(json.dumps(found, indent=2))


def measure(
    layers: int,
    width: int,
    tokens: int,
    batch_tokens: int,
    device: str,
    dtype: str,
    projection: str,
    vocabulary: int,
) -> dict[str, Any]:
    """Seconds and peak memory of each part, with the whole model on the device."""
    place = torch.device(device)
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else "cpu"
    model = random_llama(layers, width, place, getattr(torch, dtype), vocabulary)
    batches = random_batches(tokens, batch_tokens, model.config.vocab_size, place)
    log.info("%s: %d parameters", name, sum(p.numel() for p in model.parameters()))
    with torch.inference_mode():
        forward(model, as_inputs(batches[0]), 1)  # Warm up: choose kernels, allocate memory.
    parts: dict[str, Any] = {}

    def timed(part: str, work: Callable[[], Any]) -> Any:
        if place.type == "cuda":
            torch.cuda.reset_peak_memory_stats(place)
        start = time.perf_counter()
        result = work()
        if place.type == "cuda":
            torch.cuda.synchronize(place)
        seconds = time.perf_counter() - start
        parts[part] = {"seconds": round(seconds, 2), "peak_gib": peak_memory_mib(place) / 1024}
        log.info("%s: %.1f s, at most %.1f GiB", part, seconds, parts[part]["peak_gib"])
        return result

    timed("forward", lambda: plain(model, batches))
    moments = timed("calibrate", lambda: sieve.calibrate(model, batches, projection=projection))
    bank = timed("fit", lambda: sieve.fit(model, moments, projection, "pivoted", key="random"))
    spent = parts["calibrate"]["seconds"] + parts["fit"]["seconds"]
    return {
        "device": name,
        "torch": torch.__version__,
        "layers": layers,
        "width": width,
        "parameters": sum(p.numel() for p in model.parameters()),
        "prunable": bank.size,
        "tokens": sum(batch["input_ids"].numel() for batch in batches),
        "dtype": dtype,
        "projection": projection,
        "parts": parts,
        "calibrate_and_fit_seconds": round(spent, 1),
        "share_of_plain_forward": round(parts["forward"]["seconds"] / spent, 3),
    }


def measure_stream(
    folder: Path,
    layers: int,
    width: int,
    tokens: int,
    batch_tokens: int,
    device: str,
    dtype: str,
    projection: str,
    vocabulary: int,
) -> dict[str, Any]:
    """The same in its own process with streamed bfloat16 weights; then open the bank.

    `opened` is the seconds to open the bank, `materialised` the bytes that one genome reads.
    """
    weights = folder / "model"
    if not (weights / "config.json").is_file():
        model = random_llama(layers, width, torch.device("cpu"), torch.bfloat16, vocabulary)
        model.save_pretrained(weights, max_shard_size="500MB")
        del model
    # If the process dies, this raises BrokenProcessPool; its error is on stderr.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as process:
        work = process.submit(_stream, folder, tokens, batch_tokens, device, dtype, projection)
        found = work.result()
    with ProcessPoolExecutor(1, context) as process:
        return found | {"bank": process.submit(_open, folder / "bank").result()}


def _stream(
    folder: Path, tokens: int, batch_tokens: int, device: str, dtype: str, projection: str
) -> dict[str, Any]:
    """Calibrate and fit with one block in memory; return seconds and peak memory."""
    place, config = torch.device(device), AutoConfig.from_pretrained(folder / "model")
    started = peak_memory_mib(torch.device("cpu"))
    blocks = BlockModel(
        lambda: AutoModelForCausalLM.from_config(config).eval(),
        Checkpoint(folder / "model", "model"),
        place,
        getattr(torch, dtype),
    )
    batches = random_batches(tokens, batch_tokens, config.vocab_size, torch.device("cpu"))
    parts: dict[str, Any] = {}
    paths: list[Path] = []

    def save(moments: Moments, matrices: list[Matrix]) -> None:
        paths.append(folder / "moments" / f"{block_of(matrices[0].name)}.safetensors")
        moments.save(paths[-1])

    start = time.perf_counter()
    needs = get_projection(projection).needs
    with hidden_states(folder) as hidden:
        module = StreamingModule(blocks, batches, hidden, save, needs, "margin", needs.weighting)
        for step in track(module.steps(), "Calibrating"):
            module.predict_step(step)
    moments = StoredMoments(paths)
    parts["calibrate"] = {"seconds": round(time.perf_counter() - start, 1)}
    start = time.perf_counter()
    solver = Solver(
        blocks.model,
        moments,
        projection,
        "pivoted",
        16,
        torch.bfloat16,
        device=place,
        matrix_list=blocks.matrices,
    )
    fit_blocks(
        solver, folder / "bank", "random", unfinished(solver, folder / "bank"), loaded=blocks.loaded
    )
    finish(solver, folder / "bank")
    parts["fit"] = {"seconds": round(time.perf_counter() - start, 1)}
    return {
        "device": torch.cuda.get_device_name(place) if place.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "strategy": "stream",
        "dtype": dtype,
        "layers": config.num_hidden_layers,
        "width": config.hidden_size,
        "parameters": sum(p.numel() for p in blocks.model.parameters()),
        "tokens": tokens,
        "batch_tokens": batch_tokens,
        "projection": projection,
        "parts": parts,
        "host_peak_mib": round(peak_memory_mib(torch.device("cpu"))),
        "host_before_mib": round(started),
        "device_peak_mib": round(peak_memory_mib(place)),
    }


def _open(folder: Path) -> dict[str, Any]:
    """Open a bank and read the factors of one genome."""
    start = time.perf_counter()
    bank = Bank.load(folder)
    seconds = time.perf_counter() - start
    before = _file_bytes()
    for matrix in bank.matrices:
        rank = bank.sizing.rank(matrix, 0.05) or 0
        cut = bank.factors[matrix.name].cut(rank)
        cut.u.float().sum(), cut.v.float().sum()
    size = sum(file.stat().st_size for file in folder.iterdir())
    return {
        "gib": round(size / 2**30, 2),
        "opened_seconds": round(seconds, 3),
        "level": 0.05,
        "read_share": round((_file_bytes() - before) / size, 4),
    }


def _file_bytes() -> int:
    """Bytes of mapped files in this process's memory (Linux)."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("RssFile"))
    return int(line.split()[1]) * 1024


def random_llama(
    layers: int, width: int, place: torch.device, dtype: torch.dtype, vocab: int = 128_256
) -> PreTrainedModel:
    """A Llama with the proportions of Llama-3.1 at any width, on a device."""
    heads = max(1, width // 128)
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=width * 7 // 2,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 4),
        vocab_size=vocab,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )
    torch.manual_seed(0)
    with place:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval().requires_grad_(False)


def random_batches(
    tokens: int, batch_tokens: int, vocab: int, place: torch.device
) -> list[dict[str, Tensor]]:
    """Rows of random tokens; the last token is the answer."""
    generator = torch.Generator().manual_seed(0)
    rows = max(1, batch_tokens // ROW)
    found = []
    for _ in range(-(-tokens // (rows * ROW))):
        ids = torch.randint(vocab, (rows, ROW), generator=generator)
        targets = torch.full_like(ids, -100)
        targets[:, -1] = torch.randint(vocab, (rows,), generator=generator)
        found.append({"input_ids": ids.to(place), "targets": targets.to(place)})
    return found


@torch.inference_mode()
def plain(model: PreTrainedModel, batches: list[dict[str, Tensor]]) -> None:
    """One forward pass over all batches, with logits of the last token only."""
    for batch in batches:
        forward(model, as_inputs(batch), 1)


if __name__ == "__main__":
    main()
