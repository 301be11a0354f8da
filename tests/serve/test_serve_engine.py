"""One thread scores the rows of all requests: each accepted row gets its exact answer."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from models import tiny_llama, tiny_tokenizer
from served import GOOD, REVIEWS, rows_of

import sieve
from sieve.data.encoding import EncodedExample
from sieve.evaluation.evaluation import score
from sieve.exports.task_file import write_task
from sieve.serve.engine import Engine, LogProbs, NotFinite, QueueFull


def test_a_failure_ends_its_own_requests_and_later_ones_are_answered(exported: Path) -> None:
    engine = Engine(exported)
    rows = engine.encode([engine.task.question(GOOD)])
    sound = engine.model.forward

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no memory")

    engine.start()
    engine.model.forward = broken
    with pytest.raises(RuntimeError, match="no memory"):
        engine.submit(rows).result(timeout=30)
    engine.model.forward = sound
    assert len(engine.submit(rows).result(timeout=30)) == 1
    engine.stop()
    assert engine.waiting == 0


def test_a_row_that_is_not_finite_fails_its_own_request_alone(exported: Path) -> None:
    engine = Engine(exported)
    [token] = engine.tokenizer(" question").input_ids
    engine.model.requires_grad_(False).get_input_embeddings().weight[token] = float("nan")
    questions = [engine.task.question(GOOD | {"text": t}) for t in ("good", "a question")]
    sound, broken = ([row] for row in engine.encode(questions))
    futures = [engine.submit(rows) for rows in (sound, broken + sound, sound)]
    engine.start()
    with pytest.raises(NotFinite, match=r"not finite \(NaN or infinity\) on 1 of 2 rows"):
        futures[1].result(timeout=30)
    assert futures[0].result(timeout=30) == futures[2].result(timeout=30)
    engine.stop()


def test_waiting_requests_are_answered_before_the_engine_stops(exported: Path) -> None:
    engine = Engine(exported, batch_tokens=16)
    rows = engine.encode([engine.task.question(row) for row in rows_of(30)])
    futures = [engine.submit([row]) for row in rows]
    with pytest.raises(QueueFull):
        engine.submit(rows * 40)
    engine.start()
    engine.stop()
    assert all(len(future.result(timeout=0)) == 1 for future in futures)


def test_rows_scored_one_by_one_have_the_same_bits_beside_any_other_rows(
    exported: Path,
) -> None:
    engine = Engine(exported, batch_tokens=1)
    examples = [engine.task.question(row) for row in rows_of(30)]
    rows = engine.encode(examples)
    alone = [engine.score([row])[0] for row in rows]
    assert engine.score(rows) == alone
    batches = sieve.scoring_batches(examples, engine.tokenizer, batch_tokens=1)
    # The answer of a question is 0, so its loss is the first choice's.
    assert score(engine.model, batches).losses.tolist() == [-first for first, _ in alone]


def test_a_cancelled_request_does_not_stop_the_others(exported: Path) -> None:
    engine = Engine(exported)
    rows = engine.encode([engine.task.question(GOOD)])
    gone, stays = engine.submit(rows), engine.submit(rows)
    assert gone.cancel()
    engine.start()
    assert len(stays.result(timeout=30)) == 1
    assert len(engine.submit(rows).result(timeout=30)) == 1
    assert engine.waiting == 0
    engine.stop()


def test_rows_of_many_requests_are_scored_in_one_pass(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(exported)
    rows = engine.encode([engine.task.question(row) for row in rows_of(20)])
    passes: list[int] = []
    sound = engine.score

    def counted(rows: Sequence[EncodedExample]) -> LogProbs:
        passes.append(len(rows))
        return sound(rows)

    monkeypatch.setattr(engine, "score", counted)
    futures = [engine.submit([row]) for row in rows]
    engine.start()
    found = [future.result(timeout=30) for future in futures]
    engine.stop()
    assert passes[0] == 20
    assert found == [[scores] for scores in sound(rows)], (
        "each request gets the answers to its own rows"
    )


@pytest.mark.parametrize(("normalize", "other"), [("none", "tokens"), ("tokens", "none")])
def test_log_likelihoods_are_divided_as_the_task_says(
    normalize: str, other: str, exported: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "export"
    shutil.copytree(exported, folder)
    write_task(replace(REVIEWS, normalize=normalize), ("not so good", "positive"), folder)
    engine = Engine(folder, batch_tokens=1)
    examples = [engine.task.question(row) for row in rows_of(10)]
    found = [-first for first, _ in engine.score(engine.encode(examples))]
    alike, unlike = (
        sieve.scoring_batches(examples, engine.tokenizer, batch_tokens=1, normalize=unit)
        for unit in (normalize, other)
    )
    assert score(engine.model, alike).losses.tolist() == found
    assert score(engine.model, unlike).losses.tolist() != found


@pytest.mark.slow
def test_an_8_bit_graph_scores_every_row_alone(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="ONNX is not installed")
    model = tiny_llama()
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "export", "onnx_int8")
    write_task(REVIEWS, ("negative", "positive"), folder)
    engine = Engine(folder)
    examples = [engine.task.question(row) for row in rows_of(30)]
    rows = engine.encode(examples)
    found = engine.score(rows)
    assert found == [engine.score([row])[0] for row in rows]
    alone = sieve.scoring_batches(examples, engine.tokenizer, batch_tokens=1)
    assert score(engine.model, alone).losses.tolist() == [-first for first, _ in found]
    together = sieve.scoring_batches(examples, engine.tokenizer)
    assert score(engine.model, together).losses.tolist() != [-first for first, _ in found]
