"""A perplexity predicts every token once; a long text is read in windows."""

import numpy as np
import pytest
import torch
from models import tiny_gpt2, tiny_llama, tiny_tokenizer

from sieve.data import prefix
from sieve.data.calibration_rows import calibration_batches
from sieve.data.encoding import encode_examples
from sieve.data.text import text_batches
from sieve.evaluation.evaluation import score
from sieve.tasks.example import Example
from sieve.tasks.metrics import metric_of

TEXTS = [Example("", (" ".join(["the good movie"] * (1 + 2 * i)) + f" {i}",), 0) for i in range(6)]
METRIC = metric_of("perplexity", None)


@torch.no_grad()
def loss(model, ids: list[int], start: int = 1) -> float:
    logits = model(input_ids=torch.tensor([ids[:-1]])).logits[0].log_softmax(-1)
    return -float(sum(logits[i - 1, ids[i]] for i in range(start, len(ids))))


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
def test_batched_perplexity_equals_the_perplexity_of_single_texts(build):
    model, tokenizer = build(), tiny_tokenizer()
    batches = text_batches(TEXTS, tokenizer, METRIC, batch_tokens=60, chat="never", delimiter="")
    assert len(batches) > 1
    found = score(model, batches)
    rows = [[1, *tokenizer(example.choices[0]).input_ids] for example in TEXTS]
    expected = [loss(model, row) for row in rows]
    assert found.losses.tolist() == pytest.approx(expected, rel=1e-4)
    total = sum(len(row) - 1 for row in rows)
    assert found.accuracy == pytest.approx(np.exp(sum(expected) / total), rel=1e-4)


@pytest.mark.parametrize(
    ("unit", "count"), [("word", lambda t: len(t.split())), ("byte", lambda t: len(t.encode()))]
)
def test_a_perplexity_can_be_per_word_or_per_byte(unit, count):
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    found = score(model, text_batches(TEXTS, tokenizer, METRIC, unit=unit))
    total = sum(count(example.choices[0]) for example in TEXTS)
    assert found.accuracy == pytest.approx(np.exp(found.losses.sum() / total), rel=1e-6)


def test_a_long_text_is_read_in_windows_that_predict_each_token_once():
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    (encoded,) = encode_examples(TEXTS[5:], tokenizer, chat="never", delimiter="")
    ids = [*encoded.prefix, *encoded.choices[0]]
    limit = 10
    windows = encoded.windows(limit)
    assert [t for w in windows for t in w.choices[0]] == list(encoded.choices[0])
    assert all(len(window.answer_row()) <= limit for window in windows)
    assert len(windows[-1].answer_row()) == limit, "the last window repeats earlier tokens"
    expected = 0.0
    for start in range(1, len(ids), limit):
        end = min(start + limit, len(ids))
        first = max(0, end - 1 - limit)
        expected += loss(model, ids[first:end], start - first)
    found = score(model, text_batches(TEXTS[5:], tokenizer, METRIC, context_length=limit))
    assert found.losses[0] == pytest.approx(expected, rel=1e-4)
    assert found.values[0] == pytest.approx(-expected / (len(ids) - 1), rel=1e-4)


def test_a_long_text_needs_several_forward_passes(monkeypatch):
    model, tokenizer, seen = tiny_llama(), tiny_tokenizer(), []
    whole = score(model, text_batches(TEXTS[5:], tokenizer, METRIC, 10_000, context_length=10))
    forward = prefix.forward
    monkeypatch.setattr(
        prefix, "forward", lambda m, b, k: seen.append(b["input_ids"].numel()) or forward(m, b, k)
    )
    parts = score(model, text_batches(TEXTS[5:], tokenizer, METRIC, 20, context_length=10))
    assert len(seen) > 1 and max(seen) <= 20
    assert parts.losses.tolist() == pytest.approx(whole.losses.tolist(), rel=1e-5)


def test_each_window_of_a_long_text_is_a_calibration_row():
    tokenizer = tiny_tokenizer()
    batches = calibration_batches(TEXTS, tokenizer, rolling=True, context_length=10)
    assert max(batch.input_ids.shape[1] for batch in batches) <= 10
    encoded = encode_examples(TEXTS, tokenizer)
    wanted = sum(int(batch.answer_mask.sum()) for batch in batches)
    assert wanted == sum(len(one.choices[0]) for one in encoded)


def test_the_divergence_is_the_rise_of_the_loss():
    tokenizer, reference = tiny_tokenizer(), {}
    batches = text_batches(TEXTS, tokenizer, METRIC, batch_tokens=60)
    dense = score(tiny_llama(), batches, reference=reference)
    other = score(tiny_llama(initializer_range=0.5), batches, reference=reference)
    worse = score(tiny_gpt2(), batches, reference=reference)
    assert dense.divergences.tolist() == other.divergences.tolist() == [0] * len(TEXTS)
    rise = np.maximum(0, dense.values - worse.values)
    assert worse.divergences.tolist() == pytest.approx(rise.tolist()) and rise.max() > 0
