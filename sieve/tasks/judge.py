"""A language model behind an OpenAI-compatible endpoint grades generated answers.

    python -m sieve.run +task=squad task.metric=judge ++task.judge.url=http://localhost:8000/v1 \\
        ++task.judge.model=my_judge

Never on by default. Grades are kept on disk, so no answer is graded twice. A warning gives the cost
before the first call, and a run ends at `max_calls`.
"""

import hashlib
import json
import logging
import os
import re
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sieve.runtime.artifacts import append_line, fingerprint
from sieve.tasks.example import Example
from sieve.tasks.metrics import Metric, RowMetric

log = logging.getLogger(__name__)
PROMPT = (
    "Question:\n{question}\n\nRight answers: {references}\n\nGiven answer: {answer}\n\n"
    "Is the given answer right? Reply with one number from 0 (wrong) to 1 (right) and nothing else."
)
CHARACTERS_PER_TOKEN = 4  # roughly, to estimate the cost
_NUMBER = re.compile(r"(?<![\d.])(?:0(?:\.\d+)?|1(?:\.0+)?|\.\d+)(?!\d|\.\d)")
_PLACEHOLDER = re.compile(r"\{(question|references|answer)\}")


@dataclass(frozen=True)
class JudgeConfig:
    """Where the judge is, and how it is asked."""

    url: str = ""  # of the endpoint, as http://localhost:8000/v1
    model: str = ""  # its name at the endpoint
    key_variable: str = "OPENAI_API_KEY"  # environment variable with the key
    prompt: str = PROMPT  # names {question}, {references}, {answer}
    max_tokens: int = 16  # in a reply
    timeout_s: float = 60.0  # per question
    retries: int = 2  # of a question that failed
    workers: int = 8  # questions at a time
    max_calls: int = 10_000  # a run that needs more questions ends
    price_in: float = 0.0  # per million prompt tokens, to estimate the cost
    price_out: float = 0.0  # per million reply tokens
    cache_dir: str = "~/.cache/sieve/judge"  # where grades are kept


def make_judge(settings: Mapping[str, Any]) -> RowMetric:
    """The metric of a task with `task.metric=judge`, from `task.judge`.

    Raises:
        ValueError: the package openai is not installed, or a setting is missing or wrong.
    """
    names = [field.name for field in fields(JudgeConfig)]
    if unknown := sorted(set(settings) - set(names)):
        raise ValueError(
            f"task.judge has the unknown setting {unknown[0]}, expected {', '.join(names)}; "
            "remove it."
        )
    config = JudgeConfig(**settings)
    if not config.url or not config.model:
        raise ValueError(
            "task.metric=judge needs ++task.judge.url of an OpenAI-compatible endpoint and "
            "++task.judge.model; set both."
        )
    if config.max_calls < 1 or config.workers < 1 or config.timeout_s <= 0:
        raise ValueError(
            f"task.judge has max_calls={config.max_calls}, workers={config.workers} and "
            f"timeout_s={config.timeout_s}, expected numbers above 0; raise them."
        )
    return RowMetric(Metric("judge"), from_outputs=Judge(config))


class Judge:
    """Grades answers from 0 to 1; never asks the same question twice."""

    def __init__(self, config: JudgeConfig) -> None:
        try:
            import openai
        except ImportError as error:
            raise ValueError(
                "task.metric=judge needs the package openai, which is not installed; "
                "pip install 'sieve-llm[judge]'."
            ) from error
        self.config = config
        self.calls = 0
        self._lock = threading.Lock()
        self._warned = False
        key = fingerprint(config.url, config.model, config.prompt, config.max_tokens)
        self.path = Path(config.cache_dir).expanduser() / f"{key}.jsonl"
        self._grades = _read_grades(self.path)
        self._openai = openai
        self._client = openai.OpenAI(
            base_url=config.url,
            # A local endpoint accepts any key.
            api_key=os.environ.get(config.key_variable) or "none",
            timeout=config.timeout_s,
            max_retries=config.retries,
        )

    def __call__(self, answers: Sequence[str], examples: Sequence[Example]) -> list[float]:
        """The grades of answers to examples, in order.

        Raises:
            RuntimeError: the judge cannot be reached, does not answer in time, does not reply with
                a number, or would be asked more than `max_calls` times.
        """
        questions = [self._question(a, e) for a, e in zip(answers, examples, strict=True)]
        new = [text for text in dict.fromkeys(questions) if _key(text) not in self._grades]
        self._warn_of_cost(new)
        if self.calls + len(new) > self.config.max_calls:
            raise RuntimeError(
                f"the judge {self.config.model} was asked {self.calls} times and {len(new)} more "
                f"would exceed task.judge.max_calls={self.config.max_calls}; raise it, or lower "
                "task.max_rows.selection. All grades so far are kept."
            )
        with ThreadPoolExecutor(self.config.workers) as pool:
            list(pool.map(self._ask, new))
        return [self._grades[_key(text)] for text in questions]

    def _question(self, answer: str, example: Example) -> str:
        references = "; ".join(example.references)
        values = {"question": example.prompt, "references": references, "answer": answer.strip()}
        return _PLACEHOLDER.sub(lambda match: values[match.group(1)], self.config.prompt)

    def _warn_of_cost(self, questions: Sequence[str]) -> None:
        """Before the first call, warn of the cost of these questions."""
        if self._warned or not questions:
            return
        self._warned, config, count = True, self.config, len(questions)
        tokens_in = sum(map(len, questions)) / CHARACTERS_PER_TOKEN
        cost = (tokens_in * config.price_in + count * config.max_tokens * config.price_out) / 1e6
        log.warning(
            f"the judge {config.model} is asked {count} questions for these rows, about "
            f"{tokens_in:.0f} tokens (cost {cost:.2f} by task.judge.price_in and price_out), and "
            "again for each genome whose answers differ; at most "
            f"{config.max_calls} calls."
        )

    def _ask(self, question: str) -> None:
        config = self.config
        try:
            reply = self._client.chat.completions.create(
                model=config.model,
                messages=[{"role": "user", "content": question}],
                temperature=0,
                max_tokens=config.max_tokens,
            )
            text = reply.choices[0].message.content or ""
        except (self._openai.OpenAIError, IndexError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise RuntimeError(
                f"the judge {config.model} at {config.url} could not be asked ({reason}); check "
                f"task.judge.url, task.judge.model and the key in ${config.key_variable}, or raise "
                f"++task.judge.timeout_s above {config.timeout_s:g}. All grades so far are kept."
            ) from error
        if (number := _NUMBER.search(text)) is None:
            raise RuntimeError(
                f"the judge {config.model} replied {text[:60]!r}, expected a number from 0 to 1; "
                "change task.judge.prompt, or raise task.judge.max_tokens."
            )
        grade = float(number.group())
        with self._lock:
            self.calls += 1
            self._grades[_key(question)] = grade
            append_line(self.path, json.dumps([_key(question), grade]))


def _key(question: str) -> str:
    return hashlib.sha256(question.encode()).hexdigest()[:32]


def _read_grades(path: Path) -> dict[str, float]:
    """The grades of earlier runs; a killed run may have left half a line."""
    grades = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            key, grade = json.loads(line)
        except ValueError:
            continue
        grades[key] = float(grade)
    return grades
