"""A served export answers as an evaluation does, and refuses invalid rows with a sentence."""

import asyncio
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fastapi import HTTPException, Request
from fastapi.testclient import TestClient
from served import GOOD, QUESTIONS, REVIEWS, offline, rows_of

from sieve.exports.task_file import write_task
from sieve.serve.app import make_app
from sieve.serve.body import Limits, read_body
from sieve.serve.engine import Engine

LIMITS = Limits(rows=8, body_bytes=5_000)
DEEP: list[object] = []
for _ in range(900):
    DEEP = [DEEP]


@pytest.fixture(scope="module")
def client(exported: Path) -> Iterator[TestClient]:
    with TestClient(make_app(Engine(exported), LIMITS)) as served:
        yield served


@pytest.fixture(scope="module")
def asked(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """The same model with a task whose rows have their own options."""
    folder = tmp_path_factory.mktemp("options") / "export"
    shutil.copytree(exported, folder)
    write_task(QUESTIONS, (), folder)
    with TestClient(make_app(Engine(folder), LIMITS)) as served:
        yield served


def test_answers_equal_the_evaluation(client: TestClient, exported: Path) -> None:
    rows = rows_of(40)
    wanted = offline(exported, rows)
    assert set(wanted) == {0, 1}
    for start in range(0, 40, 8):
        found = client.post("/predict", json={"rows": rows[start : start + 8]}).json()
        assert [answer["index"] for answer in found["answers"]] == wanted[start : start + 8]
    for row, index in zip(rows[:5], wanted, strict=False):
        body = client.post("/predict", json=row).json()
        [answer] = body["answers"]
        assert answer["index"] == index and answer["label"] == REVIEWS.labels[index]
        shares = [choice["probability"] for choice in answer["choices"]]
        assert sum(shares) == pytest.approx(1) and shares[index] == max(shares)
        assert body["latency_ms"] > 0


def test_numbers_that_are_not_finite_are_an_error_with_a_sentence(exported: Path) -> None:
    engine = Engine(exported)
    engine.model.requires_grad_(False).get_output_embeddings().weight[5] = float("inf")
    with TestClient(make_app(engine, LIMITS)) as served:
        answer = served.post("/predict", json=GOOD)
    assert answer.status_code == 500
    assert "not finite (NaN or infinity) on 1 of 1 rows" in answer.json()["detail"]


def test_a_row_may_use_the_column_names_of_the_data(client: TestClient) -> None:
    one = client.post("/predict", json={"text": "good", "what": "film"}).json()["answers"]
    other = client.post("/predict", json={"sentence": "good", "what": "film"}).json()["answers"]
    assert one == other


@pytest.mark.parametrize("options", [["yes", "no"], {"A": "yes", "B": "no"}, ["yes", "no", 3]])
def test_rows_may_have_their_own_options(asked: TestClient, options: object) -> None:
    response = asked.post("/predict", json={"question": "movie", "options": options})
    [answer] = response.json()["answers"]
    assert [choice["label"] for choice in answer["choices"]] == ["A", "B", "C"][: len(options)]


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        ({"text": "good"}, 422, "row 1 has no field 'what' that the prompt names; it has 'text'."),
        ({**GOOD, "txt": 1}, 422, "row 1 has a field 'txt', expected text, what and nothing else."),
        ({**GOOD, "what": None}, 422, "row 1 has no field 'what'"),
        ({**GOOD, "what": {"a": 1}}, 422, "row 1 has an object under 'what', expected text"),
        ([GOOD], 422, "row 1 is [{"),
        ("good", 422, 'row 1 is "good", expected an object with the fields text, what.'),
        (7, 422, "row 1 is 7, expected"),
        ({}, 422, "it has no field"),
        ({"rows": []}, 422, "got 0 rows under 'rows', expected a list of 1 to 8 rows."),
        ({"rows": [GOOD] * 9}, 422, "got 9 rows under 'rows'"),
        ({"rows": GOOD}, 422, "got {"),
        ({"rows": [GOOD, 3]}, 422, "row 2 is 3, expected"),
        ({**GOOD, "what": DEEP}, 422, "a row is nested too deeply"),
        ({"rows": [GOOD, {"text": "a"}]}, 422, "row 2 has no field 'what'"),
        ({**GOOD, "text": "q" * 300}, 409, "tokens within its prompt, expected at most 128"),
        ({**GOOD, "text": "q" * 6000}, 413, "expected at most 5,000."),
    ],
)
def test_an_invalid_row_gets_a_sentence(
    client: TestClient, body: object, status: int, sentence: str
) -> None:
    response = client.post("/predict", json=body)
    assert response.status_code == status
    assert sentence in response.json()["detail"]


