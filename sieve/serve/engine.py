"""The model behind the server: one thread answers the rows of all requests in batches.

Rows of several requests share a batch, as rows of a split do in an evaluation. The other rows of a
batch change the log-likelihoods of a row only by rounding, about 1e-5 nats in float32. With
`batch_tokens=1` every row is scored alone and its numbers are the same bits in any company; an
ONNX graph is always run so.
"""

import copy
import logging
import math
import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from sieve.data.batches import bucket, pad_rows
from sieve.data.choices import encoded_batches
from sieve.data.classifier import classes_of
from sieve.data.encoding import EncodedExample, encode_examples
from sieve.data.reader import Reader
from sieve.exports.loading import load
from sieve.exports.onnx_model import OnnxGraph
from sieve.exports.task_file import TaskFile, read_task
from sieve.model.backbone import is_classifier, pad_token_id, usable_length
from sieve.tasks.config import SERVED
from sieve.tasks.example import Example
from sieve.tasks.writing import Writing

log = logging.getLogger(__name__)
LogProbs = list[list[float]]  # per row and choice
Results = LogProbs | list[str]  # or what the model wrote for each row


class QueueFull(Exception):
    """More rows wait than the engine accepts."""


class NotFinite(RuntimeError):
    """The model computed NaN or infinity for a row."""


@dataclass
class PendingRequest:
    """The encoded rows of a request, and the future of their results."""

    rows: list[EncodedExample]
    results: Future[Results] = field(default_factory=Future)


def _answer(request: PendingRequest, results: Results) -> None:
    """Give a request its results, or an error where log-likelihoods are not finite."""
    try:
        check_finite([row for row in results if not isinstance(row, str)], "start the server with")
    except NotFinite as error:
        log.error("%s", error)
        request.results.set_exception(error)
    else:
        request.results.set_result(results)


def check_finite(logprobs: LogProbs, advice: str) -> None:
    """Raise NotFinite if the log-likelihoods of a row have no largest one.

    advice: precedes "--dtype float32".
    """
    broken = sum(not math.isfinite(max(row)) or any(map(math.isnan, row)) for row in logprobs)
    if broken:
        raise NotFinite(
            f"the model's log-likelihoods are not finite (NaN or infinity) on {broken} of "
            f"{len(logprobs)} rows; {advice} --dtype float32."
        )


def probabilities(logprobs: Sequence[float]) -> list[float]:
    """The probability of each choice of a row among its choices."""
    top = max(logprobs)
    weights = [math.exp(value - top) for value in logprobs]
    return [weight / sum(weights) for weight in weights]


