"""What a shared prefix saves: seconds per genome with it, over seconds without.

    python -m experiments.sharing --model my_model

For several fractions of a row that all rows share, with 30 own tokens per row as in the prompts of
the embedded model. Medians of paired repeats; below 1, sharing is faster.
"""

import argparse
import json
import logging
import statistics
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from experiments.running import FOLDER
from sieve.data.choices import ScoringBatch, encoded_batches
from sieve.data.encoding import EncodedExample
from sieve.data.sharing import prefix_sharing_of
from sieve.evaluation.evaluation import score

EMBEDDED = FOLDER.parent / "sieve/assets/embedded"
PARTS = (0.1, 0.25, 0.5, 0.75, 0.9)
OWN, ROWS = 30, 200


def main() -> None:
    """Measure everything and log one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=str(EMBEDDED))
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    logging.info(json.dumps(compare_sharing(model, arguments.repeats), indent=2))


def compare_sharing(model: Any, repeats: int, rows: int = ROWS) -> dict[str, dict[str, float]]:
    """Ratios of seconds and tokens with and without sharing, by the shared fraction of a row."""
    found = {}
    for part in PARTS:
        drawn = made_up(model.config.vocab_size, round(OWN * part / (1 - part)), rows)
        plain = encoded_batches(drawn, 0)
        shared = encoded_batches(drawn, 0, sharing=prefix_sharing_of(model, 0.01))
        ratios = [seconds(model, shared) / seconds(model, plain) for _ in range(repeats + 1)][1:]
        own = sum(b.input_ids.numel() - len(b.input_ids) * len(b.prefix) for b in shared)
        whole = sum(batch.input_ids.numel() for batch in plain)
        found[f"{part:g}"] = {
            "seconds": round(statistics.median(ratios), 3),
            "tokens": round((own + len(shared[0].prefix)) / whole, 3),
        }
    return found


def made_up(vocabulary: int, prefix: int, rows: int) -> list[EncodedExample]:
    """Rows of random tokens with the same beginning and two answers."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(3, vocabulary, (rows + 1, prefix + OWN), generator=generator).tolist()
    head = tuple(drawn[-1][:prefix])
    return [EncodedExample((*head, *row[:OWN]), ((3,), (4,)), 0) for row in drawn[:-1]]


def seconds(model: Any, batches: list[ScoringBatch]) -> float:
    """Seconds of scoring all batches."""
    now = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = now()
    score(model, batches)
    return now() - start


if __name__ == "__main__":
    main()