@pytest.mark.parametrize(
    ("content", "kind", "status", "sentence"),
    [
        (b"{", "application/json", 400, "the body is not JSON"),
        (b"", "application/json", 400, "the body is not JSON"),
        (b'{"text": NaN, "what": "a"}', "application/json", 400, "NaN is not a number in JSON"),
        (b'{"text": 1e999, "what": "a"}', "application/json", 400, "the body is not JSON"),
        (b'{"text": "\\ud800", "what": "a"}', "application/json", 400, "the body is not JSON"),
        (b"\xff\xfe\x00", "application/json", 400, "the body is not JSON"),
        (b"[" * 4000, "application/json", 400, "the body is not JSON"),
        (b"null", "application/json", 422, "row 1 is null, expected an object"),
        (b'{"text": "a", "what": "b"}', "text/plain", 415, "got a body of type 'text/plain'"),
    ],
)
def test_invalid_json_gets_a_sentence(
    client: TestClient, content: bytes, kind: str, status: int, sentence: str
) -> None:
    response = client.post("/predict", content=content, headers={"content-type": kind})
    assert response.status_code == status
    assert sentence in response.json()["detail"]


def test_a_body_of_unknown_length_is_read_up_to_the_limit(client: TestClient) -> None:
    parts = (b"x" * 1000 for _ in range(100))
    response = client.post("/predict", content=parts, headers={"content-type": "application/json"})
    assert response.status_code == 413
    taken = 0

    async def receive() -> dict[str, object]:
        nonlocal taken
        taken += 1
        return {"type": "http.request", "body": b"x" * 1000, "more_body": taken < 100}

    with pytest.raises(HTTPException, match="expected at most 5,000"):
        asyncio.run(read_body(Request({"type": "http", "headers": []}, receive), 5_000))
    assert taken == 6, "reading stops at the chunk that exceeds the limit"


def test_invalid_options_get_a_sentence(asked: TestClient) -> None:
    for options in (
        ["yes"],
        "yes",
        {"A": "yes"},
        [None, None],
        list("abcdefghijklmnopqrstuvwxyz!"),
    ):
        response = asked.post("/predict", json={"question": "movie", "options": options})
        assert response.status_code == 422
        assert "expected at least two as a dict" in response.json()["detail"]


def test_health_task_page_and_schema_are_served(client: TestClient) -> None:
    assert client.get("/health").json() == {"status": "ok", "waiting": 0}
    task = client.get("/task").json()
    assert task["fields"] == {"text": ["sentence", "text"], "what": ["what"]}
    assert task["labels"] == ["negative", "positive"]
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html") and "src=" not in page.text
    schema = client.get("/openapi.json").json()
    [row, many] = schema["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"][
        "schema"
    ]["anyOf"]
    assert set(row["properties"]) == {"text", "sentence", "what"}
    assert many["properties"]["rows"]["maxItems"] == 8


def test_a_full_queue_says_when_to_try_again(exported: Path) -> None:
    engine = Engine(exported, max_waiting=3)
    app = make_app(engine, LIMITS)
    with TestClient(app) as client:
        response = client.post("/predict", json={"rows": [GOOD] * 4})
        assert response.status_code == 503 and response.headers["retry-after"] == "1"
        assert "expected at most 3" in response.json()["detail"]
        assert client.post("/predict", json={"rows": [GOOD] * 3}).status_code == 200
        assert client.get("/health").json()["waiting"] == 0


def test_a_repeated_option_counts_once(exported: Path, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    shutil.copytree(exported, folder)
    write_task(replace(QUESTIONS, answer_style="text"), (), folder)
    with TestClient(make_app(Engine(folder), LIMITS)) as served:
        for options, left in ((["yes", "no", "yes"], ["yes", "no"]), ({"A": 1, "B": 1}, ["1"])):
            response = served.post("/predict", json={"question": "movie", "options": options})
            [answer] = response.json()["answers"]
            assert [choice["label"] for choice in answer["choices"]] == left


def test_a_row_may_have_a_column_for_each_option(exported: Path, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    shutil.copytree(exported, folder)
    write_task(replace(QUESTIONS, option_columns=["opa", "opb", "opc"]), (), folder)
    with TestClient(make_app(Engine(folder), LIMITS)) as served:
        columns = served.post("/predict", json={"question": "film", "opa": "yes", "opb": "no"})
        listed = served.post("/predict", json={"question": "film", "options": ["yes", "no"]})
        assert columns.json()["answers"] == listed.json()["answers"]
        one = served.post("/predict", json={"question": "film", "opa": "yes"})
        assert one.status_code == 422 and "expected at least two" in one.json()["detail"]


def test_a_column_may_be_nested_or_plain(exported: Path, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    shutil.copytree(exported, folder)
    config = replace(REVIEWS, fields={"text": ["context.parts", "context"]})
    write_task(config, ("negative", "positive"), folder)
    with TestClient(make_app(Engine(folder), LIMITS)) as served:
        found = [
            served.post("/predict", json={"context": context, "what": "film"}).json()["answers"]
            for context in ({"parts": ["good", "bad"]}, ["good", "bad"], "good\nbad")
        ]
        assert found[0] == found[1] == found[2]
        wrong = served.post("/predict", json={"context": {"other": 1}, "what": "film"})
        assert wrong.status_code == 422 and wrong.json()["detail"] == (
            "task 'reviews': the field 'text' of row 1 is a struct of other, expected text."
        )


def test_a_failure_of_the_server_gets_a_sentence(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(exported)

    def broken(*_: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(engine, "score", broken)
    with TestClient(make_app(engine, LIMITS), raise_server_exceptions=False) as served:
        response = served.post("/predict", json=GOOD)
    assert response.status_code == 500
    assert response.json()["detail"] == (
        "the server failed on this request (RuntimeError); see its log."
    )
