"""Seconds and memory that `dry_run=true` forecasts, beside those of the run, for random Llamas.

`wide` and `deep` are `small` with twice the width and with four times the blocks. Their runs go
through every stage of the defaults, with the tokenizer and a task of the embedded model.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from experiments.bench.parts import EMBEDDED
from experiments.bench.timing import apart
from experiments.figures import timed
from experiments.jobs import composed
from sieve.costs.dry_run import dry_run
from sieve.run import run

SHAPES = {  # (hidden, inner, blocks)
    "small": (256, 688, 8),
    "wide": (512, 1376, 8),
    "deep": (256, 688, 32),
    "tiny": (32, 48, 2),
}
MEASURED = ("small", "wide", "deep")
HEAD = 64  # dimensions of an attention head, at most
SETTINGS = (
    "+task=almanac_reviews",
    "task.max_rows={selection: 100, test: 100}",
    "calibration.tokens=20_000",
    "projection.refit_tokens=4_000",
    "confidence=null",
    "tolerance=.2",
    "model.dtype=float32",
    "speed.enabled=false",
    "logger.wandb=false",
)
STAGES = ("calibrate", "fit", "search", "refit", "evaluate")


def forecasts(name: str, *overrides: str) -> dict[str, Any]:
    """Forecast and measured seconds of the stages, and MiB of the largest one, of one shape."""
    with tempfile.TemporaryDirectory() as folder:
        model = build(name)
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(EMBEDDED).save_pretrained(folder)
        record, result = apart(_forecast_and_run, Path(folder), overrides)
    forecast = {stage["name"]: stage["seconds"] for stage in record["stages"]}
    return {
        "prunable": record["prunable"],
        "peak_mib": timed(result["memory"]["peak_mib"]),
        "forecast_peak_mib": round(record["total"]["peak_bytes"] / 2**20, 1),
        "stages": {
            stage: {
                "seconds": timed(result["seconds"][stage]),
                "forecast_seconds": round(forecast[stage], 2),
            }
            for stage in STAGES
        },
    }


def _forecast_and_run(folder: Path, overrides: tuple[str, ...]) -> tuple[Any, Any]:
    config = composed([*SETTINGS, f"model.path={folder}", *overrides], folder)
    record = dry_run(config, folder)
    return json.loads(json.dumps(record)), run(config, folder / "run", "make bench")


def build(name: str) -> Any:
    """A random Llama with the vocabulary of the embedded model, stored in bfloat16."""
    hidden, inner, layers = SHAPES[name]
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // HEAD),
        vocab_size=len(AutoTokenizer.from_pretrained(EMBEDDED)),
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).to(torch.bfloat16).eval().requires_grad_(False)
