"""Calibrate and fit a model of the Llama-3.1-8B shape with random weights: seconds and memory.

    python -m experiments.large                                       # on a GPU of 80 GB or more
    python -m experiments.large --layers 2 --width 256 --device cpu   # a look at how it runs

Random weights cost what trained ones do; what they keep says nothing. Logged as one JSON object:
seconds of a plain forward pass over the tokens, of calibration (loss-aware: forwards, backwards,
both second moments) and of the fit of all ranks of every matrix, and the device's peak memory.
"""

import argparse
import json
import logging
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

import sieve
from sieve.backbone import forward
from sieve.batches import as_inputs
from sieve.memory import peak_memory_mib

ROW = 512  # tokens of a row
log = logging.getLogger(__name__)


def main() -> None:
    """Measure and log one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--batch-tokens", type=int, default=8192)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--projection", default="loss_aware")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    log.info(json.dumps(measure(**vars(arguments)), indent=2))


def measure(
    layers: int, width: int, tokens: int, batch_tokens: int, device: str, dtype: str,
    projection: str,
) -> dict[str, Any]:  # fmt: skip
    """Seconds and peaks of each part; the model stands on the device throughout."""
    place = torch.device(device)
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else "cpu"
    model = random_llama(layers, width, place, getattr(torch, dtype))
    batches = random_batches(tokens, batch_tokens, model.config.vocab_size, place)
    log.info("%s: %d parameters", name, sum(p.numel() for p in model.parameters()))
    with torch.inference_mode():
        forward(model, as_inputs(batches[0]), 1)  # Kernels are chosen and memory is taken.
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
        "device": name, "torch": torch.__version__, "layers": layers, "width": width,
        "parameters": sum(p.numel() for p in model.parameters()), "prunable": bank.size,
        "tokens": sum(batch["input_ids"].numel() for batch in batches), "dtype": dtype,
        "projection": projection, "parts": parts,
        "calibrate_and_fit_seconds": round(spent, 1),
        "share_of_plain_forward": round(parts["forward"]["seconds"] / spent, 3),
    }  # fmt: skip


def random_llama(
    layers: int, width: int, place: torch.device, dtype: torch.dtype, vocab: int = 128_256
) -> PreTrainedModel:
    """A Llama with grouped queries, of Llama-3.1's proportions at any width, on a device."""
    heads = max(1, width // 128)
    config = LlamaConfig(
        hidden_size=width, intermediate_size=width * 7 // 2, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=max(1, heads // 4), vocab_size=vocab,
        max_position_embeddings=8192, tie_word_embeddings=False, attn_implementation="sdpa",
    )  # fmt: skip
    torch.manual_seed(0)
    with place:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval().requires_grad_(False)


def random_batches(
    tokens: int, batch_tokens: int, vocab: int, place: torch.device
) -> list[dict[str, Tensor]]:
    """Rows of random tokens, whose last token is the answer."""
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
    """One forward pass over all batches, no logits but the last."""
    for batch in batches:
        forward(model, as_inputs(batch), 1)


if __name__ == "__main__":
    main()
