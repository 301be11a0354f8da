"""What a user would pick instead of a sieved model: each rival is made, scored and timed here.

Every rival has the selection and test rows of the claim `real`. Makers take an open run, whose
model is the dense one, and return a `Rival`.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Form
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from torch import nn
from transformers import PreTrainedModel

from experiments.fresh import distilled
from sieve.config import QuantizationConfig
from sieve.data.scored import ScoredBatch
from sieve.evaluation.evaluation import score
from sieve.model.backbone import count_parameters
from sieve.quantization import quantize, stored_bytes
from sieve.stages.run import Run
from sieve.tasks import Example

FLOAT16 = 2  # bytes of a stored weight
BATCH = 32
REPEATS = 3
LABELS = 2_000  # labelled rows of classifiers on the model's states and of a fresh model, at most
BLOCK_ROWS = 60  # selection rows that tell what each block alone costs
FRESH_PARAMETERS = 6_000_000  # larger ones take hours on a processor
FEATURE_ROWS = 64  # rows of a forward pass for features

Answers = Callable[[Sequence[Example]], np.ndarray]


@dataclass(frozen=True)
class Rival:
    """A way to answer rows.

    Args:
        answers: the chosen answer of each row (N,), as an index into its choices.
        bytes: what it takes on disk, weights and vocabulary of a classifier.
        labels: labelled rows that it was made from.
        timed: whether its speed is its own; a simulated storage form computes in the dense one.
        note: what a reader must know, such as how many blocks are left.
    """

    answers: Answers
    bytes: int
    labels: int
    timed: bool = True
    note: str = ""


def record(rival: Rival, test: Sequence[Example], seconds: float) -> dict[str, Any]:
    """The figures of a rival on test rows; milliseconds a row, alone and in a batch of 32."""
    right = rival.answers(test) == np.array([example.answer for example in test])
    some = list(test[:BATCH])
    times = {}
    if rival.timed:
        times = {
            "1": min(_milliseconds(lambda: [rival.answers([e]) for e in some]) for _ in range(2)),
            str(BATCH): min(_milliseconds(lambda: rival.answers(some)) for _ in range(REPEATS)),
        }
    return {
        "accuracy": float(right.mean()),
        "rows": len(test),
        "bytes": rival.bytes,
        "labels": rival.labels,
        "ms": {size: total / len(some) for size, total in times.items()},
        "minutes": seconds / 60,
        "note": rival.note,
    }


def _milliseconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return 1000 * (time.process_time() - start)


def majority(run: Run) -> Rival:
    """Always the most common answer."""
    rows = run.task.splits["calibration"]
    common = int(np.bincount([example.answer for example in rows]).argmax())
    return Rival(lambda rows: np.full(len(rows), common), 0, len(rows))


def words(run: Run) -> Rival:
    """Logistic regression on TF-IDF of words and pairs of words."""
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    pipeline = make_pipeline(vectorizer, LogisticRegression(C=10, max_iter=1000))
    rows = run.task.splits["calibration"]
    pipeline.fit(_texts(rows), [example.answer for example in rows])
    size = sum(len(word.encode()) for word in vectorizer.vocabulary_)
    return Rival(
        lambda rows: pipeline.predict(_texts(rows)),
        size + (vectorizer.idf_.size + pipeline[-1].coef_.size) * FLOAT16,
        len(rows),
    )


def _texts(rows: Sequence[Example]) -> list[str]:
    return [example.prompt for example in rows]


def static(run: Run) -> Rival:
    """Logistic regression on the mean of the model's own token embeddings."""
    embedding = run.backbone.model.get_input_embeddings()
    tokenizer = run.backbone.tokenizer

    @torch.inference_mode()
    def features(rows: Sequence[Example]) -> np.ndarray:
        means = [embedding(torch.tensor(tokenizer(t)["input_ids"])).mean(0) for t in _texts(rows)]
        return torch.stack(means).float().numpy()

    return _probe(run, features, embedding.weight.numel() * FLOAT16)


