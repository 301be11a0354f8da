"""Rows that share a prefix give the same moments and refits as whole rows, from fewer tokens."""

import math

import pytest
import torch
from models import FAMILIES, build, tiny_llama, tiny_mixtral, tiny_tokenizer
from sieved import uniform
from torch import Tensor
from transformers import PreTrainedModel

from sieve.bank.bank import fit
from sieve.calibration.calibration import CalibrationModule
from sieve.data.batches import TokenBatch, as_inputs
from sieve.data.calibration_rows import calibration_batches
from sieve.data.sharing import prefix_sharing_of
from sieve.evaluation.divergence import answer_logprobs
from sieve.projections.moments import Needs
from sieve.refit.refit import refit
from sieve.refit.token_weights import token_weights
from sieve.tasks.example import Example

SHOTS = "question: is the movie good? answer: yes question: is a film bad? answer: no "
EXAMPLES = [
    Example(SHOTS + f"question: {'the ' * (i % 4)}film {i}? answer:", (" good", " bad"), i % 2)
    for i in range(40)
]
WINDOWED = {"mistral", "gemma2", "gemma3"}
ALL = FAMILIES | {"mixtral": tiny_mixtral}


def built(name: str) -> PreTrainedModel:
    """A tiny model whose attention window, if it has one, is longer than any row."""
    return ALL[name](**({"sliding_window": 120} if name in WINDOWED else {}))


def pair(model: PreTrainedModel, rows: int, batch_tokens: int = 200) -> list[list[TokenBatch]]:
    """Batches that share their prefix, and batches of the same whole rows."""
    sharing, tokenizer = prefix_sharing_of(model), tiny_tokenizer()
    batches = [
        calibration_batches(
            EXAMPLES, tokenizer, batch_tokens=tokens, max_rows=rows, sharing=own_sharing
        )
        for own_sharing, tokens in ((sharing, batch_tokens), (None, 100 * batch_tokens))
    ]
    assert all(len(batch.prefix) > 20 for batch in batches[0])
    return batches


def sums(model: PreTrainedModel, batches: list[TokenBatch], **options) -> dict[str, Tensor]:
    """The sums of every metric of a calibration, by number and name."""
    module = CalibrationModule(model, **options)
    for batch in batches:
        module.predict_step(batch)
    collector = module.collector
    activations = [*collector.metrics, *collector.magnitudes]
    # Of gradients, vectors are not counted but rows.
    wanted = [{"second", "total", "absolute", "mass"}] * len(activations)
    wanted += [{"second", "power"}] * len(collector.gradients)
    return {
        f"{index} {name}": value.double()
        for index, metric in enumerate([*activations, *collector.gradients])
        for name, value in metric.sums().items()
        if name in wanted[index]
    }


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    for name, value in theirs.items():
        atol = 1e-4 * float(value.abs().max()) if value.numel() else 0.0
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=atol, msg=name)


@pytest.mark.parametrize("name", ALL)
def test_a_shared_prefix_counts_for_all_rows_in_the_moments_of_activations(name: str) -> None:
    model, options = built(name), {"needs": Needs(input=True, magnitude=True)}
    shared, whole = pair(model, 12)
    assert_close(sums(model, shared, **options), sums(model, whole, **options))


@pytest.mark.parametrize("weighting", ["gradient", "answer", "none"])
def test_random_signs_give_the_gradient_moments_of_whole_rows_on_average(weighting: str) -> None:
    model = tiny_llama()
    options = {"needs": Needs(gradient=True), "answers": "margin", "weighting": weighting}
    shared, whole = pair(model, 2)
    drawn = [sums(model, shared, seed=seed, **options) for seed in range(8)]
    key = next(name for name in drawn[0] if name.endswith("power") and float(drawn[0][name]) > 0)
    # Two rows have equal signs or opposite ones.
    other = next(d for d in drawn if not torch.isclose(d[key], drawn[0][key], rtol=1e-6))
    average = {name: (value + other[name]) / 2 for name, value in drawn[0].items()}
    assert_close(average, sums(model, whole, **options))


def test_checkpointed_blocks_run_rows_whole() -> None:
    model = tiny_llama()
    options = {"needs": Needs(gradient=True), "answers": "gold", "weighting": "gradient"}
    shared, whole = pair(model, 12)
    ours = sums(model, shared, checkpointing=True, **options)
    assert_close(ours, sums(model, whole, **options))


