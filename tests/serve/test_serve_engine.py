"""One thread scores what all requests bring: everything accepted is answered, and exactly."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from models import tiny_llama, tiny_tokenizer
from served import GOOD, REVIEWS, rows_of

import sieve
from sieve.evaluation.evaluation import score
from sieve.exports.task_file import write_task
from sieve.serve.engine import Engine, QueueFull


def test_a_failure_is_told_to_those_it_concerns_and_the_next_are_answered(exported: Path) -> None:
    engine = Engine(exported)
    rows = engine.encode([engine.task.question(GOOD)])
    sound = engine.model.forward

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no memory")

    engine.start()
    engine.model.forward = broken
    with pytest.raises(RuntimeError, match="no memory"):
        engine.submit(rows).result(timeout=30)
    engine.model.forward = sound
    assert len(engine.submit(rows).result(timeout=30)) == 1
    engine.stop()
    assert engine.waiting == 0


def test_what_waits_when_it_stops_is_still_answered(exported: Path) -> None:
    engine = Engine(exported, batch_tokens=16)
    rows = engine.encode([engine.task.question(row) for row in rows_of(30)])
    futures = [engine.submit([row]) for row in rows]
    with pytest.raises(QueueFull):
        engine.submit(rows * 40)
    engine.start()
    engine.stop()
    assert all(len(future.result(timeout=0)) == 1 for future in futures)


def test_rows_scored_one_by_one_have_the_same_bits_whatever_stands_beside_them(
    exported: Path,
) -> None:
    engine = Engine(exported, batch_tokens=1)
    examples = [engine.task.question(row) for row in rows_of(30)]
    rows = engine.encode(examples)
    alone = [engine.score([row])[0] for row in rows]
    assert engine.score(rows) == alone
    batches = sieve.scoring_batches(examples, engine.tokenizer, batch_tokens=1)
    # A question's answer is given as 0, so its loss is that of the first choice.
    assert score(engine.model, batches).losses.tolist() == [-first for first, _ in alone]


def test_who_asks_and_goes_away_does_not_stop_the_others(exported: Path) -> None:
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

    def counted(rows: Any) -> Any:
        passes.append(len(rows))
        return sound(rows)

    monkeypatch.setattr(engine, "score", counted)
    futures = [engine.submit([row]) for row in rows]
    engine.start()
    found = [future.result(timeout=30) for future in futures]
    engine.stop()
    assert passes[0] == 20
    assert found == [[scores] for scores in sound(rows)], "each request gets its own rows' answers"


@pytest.mark.parametrize(("normalize", "other"), [("none", "tokens"), ("tokens", "none")])
def test_answers_count_per_token_where_the_task_says_so(
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
def test_a_graph_in_eight_bits_answers_a_row_as_if_it_were_alone(tmp_path: Path) -> None:
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
