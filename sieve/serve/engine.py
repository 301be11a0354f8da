"""The model behind the server: one thread scores what all requests have brought, in batches.

Rows of several requests stand in one batch, as rows of a split do in the run's own evaluation.
The rows beside it change a row's log-likelihoods by rounding alone (about 1e-5 nats in float32):
padding is masked, but sums of other shapes are taken in another order. With `batch_tokens=1` every
row is scored by itself, and its numbers are the same bits whatever else is asked; an ONNX graph
always scores so.
"""

import logging
import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import torch

from sieve.data.batches import as_inputs
from sieve.data.choices import choice_logprobs, encoded_batches
from sieve.data.encoding import EncodedExample, encode_examples
from sieve.exports.loading import load
from sieve.exports.onnx import OnnxModel
from sieve.exports.task_file import TaskFile, read_task
from sieve.model.backbone import context_length, forward, is_classifier, pad_token_id
from sieve.tasks.example import Example

log = logging.getLogger(__name__)
SERVED = ("classification", "multiple_choice")
LogProbs = list[list[float]]  # per row and choice


class Full(Exception):
    """More rows wait than may."""


@dataclass
class Waiting:
    """The rows of one request, and where its answers go."""

    rows: list[EncodedExample]
    answers: Future[LogProbs] = field(default_factory=Future)


class Engine:
    """Scores rows of a task on a model of its own; start it, submit, stop it.

    batch_tokens: padded tokens of a forward pass; max_waiting: rows that may wait at a time.
    Raises ValueError in one sentence where the directory holds no model or no task.
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
                f"{folder} was made for a task of kind '{self.task.config.kind}', expected "
                f"{' or '.join(SERVED)}; serve it with python -m sieve.serve.completions."
            )
        self.model, self.tokenizer = load(folder, device, dtype)
        if not isinstance(self.model, OnnxModel) and is_classifier(self.model):
            raise ValueError(
                f"{folder} holds a classifier, expected a causal language model; use it with "
                "AutoModelForSequenceClassification or transformers' pipeline."
            )
        # A graph in 8 bits scales activations by the whole batch: rows would change one another.
        self.batch_tokens = 1 if isinstance(self.model, OnnxModel) else batch_tokens
        self.max_waiting = max_waiting
        self._queue: queue.Queue[Waiting | None] = queue.Queue()
        self._lock = threading.Lock()
        self._tokenizer_lock = threading.Lock()  # Tokenizers do not bear two threads at a time.
        self._rows_waiting = self._rows_accepted = 0
        self._thread = threading.Thread(target=self._work, name="scoring", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Answer everything that waits, then end."""
        self._queue.put(None)
        self._thread.join()
        log.info("stopped: %d rows accepted, %d left", self._rows_accepted, self._rows_waiting)

    @property
    def alive(self) -> bool:
        """Whether rows are being answered."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Rows that have not been answered yet."""
        return self._rows_waiting

    def encode(self, examples: Sequence[Example]) -> list[EncodedExample]:
        """Token ids of rows; ValueError where one is too long or two of its answers are alike."""
        config = self.task.config
        with self._tokenizer_lock:
            encoded = encode_examples(
                examples, self.tokenizer, chat=config.chat, delimiter=config.delimiter,
                normalize=config.normalize,
            )  # fmt: skip
        limit = context_length(self.model)
        for number, row in enumerate(encoded, 1):
            length = max(map(len, row.rows()))
            if limit is not None and length > limit:
                raise ValueError(
                    f"row {number} has {length:,} tokens within its prompt, expected at most "
                    f"{limit:,}; shorten it."
                )
        return encoded

    def submit(self, rows: list[EncodedExample]) -> Future[LogProbs]:
        """Log-likelihoods of every choice of every row, when they are there; Full at the limit."""
        with self._lock:
            if self._rows_waiting + len(rows) > self.max_waiting:
                raise Full
            self._rows_waiting += len(rows)
            self._rows_accepted += len(rows)
        waiting = Waiting(rows)
        self._queue.put(waiting)
        return waiting.answers

    def _work(self) -> None:
        ended = False
        while not ended:
            requests, ended = self._take()
            rows = [row for request in requests for row in request.rows]
            found: LogProbs | Exception
            try:
                found = self.score(rows)
            except Exception as error:  # Whatever it is, the requests are told, and others go on.
                log.exception("scoring %d rows failed", len(rows))
                found = error
            with self._lock:
                self._rows_waiting -= len(rows)
            _tell(requests, found)

    def _take(self) -> tuple[list[Waiting], bool]:
        """The requests that fit one pass, at least one, and whether it is time to end."""
        taken: list[Waiting] = []
        tokens = 0
        item = self._queue.get()
        while item is not None:
            if item.answers.set_running_or_notify_cancel():
                taken.append(item)
            else:  # Whoever asked has gone.
                self._done(len(item.rows))
            tokens += sum(len(row) for example in item.rows for row in example.rows())
            if tokens >= self.batch_tokens or self._queue.empty():
                return taken, False
            item = self._queue.get()
        return taken, True

    def _done(self, rows: int) -> None:
        with self._lock:
            self._rows_waiting -= rows

    @torch.inference_mode()
    def score(self, rows: Sequence[EncodedExample]) -> LogProbs:
        """Log-likelihoods of every choice of every row, as the run's own evaluation has them."""
        found: dict[int, list[float]] = {}
        for batch in encoded_batches(rows, pad_token_id(self.tokenizer), self.batch_tokens):
            batch = batch.to(self.model.device)
            logits = forward(self.model, as_inputs(batch), batch.keep)
            logprobs = choice_logprobs(logits, batch).cpu()
            for place, index in enumerate(batch.examples.tolist()):
                found[index] = logprobs[place, : len(rows[index].choices)].tolist()
        return [found[index] for index in range(len(rows))]


def _tell(requests: Sequence[Waiting], found: LogProbs | Exception) -> None:
    """Give every request what was found for its rows."""
    start = 0
    for request in requests:
        if isinstance(found, Exception):
            request.answers.set_exception(found)
        else:
            request.answers.set_result(found[start : start + len(request.rows)])
        start += len(request.rows)