@pytest.mark.parametrize("name", ALL)
def test_a_refit_of_a_shared_prefix_is_a_refit_of_whole_rows(name: str) -> None:
    model = built(name)
    shared, whole = pair(model, 40)
    module = CalibrationModule(model)
    for batch in whole:
        module.predict_step(batch)
    moments = module.collector.moments()
    bank = fit(model, moments, "output", "pivoted")
    rows = [whole_rows(batch) for batch in shared]
    ours, theirs = (refit(model, bank, uniform(bank, 0.3), moments, b) for b in (shared, rows))
    assert ours.kept == theirs.kept
    assert ours.before == pytest.approx(theirs.before, rel=1e-3)
    assert ours.after == pytest.approx(theirs.after, rel=0.02)
    assert ours.kept or name in ("gpt2", "mixtral"), "the refit was taken"
    for matrix in theirs.kept:
        a, b = (result.bank.factors[matrix] for result in (ours, theirs))
        product = b.u @ b.v
        torch.testing.assert_close(a.u @ a.v, product, rtol=0.02, atol=float(product.std()) * 0.02)


def whole_rows(batch: TokenBatch) -> dict[str, Tensor]:
    """The same rows without a prefix of their own."""
    return as_inputs(batch) | {"targets": batch.targets}


@pytest.mark.parametrize("layer", [0, 1])
def test_token_weights_of_a_prefix_come_first(layer: int) -> None:
    model = tiny_llama()
    shared, _ = pair(model, 1)
    name = f"model.layers.{layer}.mlp.up_proj"
    matrices = CalibrationModule(model).collector.matrices
    ours = token_weights(model, matrices, shared, answers="gold")[name]
    theirs = token_weights(model, matrices, [whole_rows(b) for b in shared], answers="gold")[name]
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-6 * float(other.max()))


def test_token_weights_in_float16_are_of_each_token_once() -> None:
    model = tiny_llama().half()
    shared, _ = pair(model, 12)
    matrices = CalibrationModule(model).collector.matrices
    for weights in token_weights(model, matrices, shared, answers="gold").values():
        for own, batch in zip(weights, shared, strict=True):
            repeated = len(batch.prefix) * (len(batch.input_ids) - 1)
            assert len(own) == batch.tokens - repeated


def test_an_expert_without_tokens_has_no_token_weights() -> None:
    model = tiny_mixtral()
    matrices = CalibrationModule(model).collector.matrices
    rows = [{"input_ids": torch.tensor([[7, 8]])}]
    weights = token_weights(model, matrices, rows)
    assert {len(own) for [own] in weights.values()} >= {0, 2}


def test_answers_of_a_shared_prefix_have_the_same_probabilities() -> None:
    model = tiny_llama()
    for batch in pair(model, 12)[0]:
        whole = answer_logprobs(model, whole_rows(batch))
        torch.testing.assert_close(answer_logprobs(model, batch), whole, rtol=1e-4, atol=1e-4)


def test_only_the_rows_own_tokens_are_counted() -> None:
    sharing, tokenizer = prefix_sharing_of(tiny_llama()), tiny_tokenizer()
    shared = calibration_batches(EXAMPLES, tokenizer, 60, sharing=sharing)
    whole = calibration_batches(EXAMPLES, tokenizer, 60)
    own = [int(b.attention_mask.sum()) - len(b.prefix) * len(b.input_ids) for b in shared]
    assert 60 <= sum(own) < 60 + 20
    assert sum(len(b.input_ids) for b in shared) > 2 * sum(len(b.input_ids) for b in whole)


def test_rows_run_whole_under_hooks_where_a_layer_reads_the_cached_prefix_again() -> None:
    ranks = {"q_lora_rank": 8, "kv_lora_rank": 8, "v_head_dim": 8}
    heads = {"qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "num_attention_heads": 4}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    model = build("DeepseekV3", first_k_dense_replace=1, **ranks, **heads, **sizes)
    sharing = prefix_sharing_of(model)
    assert sharing and sharing.longest() == math.inf
    batches = calibration_batches(EXAMPLES, tiny_tokenizer(), sharing=sharing)
    assert all(not batch.prefix for batch in batches)
