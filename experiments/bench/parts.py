"""Ratios of calibration, search, storage forms and pruned models to the work they are part of."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import sieve
from experiments.bench.timing import ratio
from experiments.figures import Number, number
from sieve.bank import solver
from sieve.bank.switch import Switch
from sieve.calibration.calibration import CalibrationModule
from sieve.data.choices import ScoringBatch, encoded_batches
from sieve.data.encoding import EncodedExample
from sieve.data.sharing import prefix_sharing_of
from sieve.evaluation.evaluation import score
from sieve.evaluation.speed import compare_speed
from sieve.projections import get_projection
from sieve.search.lines import LEVELS, uniform_genome
from sieve.tasks import Example
from sieve.tasks.almanac import almanac_rows

EMBEDDED = Path(sieve.__file__).parent / "assets/embedded"
SPEED_LEVELS = (0.75, 0.5, 0.25, 0.1)
STORAGE_LEVELS = (0.75, 0.2)
OWN, ROWS = 30, 200  # tokens of a row beside its prefix, rows


def load(path: str) -> tuple[Any, Any]:
    """Model in float32 and tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    return model.requires_grad_(False), AutoTokenizer.from_pretrained(path)


def review_examples() -> list[Example]:
    """3,000 rendered rows of the Almanac reviews task."""
    words = (" negative", " positive")
    return [
        Example(f"Review: {row['text']}\nSentiment:", words, int(str(row["label"])))
        for row in almanac_rows("reviews")
    ]


def ratios(model: Any, tokenizer: Any, wide: Any, repeats: int) -> dict[str, Number]:
    """Every ratio of the parts, by name; that of the fit for a wider model."""
    examples = review_examples()
    batches = sieve.calibration_batches(examples[:500], tokenizer)
    found = calibration_ratios(model, batches, repeats)
    found["fit"] = fit_ratio(wide, batches, repeats)
    moments = sieve.calibrate(model, batches)
    bank = sieve.fit(model, moments)
    found["switch"] = switch_ratio(model, bank, tokenizer, examples[:1000], repeats)
    scoring = sieve.scoring_batches(examples[:64], tokenizer)
    found["shared_blocks"] = shared_blocks_ratio(model, bank, scoring, repeats)
    found["shared_prefix"] = prefix_ratio(model, 0.5, repeats)
    pivoted = sieve.fit(model, moments, storage="pivoted")
    for level in STORAGE_LEVELS:
        for length in (128, 1):
            name = f"pivoted_{level:g}_{length}"
            found[name] = storage_ratio(model, (pivoted, bank), level, length, repeats)
    return found


def calibration_ratios(model: Any, batches: Sequence[Any], repeats: int) -> dict[str, Number]:
    """Moments over a plain forward pass, without and with gradients."""
    needs = get_projection("loss_aware").needs
    modules = {
        "moments": CalibrationModule(model),
        "loss_aware_moments": CalibrationModule(model, None, needs, "margin", needs.weighting),
    }

    @torch.no_grad()
    def forward() -> None:
        for batch in batches:
            model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                position_ids=batch.position_ids,
                use_cache=False,
            )

    def collect(module: CalibrationModule) -> None:
        for batch in batches:
            module.predict_step(batch)

    return {n: ratio(partial(collect, m), forward, repeats) for n, m in modules.items()}


def switch_ratio(
    model: Any, bank: Any, tokenizer: Any, examples: Sequence[Example], repeats: int
) -> Number:
    """Changing a whole genome over the evaluation of a selection split."""
    objective = sieve.Objective(model, bank, sieve.scoring_batches(examples, tokenizer))
    genomes = [uniform_genome(bank, LEVELS, index) for index in (3, 10)]

    def switch() -> None:
        for genome in genomes:
            objective.switch.to(genome)
        objective.switch.restore()

    def evaluate() -> None:
        objective.evaluated.clear()
        objective.score(genomes[1])

    found = ratio(switch, evaluate, repeats)
    return number(*(found[end] / 3 for end in ("value", "low", "high")), digits=5)


