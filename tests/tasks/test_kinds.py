"""Ranking, generation and text as tasks; shots; prompts that are shortened to fit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from models import tiny_llama, tiny_tokenizer
from task_helpers import build, make_config, message_of, rows_of, write_splits

from sieve.data.choices import choice_logprobs, scoring_batches
from sieve.data.encoding import encode_examples
from sieve.evaluation.evaluation import score
from sieve.tasks import Task, task_by_shots
from sieve.tasks.example import Example

ROWS = [
    {"question": f"q {i}", "context": "the " * i, "answer": [f"yes {i}", "no"], "label": i % 2}
    for i in range(9)
]


def folder(root: Path, *rows: Any, **changes: Any) -> Path:
    given = [dict(row) | changes for row in rows or ROWS]
    return write_splits(root / "data", train=given)


def written(root: Path, **settings: Any) -> Task:
    defaults = {"kind": "generation", "prompt": "{context}Q: {question}\nA:"}
    return build(folder(root), **(defaults | settings))


def test_calibration_uses_the_first_reference_and_all_are_right(tmp_path: Path) -> None:
    task = written(tmp_path)
    found = {e.prompt.split("Q: ")[1]: e for split in task.splits.values() for e in split}
    example = found["q 3\nA:"]
    assert example.choices == (" yes 3",) and example.references == ("yes 3", "no")
    assert task.metric.name == "exact_match" and task.report["answers"] == {}
    assert task.writing is not None and task.writing.stop == ("\n",)


@pytest.mark.parametrize("value", [[], "  ", [""]])
def test_a_row_without_an_answer_is_refused(tmp_path: Path, value: Any) -> None:
    given = folder(tmp_path, *ROWS[:5], ROWS[5] | {"answer": value})
    said = message_of(ValueError, given, kind="generation", prompt="{question}")
    assert "row 6 of train" in said and "task.answer_field" in said


def test_a_text_is_the_whole_row_and_empty_rows_are_skipped(tmp_path: Path) -> None:
    given = folder(
        tmp_path, *({"text": t} for t in ("one", "", " ", "two", "three", "one", "four"))
    )
    task = build(given, kind="perplexity", prompt="{text}")
    found = [e.choices[0] for split in task.splits.values() for e in split]
    assert sorted(found) == ["four", "one", "three", "two"], "repeats are dropped, as of prompts"
    assert task.metric.relative


def ranked(root: Path, prompt: str, **columns: Any) -> Task:
    row = {"question": "who", "options": ["anne", "bob", "cid"], **columns}
    rows = [row | {"question": f"who {i}"} for i in range(8)]
    settings = {"relevance_field": "grades"} if "grades" in columns else {}
    return build(folder(root, *rows), kind="ranking", prompt=prompt, **settings)


def test_options_are_ranked_by_their_own_likelihood(tmp_path: Path) -> None:
    task = ranked(tmp_path, "{question}", grades=[0, 2, 1])
    example = task.splits["test"][0]
    assert example.choices == (" anne", " bob", " cid") and example.answer == 1
    assert example.relevance == (0, 2, 1) and not example.contexts
    assert task.metric.name == "reciprocal_rank"


def test_options_are_ranked_by_the_likelihood_of_the_word_for_relevant(tmp_path: Path) -> None:
    task = ranked(tmp_path, "{question}: {option}?", answer_idx=[0, 2])
    example = task.splits["test"][0]
    assert example.choices == (" yes",) * 3 and example.relevance == (1, 0, 1)
    assert [c.split(": ")[1] for c in example.contexts] == ["anne?", "bob?", "cid?"]
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    (batch,) = scoring_batches([example], tokenizer)
    with torch.no_grad():
        logits = model(batch.input_ids, batch.attention_mask).logits
        found = choice_logprobs(logits[:, -batch.keep :], batch)[0]
        for index, context in enumerate(example.contexts):
            ids = tokenizer(context).input_ids
            (yes,) = tokenizer(" yes").input_ids
            alone = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)[yes]
            assert found[index] == pytest.approx(float(alone), abs=1e-4)
    value = score(model, scoring_batches([example], tokenizer, row_metric=task.row_metric))
    first = int(found.argmax()) in (0, 2)
    assert value.values[0] == (1 if first else 1 / 2)


@pytest.mark.parametrize("grades", [[0, 0, 0], [1, 2], "good", [1, "x", 2]])
def test_grades_that_do_not_fit_the_options_are_refused(tmp_path: Path, grades: Any) -> None:
    rows = [{"q": f"{i}", "options": ["a", "b", "c"], "grades": grades} for i in range(5)]
    said = message_of(
        ValueError, folder(tmp_path, *rows), kind="ranking", prompt="{q}", relevance_field="grades"
    )
    assert "row 1 of train has 3 options" in said


@pytest.mark.parametrize("shots", [1, 4])
def test_shots_are_calibration_rows_shown_before_every_prompt(tmp_path: Path, shots: int) -> None:
    parts = {"train": rows_of("train", 20), "validation": rows_of("val"), "test": rows_of("test")}
    given = write_splits(tmp_path / "data", **parts)
    plain, task = build(given), build(given, shots=shots)
    shown = task.preamble.split("\n\n")[:-1]
    asked = {e.prompt + e.choices[e.answer] for e in plain.splits["calibration"]}
    assert len(shown) == shots and set(shown) <= asked
    assert sum(text.endswith("positive") for text in shown) == shots // 2, "labels in turn"
    for role in ("selection", "test"):
        before = [task.preamble + e.prompt for e in plain.splits[role]]
        assert [e.prompt for e in task.splits[role]] == before
    assert len(task.splits["calibration"]) == len(plain.splits["calibration"]) - shots
    bare = [e.prompt.removeprefix(task.preamble) for e in task.splits["calibration"]]
    assert not any(text.startswith(tuple(bare)) for text in shown)


def test_a_shot_of_a_ranking_shows_the_relevant_option(tmp_path: Path) -> None:
    rows = [{"q": f"{i}", "options": ["a", "b"], "answer_idx": i % 2} for i in range(8)]
    given = folder(tmp_path, *rows)
    task = build(given, kind="ranking", prompt="{q} {option}?", shots=1, preamble="Rank.\n")
    example = task.splits["test"][0]
    assert task.preamble.startswith("Rank.\n") and task.preamble.endswith("? yes\n\n")
    assert all(context.startswith(task.preamble) for context in example.contexts)


def test_more_shots_than_rows_are_refused(tmp_path: Path) -> None:
    parts = {"train": rows_of("train"), "validation": rows_of("val"), "test": rows_of("test")}
    said = message_of(ValueError, write_splits(tmp_path / "data", **parts), shots=6)
    assert "task.shots is 6, expected fewer than the 6 calibration rows" in said


def test_shots_that_a_model_must_measure_are_refused_without_one(tmp_path: Path) -> None:
    parts = {"train": rows_of("train"), "validation": rows_of("val"), "test": rows_of("test")}
    said = message_of(ValueError, write_splits(tmp_path / "data", **parts), shots="auto")
    assert "task.shots is auto, expected a number because no model is loaded" in said


@pytest.mark.parametrize("shots", [0, 1, 4])
def test_a_task_of_any_number_of_shots_comes_from_rows_that_are_read_once(
    tmp_path: Path, shots: int
) -> None:
    parts = {"train": rows_of("train", 20), "validation": rows_of("val"), "test": rows_of("test")}
    given = write_splits(tmp_path / "data", **parts)
    settings: Any = {"preamble": "Is this review good?\n", "shots": "auto"}
    task_of = task_by_shots(make_config(given, **settings))
    (given / "train.jsonl").unlink()
    task = task_of(shots)
    write_splits(given, **parts)
    assert task == build(given, **settings | {"shots": shots})


def test_the_truncated_field_is_shortened_until_the_prompt_fits(tmp_path: Path) -> None:
    task = written(tmp_path, truncate="context", shots=1)
    examples, told = task.splits["calibration"] + task.splits["test"], list[int]()
    tokenizer = tiny_tokenizer()
    lengths = [len(e.answer_row()) for e in encode_examples(examples, tokenizer)]
    limit = max(lengths) - 5
    encoded = encode_examples(examples, tokenizer, context_length=limit, cut=told.append)
    assert told == [sum(length > limit for length in lengths)] and told[0] > 0
    for example, row, length in zip(examples, encoded, lengths, strict=True):
        text = tokenizer.decode(row.prefix)
        assert len(row.answer_row()) <= limit
        assert text.startswith(task.preamble) and text.endswith(example.prompt[-9:])
        assert (length <= limit) == (text == example.prompt)


def test_a_prompt_that_does_not_fit_even_then_is_refused(tmp_path: Path) -> None:
    task = written(tmp_path, truncate="context")
    with pytest.raises(ValueError, match="longer than the model's context.*task.truncate=FIELD"):
        encode_examples(task.splits["test"], tiny_tokenizer(), context_length=5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"extract": "("}, "task.extract is '(', which is not a regular expression"),
        ({"max_new_tokens": 0}, "task.max_new_tokens is 0, expected at least 1"),
        ({"metric": "accuracy"}, "task.metric is 'accuracy', expected one of exact_match, f1"),
        ({"kind": "perplexity", "shots": 2}, "texts have no answers to show"),
        ({"kind": "perplexity", "shots": "auto"}, "texts have no answers to show"),
        ({"shots": "many"}, "task.shots is 'many', expected one of auto"),
        ({"shots": "auto", "lm_eval": {}}, "set task.shots=0 and ++task.lm_eval.num_fewshot"),
        ({"kind": "perplexity", "unit": "line"}, "task.unit is 'line', expected one of token"),
        ({"normalize": "letters"}, "task.normalize is 'letters', expected one of none, tokens"),
    ],
)
def test_wrong_settings_are_refused(tmp_path: Path, settings: Any, said: str) -> None:
    with pytest.raises(ValueError, match=None) as caught:
        written(tmp_path, **settings)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_the_key_of_an_example_depends_on_all_that_is_scored() -> None:
    example = Example("p", (" a", " b"), 0)
    others = [
        Example("p", (" a", " b"), 0, references=("a",)),
        Example("p", (" a", " b"), 0, relevance=(1.0, 0.0)),
        Example("p", (" a", " b"), 0, contexts=("p 1", "p 2")),
    ]
    assert len({e.key for e in [example, *others]}) == 4
