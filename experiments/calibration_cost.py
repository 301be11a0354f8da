"""What calibrating a real language model costs, as ratios within one run.

    python -m experiments.calibration_cost calibration_cost.json +task=sst2 task.chat=never \\
        model.path=my_model calibration.tokens=20_000

over_passes: the time of a calibration batch over that of a forward and a backward pass on the same
batch without sums, the median over batches (target: at most 1.6).
shots: the time of a row with four examples in the prompt over that of a row without (target: at
most 1.5), since the common prefix runs once per batch.
After the file come the overrides of `sieve.run`, which also chooses the dtype and the batch size.
"""

import json
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import TypedDict

import torch
from hydra import compose, initialize_config_dir

from sieve.calibration.answer_loss import answer_loss
from sieve.calibration.calibration import CalibrationModule
from sieve.config import Config
from sieve.conversion import CONF, register_resolvers, to_config
from sieve.data.batches import TokenBatch, as_targets, trailing_positions
from sieve.data.prefix import batch_logits
from sieve.data.reader import Reader
from sieve.data.sharing import prefix_sharing_of
from sieve.model.backbone import Backbone, load_backbone, with_input_gradients
from sieve.projections import get_projection
from sieve.stages.batch_size import batch_tokens
from sieve.tasks import build_task

SHOTS = 4


class Figures(TypedDict):
    """The cost of one calibration."""

    over_passes: float
    ms_per_row: float
    rows: int
    own_tokens: int
    prefix_tokens: int


def main(file: str, overrides: list[str]) -> None:
    """Measure without and with examples in the prompt, and write the figures to a file."""
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = to_config(compose("config", ["logger=none", *overrides]))
    backbone = load_backbone(config.model, torch.device("cpu"))
    plain, shown = (measure(config, backbone, shots) for shots in (0, SHOTS))
    figures = {
        "model": backbone.name,
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "without_shots": plain,
        "with_shots": shown | {"shots": SHOTS},
        "shots_over_none": round(shown["ms_per_row"] / plain["ms_per_row"], 2),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    Path(file).write_text(json.dumps(figures, indent=2) + "\n")


def measure(config: Config, backbone: Backbone, shots: int) -> Figures:
    """Run each batch with sums and without, one after the other."""
    config.task.shots = shots
    task, model = build_task(config.task, config.seed), backbone.model
    sharing = prefix_sharing_of(model, config.share_prefix)
    reader = Reader(backbone.tokenizer, backbone.context_length, sharing=sharing)
    size = batch_tokens(config, task, backbone)
    batches = reader.calibration(
        task, config.calibration.tokens, size, config.seed, rows=None, share=True
    )
    needs = get_projection("loss_aware").needs
    module = CalibrationModule(
        model, needs=needs, answers=config.calibration.answers, weighting=needs.weighting
    )
    both_ways(backbone, batches[-1], config)  # Warm up.
    passes, whole = list[float](), list[float]()
    for batch in batches:
        start = time.perf_counter()
        both_ways(backbone, batch, config)
        middle = time.perf_counter()
        module.predict_step(batch)
        passes.append(middle - start)
        whole.append(time.perf_counter() - middle)
    rows = sum(len(batch.input_ids) for batch in batches)
    ratios = [own / without for own, without in zip(whole, passes, strict=True)]
    return {
        "over_passes": round(statistics.median(ratios), 2),
        "ms_per_row": round(1e3 * sum(whole) / rows, 1),
        "rows": rows,
        "own_tokens": sum(b.tokens - len(b.prefix) * len(b.input_ids) for b in batches),
        "prefix_tokens": len(batches[0].prefix),
    }


def both_ways(backbone: Backbone, batch: TokenBatch, config: Config) -> None:
    """A forward and a backward pass from the loss of calibration, without sums."""
    targets = as_targets(batch)
    keep = trailing_positions(targets >= 0)
    with torch.enable_grad(), with_input_gradients(backbone.model):
        logits = batch_logits(backbone.model, batch, keep)
        wanted, answers = targets[:, -keep:], config.calibration.answers
        answer_loss(logits, wanted, answers, batch.input_ids, config.seed).backward()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
