"""Rows without labels train with the dense model's answers, and others bound the drop."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from runs import arguments, finished, make_world, write_rows
from scipy import stats

from sieve.config import Config
from sieve.conversion import CONF, register_resolvers, to_config
from sieve.evaluation.evaluation import score
from sieve.stages import opened, unlabelled
from sieve.stages.training import Training
from sieve.stages.unlabelled import (
    compare_answers,
    compared_rows,
    dense_choices,
    unlabelled_key,
    unlabelled_pairs,
)

ROWS, TRAINED = 30, 24  # a fifth is held out of the training


@pytest.fixture
def world(tmp_path: Path) -> Path:
    make_world(tmp_path)
    texts = [f"unlabelled {number} {number * 37 % 101}" for number in range(ROWS)]
    write_rows(tmp_path / "data" / "unlabelled.jsonl", [{"text": text} for text in texts])
    return tmp_path


def config_of(world: Path, *overrides: str) -> Config:
    given = [a for a in arguments(world, world, "recovery=full") if not a.startswith("hydra")]
    register_resolvers()
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        return to_config(compose("config", [*given, *overrides]))


@pytest.mark.parametrize("only_choice", [None, 0, 1])
def test_the_answers_of_the_batches_are_the_dense_models_choices(
    world: Path, monkeypatch: pytest.MonkeyPatch, only_choice: int | None
) -> None:
    if only_choice is not None:
        same = SimpleNamespace(predicted=np.full(TRAINED, only_choice))
        monkeypatch.setattr(unlabelled, "score", lambda *_: same)
    with opened(config_of(world), world / "run") as run:
        compared = compared_rows(run)
        trained = [row for row in run.task.unlabelled if row not in compared]
        chosen = score(run.backbone.model, run.data.scoring_batches(trained)).predicted
        chosen = chosen if only_choice is None else np.full(TRAINED, only_choice)
        encoded = run.data.reader.encode(run.task, trained)
        expected = {
            (*example.prefix, *example.choices[choice])
            for example, choice in zip(encoded, chosen.tolist(), strict=True)
        }
        rows = set()
        for own, dense in unlabelled_pairs(run, 256, None):
            assert own is dense
            for ids, mask, targets in zip(
                own.input_ids, own.attention_mask.bool(), own.targets, strict=True
            ):
                rows.add((*ids[mask].tolist(), int(targets[-1])))
        assert rows == expected and len(rows) == TRAINED


def test_rows_on_which_the_dense_model_is_not_finite_are_left_out(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = SimpleNamespace(predicted=np.array([-1, 1, 0] * (TRAINED // 3)))
    monkeypatch.setattr(unlabelled, "score", lambda *_: some)
    with opened(config_of(world), world / "run") as run:
        pairs = unlabelled_pairs(run, 256, None)
        assert sum(len(own.input_ids) for own, _ in pairs) == TRAINED * 2 // 3


def test_the_dense_model_answers_once(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(config_of(world), world / "run") as run:
        first = unlabelled_pairs(run, 256, None)
        monkeypatch.setattr(unlabelled, "score", None)
        second = unlabelled_pairs(run, 256, None)
        for (own, _), (again, _) in zip(first, second, strict=True):
            assert torch.equal(own.targets, again.targets)


def test_a_limit_of_tokens_limits_the_rows_that_are_answered(world: Path) -> None:
    with opened(config_of(world), world / "run") as run:
        batches = [own for own, _ in unlabelled_pairs(run, 256, 100)]
        tokens = [int(mask.sum()) for batch in batches for mask in batch.attention_mask]
        assert 100 <= sum(tokens) < 100 + max(tokens)


def test_training_mixes_in_rows_without_labels_unless_it_is_told_not_to(world: Path) -> None:
    for use, expected in (("true", TRAINED), ("false", 0)):
        with opened(config_of(world, f"recovery.unlabelled={use}"), world / "run") as run:
            batches = Training(run, None).batches  # type: ignore[arg-type]
            without = [len(b.rows.input_ids) for b in batches if not b.labelled]
            assert sum(without) == expected
            assert [batch.index for batch in batches] == list(range(len(batches)))


def test_the_key_of_a_training_changes_with_the_unlabelled_rows(world: Path) -> None:
    with opened(config_of(world), world / "run") as run:
        before = unlabelled_key(run)
    write_rows(world / "data" / "unlabelled.jsonl", [{"text": "another row"}])
    with opened(config_of(world), world / "run") as run:
        assert unlabelled_key(run) != before


def test_both_prompts_of_a_row_have_the_dense_models_answer(world: Path) -> None:
    config = config_of(world, "recovery.student_prompt=row", "task.shots=2")
    with opened(config, world / "run") as run:
        pairs = unlabelled_pairs(run, 256, None)
        assert sum(len(own.input_ids) for own, _ in pairs) == TRAINED
        for own, dense in pairs:
            assert dense.input_ids.shape[1] > own.input_ids.shape[1]
            assert torch.equal(own.targets[own.answer_mask], dense.targets[dense.answer_mask])


@pytest.mark.slow
def test_rows_that_train_the_pruned_model_are_not_compared(world: Path) -> None:
    with opened(config_of(world), world / "run") as run:
        compared = {row.content for row in compared_rows(run)}
        trained = sum(len(own.input_ids) for own, _ in unlabelled_pairs(run, 256, None))
        assert len(compared) == ROWS - TRAINED and trained == TRAINED
    for off in ("recovery=none", "recovery.unlabelled=false"):
        with opened(config_of(world, off), world / "run") as run:
            assert len(compared_rows(run)) == ROWS


def test_only_the_first_choice_bounds_a_drop(world: Path) -> None:
    with opened(config_of(world, "task.metric=ndcg"), world / "run") as run:
        assert compared_rows(run) == []


@pytest.mark.parametrize(("confidence", "used"), [("null", 0.9), ("0.95", 0.95)])
def test_the_bound_is_that_of_clopper_and_pearson_and_nan_counts_as_changed(
    world: Path, monkeypatch: pytest.MonkeyPatch, confidence: str, used: float
) -> None:
    settings = ("recovery=none", f"confidence={confidence}", "tolerance=0.2")
    with opened(config_of(world, *settings), world / "run") as run:
        rows = compared_rows(run)
        dense = dense_choices(run, rows)
        assert compare_answers(run, rows, dense)["changed"] == 0  # The model is dense.
        dense[:3] = [1 - dense[0], -1, 1 - dense[2]]
        pruned = np.array([1 - dense[0], -1, dense[2], *dense[3:]])
        monkeypatch.setattr(unlabelled, "score", lambda *_: SimpleNamespace(predicted=pruned))
        record = compare_answers(run, rows, dense)
    assert (record["rows"], record["changed"], record["confidence"]) == (ROWS, 2, used)
    assert stats.binom.cdf(2, ROWS, record["upper"]) == pytest.approx(1 - used)


def test_both_models_are_compared_with_their_own_prompts(world: Path) -> None:
    config = config_of(world, "recovery.student_prompt=row", "task.shots=2")
    with opened(config, world / "run") as run:
        rows = compared_rows(run)
        assert run.dense_task is not None
        long = [
            row for row in run.dense_task.unlabelled if row.content in {r.content for r in rows}
        ]
        batches = run.dense_data.scoring_batches(long)
        by_content = dict(
            zip(
                [row.content for row in long],
                score(run.backbone.model, batches).predicted.tolist(),
                strict=True,
            )
        )
        assert dense_choices(run, rows) == [by_content[row.content] for row in rows]


@pytest.mark.slow
def test_a_run_states_the_bound_and_does_not_judge_by_it(world: Path) -> None:
    result = finished(world, "bounded", "tolerance=0.4")
    record = result["unlabelled"]
    assert record["rows"] == ROWS and 0 < record["upper"] <= 1
    page = (world / "bounded" / "report.html").read_text()
    assert f"On {ROWS} rows without labels {record['changed']} answer" in page
    (world / "data" / "unlabelled.jsonl").unlink()
    without = finished(world, "without", "tolerance=0.4", cache="other")
    assert without["unlabelled"] is None
    assert without["kept_fraction"] == result["kept_fraction"]