def shared_blocks_ratio(model: Any, bank: Any, batches: Any, repeats: int) -> Number:
    """Genomes that differ from one in a single matrix: from the block that differs over whole."""
    start, step = uniform_genome(bank, LEVELS, 10), len(bank.names) // 12
    genomes = [
        replace(start, indexes=(*start.indexes[:i], 11, *start.indexes[i + 1 :]))
        for i in range(0, len(bank.names), step)
    ]
    whole, shared = (sieve.Objective(model, bank, batches) for _ in range(2))
    shared.share_blocks(start)

    def evaluate(objective: sieve.Objective) -> None:
        objective.evaluated.clear()
        for genome in genomes:
            objective.score(genome)

    found = ratio(partial(evaluate, shared), partial(evaluate, whole), repeats)
    if shared.evaluated != whole.evaluated:
        raise RuntimeError("shared blocks gave other scores than whole genomes.")
    return found


def fit_ratio(model: Any, batches: Sequence[Any], repeats: int) -> Number:
    """Fitting a block per thread over one matrix after another by all threads."""
    moments = sieve.calibrate(model, batches, projection="loss_aware")
    fit = partial(sieve.fit, model, moments, "loss_aware")

    def one_by_one() -> None:
        with patch.object(solver, "AT_ONCE", 0):
            fit()

    return ratio(fit, one_by_one, repeats)


def prefix_ratio(model: Any, part: float, repeats: int, rows: int = ROWS) -> Number:
    """Scoring rows of which a part is the same, run once over run in every row."""
    shared, plain = prefix_batches(model, part, rows)
    return ratio(partial(score, model, shared), partial(score, model, plain), repeats)


def prefix_batches(
    model: Any, part: float, rows: int
) -> tuple[list[ScoringBatch], list[ScoringBatch]]:
    """Rows of random tokens with the same beginning, with and without a shared prefix."""
    generator, length = torch.Generator().manual_seed(0), round(OWN * part / (1 - part))
    size = (rows + 1, length + OWN)
    drawn = torch.randint(3, model.config.vocab_size, size, generator=generator).tolist()
    head = tuple(drawn[-1][:length])
    encoded = [EncodedExample((*head, *row[:OWN]), ((3,), (4,)), 0) for row in drawn[:-1]]
    sharing = prefix_sharing_of(model, 0.01)
    return encoded_batches(encoded, 0, sharing=sharing), encoded_batches(encoded, 0)


def storage_ratio(
    model: Any, banks: tuple[Any, Any], level: float, length: int, repeats: int
) -> Number:
    """Forward passes with pivoted over plain factors of as many parameters."""
    ids = torch.arange(8 * length).reshape(8, length) % model.config.vocab_size

    @torch.inference_mode()
    def forward(switched: Switch) -> None:
        for _ in range(max(1, 256 // length)):
            switched.model(input_ids=ids, use_cache=False)

    pivoted, plain = (
        Switch(copy.deepcopy(model), bank).to(uniform_genome(bank, (1.0, level), 1))
        for bank in banks
    )
    return ratio(partial(forward, pivoted), partial(forward, plain), repeats)


def speed_by_level(model: Any, repeats: int) -> dict[str, dict[str, Number]]:
    """Speed of the model over the dense one by level: prefill of 128 tokens a row, and decoding.

    The factors are those of the weights alone, which have the shapes of the others.
    """
    batches = sieve.calibration_batches(review_examples()[:20], load(str(EMBEDDED))[1])
    moments = sieve.calibrate(model, batches, projection="svd")
    bank = sieve.fit(model, moments, "svd", "pivoted")
    switch, found = Switch(model, bank), {}
    for level in SPEED_LEVELS:
        speed = compare_speed(switch, uniform_genome(bank, (1.0, level), 1), repeats=repeats)
        found[f"{level:g}"] = {
            stage: number(value, value * (1 - spread), value * (1 + spread), digits=2)
            for stage, value, spread in (
                ("prefill", speed.prefill_ratio, speed.prefill_spread),
                ("decode", speed.decode_ratio or 1.0, speed.decode_spread or 0.0),
            )
        }
    return found
