"""A judge on a local server: it grades each answer once, and errors say what to do."""

import json
import logging
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from models import tiny_llama, tiny_tokenizer
from omegaconf import OmegaConf
from task_helpers import write_splits

from sieve.data.generation import Writer, writing_batches
from sieve.evaluation.evaluation import score
from sieve.tasks import TaskConfig, build_task
from sieve.tasks.example import Example
from sieve.tasks.judge import Judge, JudgeConfig, make_judge
from sieve.tasks.writing import Writing

EXAMPLES = [Example(f"question {i}?", (" yes",), 0, references=("yes", "aye")) for i in range(6)]


class Server(ThreadingHTTPServer):
    """Replies with `reply(question)`, and records the requests and keys."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.reply: Any = lambda text: "0.5"
        self.status, self.wait = 200, 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.requests.append(request)
        self.server.keys.append(self.headers["authorization"])
        time.sleep(self.server.wait)
        reply = self.server.reply(request["messages"][0]["content"])
        message = {"role": "assistant", "content": reply}
        body = {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": "judge",
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        }
        content = json.dumps(body if self.server.status == 200 else {"error": "no such model"})
        try:
            self.send_response(self.server.status)
            self.send_header("content-type", "application/json")
            self.end_headers()
            self.wfile.write(content.encode())
        except BrokenPipeError:
            pass

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def judge(server: Server, folder: Path, **settings: Any) -> Judge:
    defaults = {"url": server.url, "model": "judge", "retries": 0, "cache_dir": str(folder)}
    return Judge(JudgeConfig(**(defaults | settings)))


def test_grades_are_in_order_and_the_prompt_has_question_references_and_answer(
    server: Server, tmp_path: Path
) -> None:
    server.reply = lambda text: f"0.{text.split('question ')[1][0]}"
    grades = judge(server, tmp_path)([f"answer {i}" for i in range(6)], EXAMPLES)
    assert grades == [0, 0.1, 0.2, 0.3, 0.4, 0.5]
    text = next(a["messages"][0]["content"] for a in server.requests if "question 3" in str(a))
    assert "Right answers: yes; aye" in text and "Given answer: answer 3" in text
    assert all(asked["temperature"] == 0 for asked in server.requests)


def test_no_answer_is_graded_twice_even_by_another_run(server: Server, tmp_path: Path) -> None:
    first = judge(server, tmp_path)
    assert first(["a", "a", "b"], [EXAMPLES[0]] * 3) == [0.5] * 3
    assert first.calls == 2
    with first.path.open("a") as file:
        file.write('["half a li')
    second = judge(server, tmp_path)
    second(["b", "a", "c"], [EXAMPLES[0]] * 3)
    assert second.calls == 1 and len(server.requests) == 3
    other = judge(server, tmp_path, prompt="{answer} 1?")
    other(["a"], EXAMPLES[:1])
    assert other.calls == 1, "another question is another answer"


def test_braces_in_an_answer_are_not_placeholders(server: Server, tmp_path: Path) -> None:
    judge(server, tmp_path, prompt="[{answer}] {question}")(["{question} {x}"], EXAMPLES[:1])
    assert server.requests[0]["messages"][0]["content"] == "[{question} {x}] question 0?"


def test_a_warning_gives_the_cost_before_the_first_call(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[int] = []
    server.reply = lambda text: seen.append(len(caplog.records)) or "1"
    with caplog.at_level(logging.WARNING):
        judge(server, tmp_path, price_in=1e6, price_out=1e6, prompt="x" * 396 + "{answer}")(
            ["abcd"], EXAMPLES[:1]
        )
    assert seen == [1] and "asked 1 questions" in caplog.text and "cost 116.00 by" in caplog.text


def test_the_key_comes_from_the_environment_and_is_never_written(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setenv("MY_KEY", "secret-123")
    with caplog.at_level(logging.DEBUG, "sieve"):
        grader = judge(server, tmp_path, key_variable="MY_KEY")
        grader(["a"], EXAMPLES[:1])
    assert server.keys == ["Bearer secret-123"]
    assert "secret" not in grader.path.read_text() and "secret" not in caplog.text


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        ({"wait": 0.5}, {"timeout_s": 0.2}, "Request timed out.*raise .*timeout_s above 0.2"),
        ({"status": 404}, {}, "could not be asked .* check task.judge.url"),
        ({"reply": lambda _: "rather good"}, {}, "replied 'rather good', expected a number"),
        ({}, {"max_calls": 3}, "would exceed task.judge.max_calls=3"),
        ({}, {"url": "http://127.0.0.1:9/v1"}, "could not be asked .Connection error"),
    ],
)
def test_errors_are_one_sentence(
    server: Server, tmp_path: Path, change: Any, settings: Any, message: str
) -> None:
    for name, value in change.items():
        setattr(server, name, value)
    with pytest.raises(RuntimeError, match=message) as caught:
        judge(server, tmp_path, **settings)([str(i) for i in range(6)], EXAMPLES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "needs ..task.judge.url"),
        ({"url": "http://x"}, "task.judge.model; set both"),
        ({"url": "http://x", "model": "m", "key": "sk"}, "unknown setting key"),
        ({"url": "http://x", "model": "m", "workers": 0}, "expected numbers above 0"),
    ],
)
def test_wrong_settings_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_judge(settings)


@pytest.mark.parametrize(
    ("reply", "grade"),
    [("1.0", 1), ("0.75.", 0.75), ("Grade: 0", 0), (".5", 0.5), ("1.", 1)],
)
def test_numbers_are_read_as_written(
    server: Server, tmp_path: Path, reply: str, grade: float
) -> None:
    server.reply = lambda _: reply
    assert judge(server, tmp_path)(["a"], EXAMPLES[:1]) == [grade]


def test_the_judge_scores_a_task_with_metric_judge(server: Server, tmp_path: Path) -> None:
    rows = [{"q": f"{i}?", "answer": "yes"} for i in range(12)]
    server.reply = lambda text: "1" if "3?" in text else "0.25"
    task = build_task(
        TaskConfig(
            "toy",
            kind="generation",
            prompt="{q}",
            metric="judge",
            data_dir=str(
                write_splits(tmp_path / "data", train=rows[:6], validation=rows[6:9], test=rows[9:])
            ),
            judge={"url": server.url, "model": "judge", "cache_dir": str(tmp_path)},
        )
    )
    assert task.metric.name == "judge" and task.row_metric and task.writing
    writer = Writer(tiny_tokenizer(), Writing(max_new_tokens=3), task.row_metric)
    scores = score(tiny_llama(), writing_batches(task.splits["test"], writer))
    assert scores.values.tolist() == [0.25] * 3 and len(server.requests) == 3


def test_no_configured_task_uses_a_judge() -> None:
    for path in (Path(__file__).parents[2] / "conf" / "task").rglob("*.yaml"):
        config = OmegaConf.load(path)
        assert OmegaConf.select(config, "metric") != "judge"
        assert OmegaConf.select(config, "judge") is None
    assert TaskConfig("x").metric is None and TaskConfig("x").judge is None