class Engine:
    """Answers rows of a task with an exported model: start it, submit rows, stop it.

    Args:
        batch_tokens: the most tokens of a forward pass, with padding.
        max_waiting: the most rows that may wait.

    Raises:
        ValueError: the directory has no model or no task, or not of a kind that can be served.
    """

    def __init__(
        self,
        folder: str | Path,
        device: str = "cpu",
        dtype: str = "auto",
        batch_tokens: int = 8192,
        max_waiting: int = 1024,
    ) -> None:
        self.task: TaskFile = read_task(folder)
        if self.task.config.kind not in SERVED:
            raise ValueError(
                f"{folder} has a task of kind '{self.task.config.kind}', expected "
                f"{' or '.join(SERVED)}; serve it with python -m sieve.serve.completions, or "
                "answer files with python -m sieve.predict."
            )
        self.model, self.tokenizer = load(folder, device, dtype)
        self._task, self._limit = self.task.task(), usable_length(self.model, self.tokenizer)
        classes = partial(classes_of, self.model) if is_classifier(self.model) else None
        if classes is not None:
            classes(self._task)  # Raises ValueError if they are not the task's labels.
        self._reader = Reader(self.tokenizer, classes=classes)
        # A tokenizer is not thread-safe, so the thread has its own.
        self._writer = self._reader.writer(self._task, copy.deepcopy(self.tokenizer))
        # An 8-bit graph scales activations by the whole batch, so rows would change one another.
        self.batch_tokens = 1 if isinstance(self.model, OnnxGraph) else batch_tokens
        self.max_waiting = max_waiting
        self.waiting = 0  # rows that are accepted and not yet answered
        self._accepted = 0
        self._queue: queue.Queue[PendingRequest | None] = queue.Queue()
        self._lock = threading.Lock()
        self._tokenizer_lock = threading.Lock()  # Tokenizers are not thread-safe.
        self._thread = threading.Thread(target=self._work, name="scoring", daemon=True)

    def start(self) -> None:
        """Start the scoring thread."""
        self._thread.start()

    def stop(self) -> None:
        """Answer all waiting requests, then end the scoring thread."""
        self._queue.put(None)
        self._thread.join()
        log.info("stopped: %d rows accepted, %d left", self._accepted, self.waiting)

    @property
    def writing(self) -> Writing | None:
        """How answers are written; None if they are chosen."""
        return self._task.writing

    @property
    def alive(self) -> bool:
        """Whether the scoring thread is running."""
        return self._thread.is_alive()

    def encode(self, examples: Sequence[Example]) -> list[EncodedExample]:
        """Encode rows; ValueError if one is too long or two of its answers have the same tokens."""
        with self._tokenizer_lock:
            encoded = self._encoded(examples)
        limit, written = self._limit, self._writer.writing.max_new_tokens if self._writer else 0
        for number, row in enumerate(encoded, 1):
            length = len(row.prefix) if self._writer else row.length
            if limit is not None and length + written > limit:
                raise ValueError(
                    f"row {number} has {length:,} tokens within its prompt, expected at most "
                    f"{limit - written:,}; shorten it."
                )
        return encoded

    def _encoded(self, examples: Sequence[Example]) -> list[EncodedExample]:
        if self._reader.classes is not None:
            return self._reader.encode(self._task, examples)
        config = self.task.config
        return encode_examples(
            examples,
            self.tokenizer,
            chat=config.chat,
            delimiter=config.delimiter,
            normalize=config.normalize,
        )

    def submit(self, rows: list[EncodedExample]) -> Future[Results]:
        """Queue rows; QueueFull if too many wait already."""
        with self._lock:
            if self.waiting + len(rows) > self.max_waiting:
                raise QueueFull
            self.waiting += len(rows)
            self._accepted += len(rows)
        request = PendingRequest(rows)
        self._queue.put(request)
        return request.results

    def _work(self) -> None:
        stopping = False
        while not stopping:
            requests, stopping = self._take()
            rows = [row for request in requests for row in request.rows]
            try:
                results = self.score(rows) if self._writer is None else self.write(rows)
            except Exception as error:  # Fail these requests, whatever the reason, and go on.
                log.exception("answering %d rows failed", len(rows))
                self._release(rows)
                for request in requests:
                    request.results.set_exception(error)
                continue
            self._release(rows)
            start = 0
            for request in requests:
                end = start + len(request.rows)
                _answer(request, results[start:end])
                start = end

    def _take(self) -> tuple[list[PendingRequest], bool]:
        """The requests of the next batch, at least one, and whether to stop after it."""
        requests: list[PendingRequest] = []
        tokens = 0
        request = self._queue.get()
        while request is not None:
            if request.results.set_running_or_notify_cancel():
                requests.append(request)
            else:  # The client has gone.
                self._release(request.rows)
            tokens += sum(len(ids) for row in request.rows for ids in row.rows())
            if tokens >= self.batch_tokens or self._queue.empty():
                return requests, False
            request = self._queue.get()
        return requests, True

    def _release(self, rows: list[EncodedExample]) -> None:
        with self._lock:
            self.waiting -= len(rows)

    @torch.inference_mode()
    def score(self, rows: Sequence[EncodedExample]) -> LogProbs:
        """Log-likelihoods of every choice of every row, as an evaluation computes them."""
        scores: LogProbs = [[] for _ in rows]
        pad, pad_right = pad_token_id(self.tokenizer), self._reader.classes is not None
        for batch in encoded_batches(rows, pad, self.batch_tokens, pad_right=pad_right):
            batch = batch.to(self.model.device)
            logprobs = batch.logprobs(self.model).tolist()
            for index, row in zip(batch.examples.tolist(), logprobs, strict=True):
                scores[index] = row[: len(rows[index].choices)]
        return scores

    @torch.inference_mode()
    def write(self, rows: Sequence[EncodedExample]) -> list[str]:
        """What the model writes after the prompt of every row, as an evaluation does."""
        writer, texts = self._writer, [""] * len(rows)
        assert writer is not None
        prompts = [row.prefix for row in rows]
        sizes = [(1, len(prompt) + writer.writing.max_new_tokens) for prompt in prompts]
        for group in bucket(sizes, self.batch_tokens):
            ids, mask, _ = pad_rows([prompts[index] for index in group], writer.pad)
            device = self.model.device
            answers = writer.write(self.model, ids.to(device), mask.to(device))
            for index, tokens in zip(group, answers, strict=True):
                texts[index] = writer.read(tokens)
        return texts
