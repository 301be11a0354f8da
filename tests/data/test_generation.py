"""Written answers equal greedy decoding, end at stop strings, and are scored by the metric."""

from dataclasses import replace

import pytest
import torch
from models import tiny_gpt2, tiny_llama, tiny_mixtral, tiny_tokenizer
from sieved import banked, uniform
from written import EXAMPLES, writer

import sieve
from sieve.data.generation import writing_batches
from sieve.evaluation.evaluation import score
from sieve.tasks.example import Example
from sieve.tasks.writing import Writing


def alone(model, prompt: str, tokens: int = 6) -> list[int]:
    """Greedy continuation by the largest logit of the whole text, one token at a time."""
    ids = tiny_tokenizer()(prompt).input_ids
    start = len(ids)
    for _ in range(tokens):
        with torch.no_grad():
            ids = [*ids, int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())]
    return ids[start:]


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2, tiny_mixtral])
def test_padded_rows_are_answered_as_single_rows(build):
    model, found = build(), {}
    batches = writing_batches(EXAMPLES, writer(), batch_tokens=150)
    assert len(batches) > 1 and max(len(batch.examples) for batch in batches) > 1
    for batch in batches:
        written = batch.writer.write(model, batch.input_ids, batch.attention_mask)
        found |= dict(zip(batch.examples.tolist(), written, strict=True))
    for index, example in enumerate(EXAMPLES):
        assert list(found[index]) == alone(model, example.prompt), index


def test_the_models_own_penalties_are_ignored():
    model = tiny_llama()
    own = model.generation_config
    own.repetition_penalty, own.no_repeat_ngram_size, own.min_new_tokens = 1.9, 1, 3
    (batch,) = writing_batches([EXAMPLES[3]], writer())
    written = batch.writer.write(model, batch.input_ids, batch.attention_mask)[0]
    assert list(written) == alone(model, EXAMPLES[3].prompt)
    assert model.generation_config is own


def test_writing_ends_at_an_end_token_and_at_a_stop_string():
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    prompt = EXAMPLES[3].prompt
    ids = alone(model, prompt, 6)
    model.generation_config.eos_token_id = ids[2]
    (batch,) = writing_batches([EXAMPLES[3]], writer())
    assert list(batch.writer.write(model, batch.input_ids, batch.attention_mask)[0]) == ids[:2]
    model.generation_config.eos_token_id = None
    text = tokenizer.decode(ids)
    stop = tokenizer.decode(ids[3:4])
    (batch,) = writing_batches([EXAMPLES[3]], writer(stop=(stop,)))
    written = batch.writer.write(model, batch.input_ids, batch.attention_mask)[0]
    assert len(written) <= 4 and batch.writer.read(written) == text[: text.index(stop)]


def test_a_stop_string_across_two_tokens_ends_the_answer():
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    ids = alone(model, EXAMPLES[0].prompt, 6)
    parts = [tokenizer.decode([i]) for i in ids]
    stop = next((a[-1] + b[0] for a, b in zip(parts[1:], parts[2:], strict=False)), "")
    (batch,) = writing_batches([EXAMPLES[0]], writer(stop=(stop,)))
    written = batch.writer.write(model, batch.input_ids, batch.attention_mask)[0]
    assert stop and stop not in batch.writer.read(written) and len(written) < 6


def test_the_value_is_of_the_extracted_answer_and_a_missing_one_is_minus_one():
    model = tiny_llama()
    text = tiny_tokenizer().decode(alone(model, EXAMPLES[0].prompt))
    example = Example(EXAMPLES[0].prompt, (" yes",), 0, references=(text.strip(),))
    right = score(model, writing_batches([example], writer()))
    assert right.values.tolist() == [1] and right.predicted.tolist() == [0]
    never = score(model, writing_batches([example], writer(extract="zork")))
    assert never.values.tolist() == [0] and never.predicted.tolist() == [-1]
    part = score(model, writing_batches([example], writer(extract=r"(?s)^.*$")))
    assert part.values.tolist() == [1]


@pytest.mark.parametrize("shots", ["", "question? yes. "])
def test_the_divergence_is_how_much_less_likely_the_dense_answers_are(shots):
    model = tiny_llama()
    bank = banked(model)
    batches = writing_batches(EXAMPLES, writer(), batch_tokens=150)
    longer = [replace(e, prompt=shots * (1 + i % 2) + e.prompt) for i, e in enumerate(EXAMPLES)]
    reference: dict = {}
    dense_batches = writing_batches(longer, writer(), batch_tokens=200) if shots else batches
    dense = score(model, dense_batches, reference=reference)
    assert dense.divergences.tolist() == [0] * len(EXAMPLES)
    answers = [alone(model, example.prompt) for example in longer]

    def likelihood(prompt: str, answer: list[int]) -> float:
        ids = tiny_tokenizer()(prompt).input_ids
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids + answer])).logits[0, len(ids) - 1 : -1]
        return float(logits.log_softmax(-1)[range(len(answer)), answer].sum())

    before = [likelihood(e.prompt, a) for e, a in zip(longer, answers, strict=True)]
    with sieve.apply(model, bank, uniform(bank, 0.3)):
        pruned = score(model, batches, reference=reference)
        after = [likelihood(e.prompt, a) for e, a in zip(EXAMPLES, answers, strict=True)]
    expected = [max(0.0, b - a) for b, a in zip(before, after, strict=True)]
    assert max(expected) > 0.1
    assert pruned.divergences.tolist() == pytest.approx(expected, abs=1e-3)
    below = {index: (answer, likely - 50) for index, (answer, likely) in reference.items()}
    assert score(model, batches, reference=below).divergences.tolist() == [0] * len(EXAMPLES)


def test_the_loss_is_of_the_first_right_answer():
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    found = score(model, writing_batches(EXAMPLES, writer(), batch_tokens=150))
    choices = [Example(e.prompt, e.choices + (" no",), 0) for e in EXAMPLES]
    expected = score(model, sieve.scoring_batches(choices, tokenizer))
    assert found.losses.tolist() == pytest.approx(expected.losses.tolist(), abs=1e-4)


def test_prompt_and_answer_must_fit_the_context_together():
    with pytest.raises(ValueError, match="longer than the model's context"):
        writing_batches(EXAMPLES, writer(max_new_tokens=20), context_length=40)
    with pytest.raises(ValueError, match="task.max_new_tokens is 40, expected less than"):
        writing_batches(EXAMPLES, writer(max_new_tokens=40), context_length=40)


@pytest.mark.parametrize(
    ("text", "settings", "expected"),
    [
        ("so it is 4, or 5", {"extract": r"\d"}, "4"),
        ("so it is 4, or 5", {"extract": r"\d", "last": True}, "5"),
        ("#### 42\nmore", {"extract": r"#### (\d+)"}, "42"),
        ("none", {"extract": r"#### (\d+)"}, None),
        ("  plain ", {}, "plain"),
    ],
)
def test_an_answer_is_extracted_from_a_text(text, settings, expected):
    assert Writing(**settings).extract_from(text) == expected
    assert Writing(stop=("\n", "END")).cut("a END b\nc") == "a "
    assert Writing(extract=r"#### (\d+)").targets(["so #### 7", "8"]) == ["7", "8"]
