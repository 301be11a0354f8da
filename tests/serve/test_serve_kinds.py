"""Classifiers and written answers are served, and answer as an evaluation does."""

from functools import partial
from pathlib import Path

import pytest
from classifiers import EXAMPLES, tiny_classifier
from fastapi.testclient import TestClient
from models import tiny_llama, tiny_tokenizer

import sieve
from sieve.data.classifier import classes_of
from sieve.data.reader import Reader
from sieve.evaluation.evaluation import score
from sieve.exports.task_file import read_task, write_task
from sieve.predict.predictor import Predictor
from sieve.serve.app import make_app
from sieve.serve.body import Limits
from sieve.serve.engine import Engine
from sieve.tasks.config import TaskConfig

CLASSES = TaskConfig(name="moods", prompt="{text}", labels=["bad", "fair", "good"])
WRITTEN = TaskConfig(
    name="w", kind="generation", prompt="{text}", max_new_tokens=6, stop=["e"], extract="[a-d].*"
)
ROWS = [{"text": example.prompt} for example in EXAMPLES]


def exported(model: object, config: TaskConfig, folder: Path) -> Path:
    sieve.export(model, tiny_tokenizer(), folder)
    write_task(config, tuple(config.labels), folder)
    return folder


@pytest.fixture(scope="module")
def writes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tiny_llama(), WRITTEN, tmp_path_factory.mktemp("writes") / "export")


def test_a_served_classifier_chooses_the_classes_of_an_evaluation(tmp_path: Path) -> None:
    model = tiny_classifier("Llama", id2label={0: "good", 1: "bad", 2: "fair"})
    folder = exported(model, CLASSES, tmp_path / "export")
    reader = Reader(tiny_tokenizer(), classes=partial(classes_of, model))
    task = read_task(folder)
    batches = reader.scoring(task.task(), [task.question(row) for row in ROWS], 8192)
    expected = score(model, batches).predicted.tolist()
    assert len(set(expected)) > 1
    with TestClient(make_app(Engine(folder), Limits())) as client:
        answers = client.post("/predict", json={"rows": ROWS}).json()["answers"]
    assert [answer["index"] for answer in answers] == expected
    assert [answer["label"] for answer in answers] == [CLASSES.labels[i] for i in expected]


def test_a_classifier_with_other_classes_is_refused_at_the_start(tmp_path: Path) -> None:
    folder = exported(tiny_classifier(), CLASSES, tmp_path / "export")
    write_task(CLASSES, ("bad", "good"), folder)
    with pytest.raises(ValueError, match="has 3 classes .* labels bad, good"):
        Engine(folder)


@pytest.mark.parametrize("batch_tokens", [1, 8192])
def test_served_texts_are_those_of_a_prediction(writes: Path, batch_tokens: int) -> None:
    predictor = Predictor(read_task(writes), writes, "cpu", "auto", batch_tokens)
    found = dict[int, dict[str, object]]()
    for batch in predictor.answers(ROWS, predictor.questions(ROWS, "rows")):
        found |= batch
    expected = [(found[n]["predicted"], found[n]["written"]) for n in range(len(ROWS))]
    assert len(set(expected)) > 3
    with TestClient(make_app(Engine(writes, batch_tokens=batch_tokens), Limits())) as client:
        answers = client.post("/predict", json={"rows": ROWS}).json()["answers"]
        assert client.get("/task").json()["kind"] == "generation"
    assert [(answer["answer"], answer["written"]) for answer in answers] == expected


def test_a_prompt_that_leaves_no_room_for_an_answer_gets_a_sentence(writes: Path) -> None:
    with TestClient(make_app(Engine(writes), Limits())) as client:
        answers = client.post("/predict", json={"text": "q" * 122})
        refused = client.post("/predict", json={"text": "q" * 123})
    assert answers.status_code == 200 and refused.status_code == 409
    assert "123 tokens within its prompt, expected at most 122;" in refused.json()["detail"]


def test_rows_of_several_requests_are_written_in_one_pass(
    writes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, passes = Engine(writes), list[int]()
    rows = engine.encode([engine.task.question(row) for row in ROWS])
    write = engine.write
    monkeypatch.setattr(engine, "write", lambda rows: passes.append(len(rows)) or write(rows))
    futures = [engine.submit([row]) for row in rows]
    engine.start()
    results = [future.result(timeout=60) for future in futures]
    engine.stop()
    assert passes[0] == len(ROWS) and results == [[text] for text in write(rows)]
