"""Batches give the scores of single examples, and no row is lost or counted twice."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from token_helpers import RAGGED, make_examples, make_model, make_tokenizer
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sieve.data.batches import batches_of_rank, bucket
from sieve.data.calibration_rows import calibration_batches
from sieve.data.choices import (
    ScoringBatch,
    choice_logprobs,
    count_vocabulary,
    scoring_batches,
)
from sieve.data.encoding import encode_examples
from sieve.tasks import Example, TaskConfig, build_task

CASES = {
    "single": make_examples(" positive", " negative"),
    "multiple": make_examples(" very good and bad", " very bad", " who was it"),
    "alike": make_examples(" good", " good and", " good and bad", " good or bad"),
    "ragged": RAGGED,
}


@torch.inference_mode()
def batched(model: PreTrainedModel, batches: Sequence[ScoringBatch]) -> dict[int, Tensor]:
    """Example -> log-likelihoods of its choices."""
    logprobs: dict[int, Tensor] = {}
    for batch in batches:
        logits = model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            logits_to_keep=batch.keep,
        ).logits
        for index, row in zip(batch.examples.tolist(), choice_logprobs(logits, batch), strict=True):
            assert index not in logprobs
            logprobs[index] = row
    return logprobs


@torch.inference_mode()
def reference(
    model: PreTrainedModel, example: Example, tokenizer: PreTrainedTokenizerBase
) -> list[float]:
    """One choice at a time, no padding, all logits, the whole text."""
    (encoded,) = encode_examples([example], tokenizer)
    totals = []
    for choice in encoded.choices:
        ids = torch.tensor([encoded.prefix + choice])
        logprobs = model(input_ids=ids).logits[0].float().log_softmax(-1)
        places = range(len(encoded.prefix) - 1, ids.shape[1] - 1)
        totals.append(sum(float(logprobs[p, ids[0, p + 1]]) for p in places))
    return totals


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("merge", [False, True])
def test_batched_scores_equal_scores_of_single_choices(kind: str, case: str, merge: bool) -> None:
    tokenizer, model = make_tokenizer(merge_across_words=merge), make_model(kind)
    examples = CASES[case]
    logprobs = batched(model, scoring_batches(examples, tokenizer, batch_tokens=120))
    assert sorted(logprobs) == list(range(len(examples)))
    for index, example in enumerate(examples):
        expected = torch.tensor(reference(model, example, tokenizer))
        count = len(example.choices)
        torch.testing.assert_close(logprobs[index][:count], expected, atol=1e-5, rtol=1e-5)
        assert (logprobs[index][count:] == float("-inf")).all()
        assert logprobs[index].dtype == torch.float32


@pytest.mark.parametrize("unit", ["tokens", "characters", "bytes"])
def test_normalized_scores_are_divided_by_the_size_of_the_answer(unit: str) -> None:
    tokenizer, model = make_tokenizer(), make_model("llama")
    total = batched(model, scoring_batches(RAGGED, tokenizer, 500))
    mean = batched(model, scoring_batches(RAGGED, tokenizer, 500, normalize=unit))
    lengths = {
        "tokens": [[len(c) for c in e.choices] for e in encode_examples(RAGGED, tokenizer)],
        "characters": [[len(c.removeprefix(" ")) for c in e.choices] for e in RAGGED],
        "bytes": [[len(c.removeprefix(" ").encode()) for c in e.choices] for e in RAGGED],
    }[unit]
    for index, row in enumerate(lengths):
        expected = total[index][: len(row)] / torch.tensor(row)
        torch.testing.assert_close(mean[index][: len(row)], expected)


def test_logits_of_the_wrong_shape_are_refused() -> None:
    (batch,) = scoring_batches(RAGGED, make_tokenizer(), 500)
    with pytest.raises(ValueError, match="pass logits_to_keep=keep"):
        choice_logprobs(torch.zeros(len(batch.input_ids), batch.keep + 1, 320), batch)


def test_single_token_labels_cost_one_row_and_one_position_each() -> None:
    tokenizer = make_tokenizer()
    examples = make_examples(" a", " b")
    texts = [example.choices for example in encode_examples(examples, tokenizer)]
    labels = sorted({choice[:1] for choices in texts for choice in choices})
    assert len(labels) == 1, "both start with the space"
    examples = make_examples("a", "b", count=5)
    (batch,) = scoring_batches(examples, tokenizer, 1000)
    assert batch.keep == 1 and len(batch.input_ids) == len(batch.positions) == 5
    assert batch.lengths.tolist() == [[1, 1]] * 5


@pytest.mark.parametrize("batch_tokens", [1, 40, 100, 10_000])
def test_each_example_is_in_one_batch_of_at_most_batch_tokens(batch_tokens: int) -> None:
    examples = CASES["multiple"] + CASES["ragged"]
    batches = scoring_batches(examples, make_tokenizer(), batch_tokens)
    seen = [index for batch in batches for index in batch.examples.tolist()]
    assert sorted(seen) == list(range(len(examples)))
    for batch in batches:
        assert batch.input_ids.numel() <= batch_tokens or len(batch.examples) == 1
        assert [examples[i].answer for i in batch.examples] == batch.answers.tolist()
    widths = [batch.input_ids.shape[1] for batch in batches]
    assert widths == sorted(widths, reverse=True)


def test_batches_are_padded_on_the_left_and_positions_start_at_the_text() -> None:
    (batch,) = scoring_batches(CASES["single"], make_tokenizer(), 10_000)
    for mask, positions in zip(batch.attention_mask, batch.position_ids, strict=True):
        length = int(mask.sum())
        assert mask.tolist() == [0] * (len(mask) - length) + [1] * length
        assert positions[-length:].tolist() == list(range(length))


def test_buckets_keep_padding_small() -> None:
    sizes = [(1, length) for length in range(10, 210)] * 3
    groups = bucket(sizes, 2000)
    padded = sum(len(group) * max(sizes[i][1] for i in group) for group in groups)
    assert padded < 1.15 * sum(length for _, length in sizes)
    assert all(len(group) * sizes[group[0]][1] <= 2000 for group in groups)


def test_ranks_split_the_batches_without_overlap() -> None:
    batches = scoring_batches(CASES["multiple"], make_tokenizer(), 60)
    assert len(batches) >= 4
    shares = [batches_of_rank(batches, rank, 3) for rank in range(3)]
    dealt = [index for share in shares for batch in share for index in batch.examples.tolist()]
    assert sorted(dealt) == list(range(len(CASES["multiple"])))
    assert batches_of_rank(batches, 0, 1) == batches


def test_calibration_rows_are_prompt_and_right_answer_without_its_last_token() -> None:
    tokenizer, examples = make_tokenizer(), CASES["multiple"]
    expected = {e.answer_row(): e.choices[e.answer] for e in encode_examples(examples, tokenizer)}
    seen = []
    for batch in calibration_batches(examples, tokenizer, None, 70, seed=0):
        assert batch.input_ids.numel() <= 70
        assert not (batch.answer_mask & (batch.attention_mask == 0)).any()
        for ids, mask, answer, targets in zip(
            batch.input_ids, batch.attention_mask, batch.answer_mask, batch.targets, strict=True
        ):
            row = tuple(ids[mask.bool()].tolist())
            assert tuple(targets[answer].tolist()) == expected[row]
            assert targets[~answer].unique().tolist() == [-100]
            # Each masked position predicts the next token of the row, the last one the answer's.
            assert (ids[1:][answer[:-1]] == targets[:-1][answer[:-1]]).all()
            seen.append(row)
    assert sorted(seen) == sorted(expected)


def test_calibration_stops_at_the_row_that_reaches_the_limit() -> None:
    tokenizer, examples = make_tokenizer(), make_examples(" positive", " negative", count=9)
    lengths = [len(e.answer_row()) for e in encode_examples(examples, tokenizer)]
    limit = sum(lengths) // 2
    batches = calibration_batches(examples, tokenizer, limit, 60, seed=3)
    taken = sorted(n for batch in batches for n in batch.attention_mask.sum(1).tolist())
    assert limit <= sum(taken) < limit + max(lengths)
    assert sum(batch.tokens for batch in batches) == sum(taken)


def test_calibration_rows_depend_on_the_seed_only() -> None:
    tokenizer, examples = make_tokenizer(), make_examples(" positive", " negative", count=9)

    def rows(seed: int) -> list[list[int]]:
        batches = calibration_batches(examples, tokenizer, 60, 50, seed)
        return [row for batch in batches for row in batch.input_ids.tolist()]

    assert rows(0) == rows(0)
    assert len({str(rows(seed)) for seed in range(5)}) > 1


def test_all_tensors_of_a_batch_move_to_a_device() -> None:
    (batch,) = scoring_batches(RAGGED, make_tokenizer(), 500)
    moved = batch.to("meta")
    assert moved.input_ids.is_meta and moved.slots.is_meta and moved.keep == batch.keep
    assert not batch.input_ids.is_meta


@pytest.mark.slow
@pytest.mark.shared
def test_a_trained_model_reads_its_task_as_well_as_stated(shared: Path, tmp_path: Path) -> None:
    path = shared / "models" / "reader-6m"
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    config = TaskConfig(
        name="sst2",
        prompt="Review: {text}\nSentiment:",
        labels=["negative", "positive"],
        data_dir=str(shared / "data" / "sst2"),
        cache_dir=str(tmp_path),
    )
    examples = build_task(config, 0).splits["test"][:300]
    found = batched(model, scoring_batches(examples, tokenizer, 4096))
    right = [int(found[i].argmax()) == e.answer for i, e in enumerate(examples)]
    # 0.807 is the accuracy stated for the first 1,000 rows.
    assert abs(sum(right) / 300 - 0.807) < 0.03


@pytest.mark.parametrize("case", CASES)
def test_the_vocabulary_of_a_task_counts_distinct_tokens_of_choices_and_rows(case: str) -> None:
    tokenizer, examples = make_tokenizer(), CASES[case]
    encoded = encode_examples(examples, tokenizer)
    answers = {token for e in encoded for choice in e.choices for token in choice}
    prompts = {token for e in encoded for token in e.prefix}
    counts = count_vocabulary(scoring_batches(examples, tokenizer, 64))
    assert counts["answers"] == len(answers)
    # Rows also contain the tokens of answers, except their last ones.
    assert len(prompts) <= counts["prompts"] <= len(prompts | answers)
    assert count_vocabulary([]) == {"answers": 0, "prompts": 0}