def probe(run: Run) -> Rival:
    """Logistic regression on the last token's state after half of the blocks; no others run."""
    model = run.backbone.model
    with _blocks(model, range(model.config.num_hidden_layers // 2)):
        size = count_parameters(model) * FLOAT16
    half = range(model.config.num_hidden_layers // 2)

    @torch.inference_mode()
    def features(rows: Sequence[Example]) -> np.ndarray:
        states = []
        with _blocks(model, half):
            for start in range(0, len(rows), FEATURE_ROWS):
                batch = run.backbone.tokenizer(
                    _texts(rows[start : start + FEATURE_ROWS]),
                    return_tensors="pt",
                    padding=True,
                    padding_side="left",
                )
                states.append(model.base_model(**batch).last_hidden_state[:, -1])
        return torch.cat(states).float().numpy()

    return _probe(run, features, size)


def _probe(run: Run, features: Callable[[Sequence[Example]], np.ndarray], size: int) -> Rival:
    """A classifier of features; selection rows choose its regularization."""
    rows, chosen = run.task.splits["calibration"][:LABELS], run.task.splits["selection"]
    inputs, labels = features(rows), [example.answer for example in rows]
    held, truth = features(chosen), [example.answer for example in chosen]
    scale = inputs.std(0) + 1e-6
    best = max(
        (
            LogisticRegression(C=c, max_iter=300).fit(inputs / scale, labels)
            for c in (0.001, 0.01, 0.1, 1.0)
        ),
        key=lambda classifier: classifier.score(held / scale, truth),
    )
    return Rival(
        lambda rows: best.predict(features(rows) / scale),
        size + best.coef_.size * FLOAT16,
        len(rows) + len(chosen),
    )


def fresh(run: Run) -> Rival:
    """A model of the same family from random weights, distilled from the tuned model."""
    rows = run.task.splits["calibration"][:LABELS]
    model = distilled(run.task, run.backbone, rows, FRESH_PARAMETERS)
    parameters, labels = count_parameters(model), len(rows) + len(run.task.splits["selection"])
    note = f"{parameters / 1e6:.1f} million parameters"
    return Rival(_answers(run, model), parameters * FLOAT16, labels, note=note)


def dense(run: Run) -> Rival:
    """The dense model of the run: as it comes, or tuned if the run has an adapter."""
    model = run.backbone.model
    labels = len(run.task.splits["calibration"]) if run.config.model.adapter else 0
    return Rival(_answers(run, model), count_parameters(model) * FLOAT16, labels)


def eight_bits(run: Run) -> Rival:
    """The tuned model with all block matrices in 8 bits by torchao, as `quantization=int8` does."""
    model = run.backbone.model
    names = [matrix.name for matrix in run.backbone.matrices()]
    rest = count_parameters(model) * FLOAT16 - stored_bytes(model, names, torch.float16)
    done = quantize(model, names, QuantizationConfig("int8"), torch.float16)
    rival = dense(run)
    return Rival(rival.answers, rest + done.bytes_after, rival.labels)


def gguf_form(run: Run, form: Form) -> Rival:
    """The tuned model with block matrices in a GGUF form, the embedding in Q8_0.

    The package `gguf` quantizes. Weights are restored to the dense type, so the
    score is that of the form, and the speed would not be. Rows that do not fill whole groups of
    the form stay as they are.
    """
    model, size = run.backbone.model, 0
    embedding = model.get_input_embeddings().weight
    wanted = {id(m.weight): form for m in _linear(model)} | {id(embedding): Form.Q8_0}
    with torch.no_grad():
        for weight in model.parameters():
            kind = wanted.get(id(weight))
            if kind is None or weight.shape[-1] % GGML_QUANT_SIZES[kind][0]:
                size += weight.numel() * FLOAT16
                continue
            packed = gguf.quants.quantize(weight.float().numpy(), kind)
            weight.copy_(torch.from_numpy(gguf.quants.dequantize(packed, kind)))
            size += packed.nbytes
    rival = dense(run)
    return Rival(rival.answers, size, rival.labels, timed=False)


def _linear(model: PreTrainedModel) -> Iterator[nn.Linear]:
    return (m for m in model.base_model.modules() if isinstance(m, nn.Linear))


def fewer_blocks(run: Run) -> Rival:
    """The tuned model without the blocks that it misses least, within the tolerance.

    Each block is left out alone once; they are dropped in the order of the loss on some selection
    rows, as many as all selection rows allow (a single round of TALE, arXiv:2510.22767).
    """
    model, rows = run.backbone.model, run.task.splits["selection"]
    some, every = (_batches(run, part) for part in (rows[:BLOCK_ROWS], rows))
    count, least = model.config.num_hidden_layers, _share(model, every) - run.config.tolerance
    losses = []
    for block in range(count):
        with _blocks(model, [b for b in range(count) if b != block]):
            losses.append(float(score(model, some).losses.mean()))
    order = np.argsort(losses).tolist()
    dropped = next(n for n in range(1, count) if not _stays(model, every, order[:n], least)) - 1
    kept = sorted(order[dropped:])
    with _blocks(model, kept):
        size = count_parameters(model) * FLOAT16
    answers = _answers(run, model)

    def shorter(rows: Sequence[Example]) -> np.ndarray:
        with _blocks(model, kept):
            return answers(rows)

    labels = len(run.task.splits["calibration"]) + len(rows)
    return Rival(shorter, size, labels, note=f"{len(kept)} of {count} blocks")


def _stays(
    model: PreTrainedModel, rows: Sequence[ScoredBatch], without: Sequence[int], least: float
) -> bool:
    """Whether the share of right answers stays above the least without some blocks."""
    kept = [b for b in range(model.config.num_hidden_layers) if b not in without]
    with _blocks(model, kept):
        return _share(model, rows) >= least


@contextmanager
def _blocks(model: PreTrainedModel, kept: Sequence[int]) -> Iterator[None]:
    """The model with some of its blocks, in order."""
    base, config = model.base_model, model.config
    layers, count = base.layers, config.num_hidden_layers
    base.layers, config.num_hidden_layers = nn.ModuleList(layers[i] for i in kept), len(kept)
    try:
        yield
    finally:
        base.layers, config.num_hidden_layers = layers, count


def _batches(run: Run, rows: Sequence[Example]) -> Sequence[ScoredBatch]:
    """The rows as the run encodes them: its chat template, its normalization."""
    return run.data.scoring_batches(rows)


def _share(model: PreTrainedModel, batches: Sequence[ScoredBatch]) -> float:
    """The share of right answers."""
    return float(score(model, batches).values.mean())


def _answers(run: Run, model: PreTrainedModel) -> Answers:
    """The answers of a language model, by the likelihood of the choices."""

    @torch.inference_mode()
    def answers(rows: Sequence[Example]) -> np.ndarray:
        chosen = np.empty(len(rows), int)
        for batch in _batches(run, rows):
            chosen[batch.examples.numpy()] = batch.outcome(model).predicted.numpy()
        return chosen

    return answers


def sieved(run: Run, model: PreTrainedModel) -> Rival:
    """An exported model. It has seen the labels that tuned its dense model and chose its size."""
    labels = len(run.task.splits["calibration"]) + len(run.task.splits["selection"])
    return Rival(_answers(run, model), count_parameters(model) * FLOAT16, labels)
