"""A run whose model has the task's tokens, opened in this process."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from models import WORDS, tiny_llama, tiny_tokenizer
from runs import make_world, write_rows
from sessions import session

from sieve import stages
from sieve.evaluation.evaluation import score
from sieve.stages import Run
from sieve.stages.evaluate import score_test
from sieve.stages.rows import search_objective
from sieve.stages.vocabulary import vocabulary_record
from sieve.stages.writing import write

QUICK = ("vocabulary=task", "confidence=null", "search=uniform", "search.levels=[1,.5]")


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """Every split has words of its own beside those that all have."""
    make_world(tmp_path)
    for split, word in (("train", "film"), ("validation", "movie"), ("test", "review")):
        file = tmp_path / "data" / f"{split}.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        texts = [f"{row['text']} {word if i % 2 else 'the'}" for i, row in enumerate(rows)]
        pairs = zip(rows, texts, strict=True)
        write_rows(file, [row | {"text": text} for row, text in pairs])
    return tmp_path


def _tokens(run: Run) -> set[str]:
    """The words with a token of their own."""
    vocabulary = run.backbone.tokenizer.get_vocab()
    return {word for word in WORDS if f"Ġ{word}" in vocabulary}


def test_calibration_rows_and_labels_choose_the_tokens(world: Path) -> None:
    with session(world, *QUICK) as run:
        assert {"film", "the", "yes", "no"} <= _tokens(run)
        assert not {"movie", "review"} & _tokens(run)


def test_tokens_of_few_prompts_leave_but_not_those_of_answers(world: Path) -> None:
    with session(world, *QUICK, "vocabulary.min_rows=1000") as run:
        assert _tokens(run) == {"yes", "no"}
        assert run.familiar(run.task, run.task.splits["test"]) == [False] * 60
        tokens = run.backbone.tokenizer("the film").input_ids
        assert run.backbone.tokenizer.decode(tokens) == "the film"


def test_a_token_stays_if_enough_prompts_have_it(world: Path) -> None:
    with session(world) as run:
        rows = run.task.splits["calibration"]
        prompts = sum("film" in row.prompt for row in rows)
        film = run.backbone.tokenizer.get_vocab()["Ġfilm"]
        assert 1 < prompts < len(rows)
        assert film in run.data.reader.vocabulary(run.task, rows, prompts)
        assert film not in run.data.reader.vocabulary(run.task, rows, prompts + 1)


def test_common_tokens_fill_a_share_of_the_parameters(world: Path) -> None:
    with session(world, *QUICK, "vocabulary.fill=1") as run:
        assert {"movie", "review"} <= _tokens(run)


def test_rows_without_other_tokens_have_the_same_batches_in_both_models(world: Path) -> None:
    with session(world, *QUICK, "batch_tokens=100") as run:
        assert run.cut is not None
        familiar = run.familiar(run.task, run.task.splits["test"])
        cut, whole = (data.scoring("test") for data in (run.data, run.original_data))
    places = [batch.examples.tolist() for batch in cut]
    assert sorted(sum(places, [])) == list(range(60))
    same = [batch for batch in places if any(familiar[index] for index in batch)]
    assert len(same) > 1 and all(familiar[index] for batch in same for index in batch)
    assert places[: len(same)] == [batch.examples.tolist() for batch in whole[: len(same)]]
    answers = [example.answer for example in run.task.splits["test"]]
    assert all(batch.answers.tolist() == [answers[i] for i in batch.examples] for batch in cut)


def test_what_the_dense_model_writes_on_calibration_rows_stays(world: Path) -> None:
    tiny_llama(vocab_size=len(tiny_tokenizer())).save_pretrained(world / "model")
    writes = ("task.kind=generation", "task.answer_field=label", "task.max_new_tokens=3")
    with session(world, *QUICK, *writes) as run:
        assert run.cut is not None
        rows = run.task.splits["calibration"]
        task = replace(run.task, splits={"test": rows})
        original = run.data_of(task, backbone=run.cut.original)
        with run.original_model():
            whole = write(run, original)
        cut = write(run, run.data_of(task))
        assert whole.vocabulary <= run.cut.stays
        assert not whole.vocabulary <= original.reader.vocabulary(task, rows)
    assert cut.texts == whole.texts and any(whole.texts)


def test_rows_of_mixed_tasks_choose_tokens_too(world: Path) -> None:
    file = world / "other" / "train.jsonl"
    write_rows(file, [{"text": f"{i} question", "label": ["no", "yes"][i % 2]} for i in range(40)])
    for split in ("validation", "test"):
        write_rows(
            world / "other" / f"{split}.jsonl",
            [{"text": f"{split} {i} answer", "label": ["no", "yes"][i % 2]} for i in range(40)],
        )
    mix = ("+task@calibration.mix.other=jsonl", f"calibration.mix.other.data_dir={world / 'other'}")
    with session(world, *QUICK, *mix) as run:
        assert "question" in _tokens(run) and "answer" not in _tokens(run)


def test_rows_without_labels_that_only_test_choose_no_tokens(world: Path) -> None:
    rows = [{"text": f"{i} question"} for i in range(400)]
    write_rows(world / "data" / "unlabelled.jsonl", rows)
    with session(world, *QUICK) as run:
        assert "question" not in _tokens(run)
    with session(world, *QUICK, "recovery=lora") as run:
        assert "question" in _tokens(run)


@pytest.mark.slow
def test_every_comparison_is_with_the_original_model(world: Path) -> None:
    with session(world, *QUICK[1:]) as run:
        expected, parameters = score_test(run), run.backbone.parameters
        bank = stages.fit(run, stages.calibrate(run))
        selection = search_objective(run, bank).baseline
    with session(world, *QUICK) as run:
        assert run.cut is not None and run.cut.parameters == parameters > run.backbone.parameters
        with run.original_model():
            dense = score_test(run, run.original_data)
        assert (dense.values == expected.values).all() and dense.loss == expected.loss
        cut = score_test(run)
        record = vocabulary_record(run, dense, cut)
        assert record and record["rows_kept"] == record["same_kept"] == record["rows"] / 2
        bank = stages.fit(run, stages.calibrate(run))
        assert search_objective(run, bank).baseline.loss == selection.loss


def test_tasks_of_also_are_compared_with_the_original_model(world: Path) -> None:
    write_rows(
        world / "also" / "test.jsonl",
        [{"text": f"{i} question", "label": ["no", "yes"][i % 2]} for i in range(40)],
    )
    for split in ("train", "validation"):
        write_rows(
            world / "also" / f"{split}.jsonl",
            [{"text": f"{split} {i}", "label": ["no", "yes"][i % 2]} for i in range(40)],
        )
    also = ("+task@also.other=jsonl", f"also.other.data_dir={world / 'also'}")
    with session(world, *QUICK[1:], *also) as run:
        expected = score_test(run, run.others["other"])
    with session(world, *QUICK, *also) as run:
        with run.original_model():
            dense = score_test(run, run.original_others["other"])
        cut = score_test(run, run.others["other"])
    assert dense.loss == expected.loss != cut.loss


def test_the_model_is_whole_again_after_the_run(world: Path) -> None:
    with session(world, *QUICK) as run:
        assert run.cut is not None
        model, original = run.backbone.model, run.cut.original
        assert model.get_input_embeddings().num_embeddings < 384
    batches = run.data_of(run.task, backbone=original).scoring("test")
    assert model.get_input_embeddings().num_embeddings == 384
    assert score(model, batches, "Scoring").values.size == 60
