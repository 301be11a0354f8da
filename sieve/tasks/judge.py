"""A language model behind an OpenAI-compatible endpoint as a judge of written answers.

    python -m sieve.run +task=squad task.metric=judge ++task.judge.url=http://localhost:8000/v1 \\
        ++task.judge.model=my_judge

Never on by default. What it said is kept on disk, so that no answer is judged twice; a run says
what the calls may cost, and ends at `max_calls`.
"""

import hashlib
import json
import logging
import os
import re
import threading
from collections.abc import Sequence
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
_NUMBER = re.compile(r"(?<![\d.])(?:0(?:\.\d+)?|1(?:\.0+)?|\.\d+)(?!\d|\.\d)")
_PLACES = re.compile(r"\{(question|references|answer)\}")
CHARACTERS_PER_TOKEN = 4  # about; for the cost that is shown beforehand


@dataclass(frozen=True)
class JudgeConfig:
    """Where a judge is and how it is asked; key_variable: the environment variable with its key."""

    url: str = ""  # of the endpoint, as http://localhost:8000/v1
    model: str = ""  # its name there
    key_variable: str = "OPENAI_API_KEY"  # environment variable with the key
    prompt: str = PROMPT  # names {question}, {references}, {answer}
    max_tokens: int = 16  # of a reply
    timeout_s: float = 60.0  # of a question
    retries: int = 2  # of a question that failed
    workers: int = 8  # questions that are open at a time
    max_calls: int = 10_000  # questions, after which the run ends
    price_in: float = 0.0  # per million tokens, for the cost that is shown
    price_out: float = 0.0  # per million tokens of replies
    cache_dir: str = "~/.cache/sieve/judge"  # where replies are kept


def make_judge(given: dict[str, Any] | None) -> RowMetric:
    """The metric of a task that is judged.

    Raises:
        ValueError: the package openai is not there, or settings are missing or unknown.
    """
    held = dict(given or {})
    if stray := sorted(set(held) - {field.name for field in fields(JudgeConfig)}):
        raise ValueError(f"task.judge.{stray[0]} is no setting of a judge; remove it.")
    settings = JudgeConfig(**held)
    if not settings.url or not settings.model:
        raise ValueError(
            "task.metric=judge takes ++task.judge.url, of an OpenAI-compatible endpoint, and "
            "++task.judge.model; set both."
        )
    if settings.max_calls < 1 or settings.workers < 1 or settings.timeout_s <= 0:
        raise ValueError(
            f"task.judge has max_calls={settings.max_calls}, workers={settings.workers} and "
            f"timeout_s={settings.timeout_s}, expected numbers above 0."
        )
    return RowMetric(Metric("judge"), from_outputs=Judge(settings))


class Judge:
    """Grades answers from 0 to 1; equal questions are asked once, ever."""

    def __init__(self, settings: JudgeConfig) -> None:
        try:
            import openai
        except ImportError as error:
            raise ValueError(
                "task.metric=judge takes the package openai, which is not installed; "
                "pip install 'sieve-llm[judge]'."
            ) from error
        self._openai, self.settings = openai, settings
        self.calls = 0
        self._lock = threading.Lock()
        self._told = False
        key = fingerprint(settings.url, settings.model, settings.prompt, settings.max_tokens)
        self.path = Path(settings.cache_dir).expanduser() / f"{key}.jsonl"
        self._known = _read(self.path)
        # A local endpoint takes any key.
        self._client = openai.OpenAI(
            base_url=settings.url, api_key=os.environ.get(settings.key_variable) or "none",
            timeout=settings.timeout_s, max_retries=settings.retries,
        )  # fmt: skip

    def __call__(self, answers: Sequence[str], examples: Sequence[Example]) -> list[float]:
        """Grades of answers to examples, in order.

        Raises:
            RuntimeError: the judge cannot be reached, does not answer in time or says no number, or
                would be asked more than `max_calls` times.
        """
        asked = [self._question(answer, one) for answer, one in zip(answers, examples, strict=True)]
        new = [text for text in dict.fromkeys(asked) if _key(text) not in self._known]
        self._tell(new)
        if self.calls + len(new) > self.settings.max_calls:
            raise RuntimeError(
                f"the judge {self.settings.model} was asked {self.calls} times and {len(new)} more "
                f"would exceed task.judge.max_calls={self.settings.max_calls}; raise it, or lower "
                "task.max_rows.selection. What it said so far is kept."
            )
        with ThreadPoolExecutor(self.settings.workers) as pool:
            for _ in pool.map(self._ask, new):
                pass
        return [self._known[_key(text)] for text in asked]

    def _question(self, answer: str, example: Example) -> str:
        references = "; ".join(example.references)
        values = {"question": example.prompt, "references": references, "answer": answer.strip()}
        return _PLACES.sub(lambda place: values[place.group(1)], self.settings.prompt)

    def _tell(self, new: Sequence[str]) -> None:
        """Before the first call, what a pass over so many rows may cost."""
        if self._told or not new:
            return
        self._told, held = True, self.settings
        tokens_in = sum(map(len, new)) / CHARACTERS_PER_TOKEN
        cost = (tokens_in * held.price_in + len(new) * held.max_tokens * held.price_out) / 1e6
        log.warning(
            "the judge %s is asked %d questions for these rows, about %d tokens (%.2f by "
            "task.judge.price_in and price_out), and again for each genome that answers otherwise; "
            "at most %d calls.",
            held.model, len(new), tokens_in, cost, held.max_calls,
        )  # fmt: skip

    def _ask(self, question: str) -> None:
        held = self.settings
        try:
            reply = self._client.chat.completions.create(
                model=held.model, messages=[{"role": "user", "content": question}],
                temperature=0, max_tokens=held.max_tokens,
            )  # fmt: skip
            said = reply.choices[0].message.content or ""
        except self._openai.APITimeoutError as error:
            raise RuntimeError(
                f"the judge {held.model} at {held.url} did not answer within {held.timeout_s:g} s; "
                "raise ++task.judge.timeout_s or check the endpoint. What it said so far is kept."
            ) from error
        except (self._openai.OpenAIError, IndexError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise RuntimeError(
                f"the judge {held.model} at {held.url} could not be asked ({reason}); check "
                f"task.judge.url, task.judge.model and the key in ${held.key_variable}."
            ) from error
        if (found := _NUMBER.search(said)) is None:
            raise RuntimeError(
                f"the judge {held.model} said {said[:60]!r}, expected a number from 0 to 1; mend "
                "task.judge.prompt, or raise task.judge.max_tokens."
            )
        with self._lock:
            self.calls += 1
            self._known[_key(question)] = float(found.group())
            append_line(self.path, json.dumps([_key(question), float(found.group())]))


def _key(question: str) -> str:
    return hashlib.sha256(question.encode()).hexdigest()[:32]


def _read(path: Path) -> dict[str, float]:
    """What was said before; the last line of a killed run may be half a line."""
    known = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            key, value = json.loads(line)
        except ValueError:
            continue
        known[key] = float(value)
    return known
