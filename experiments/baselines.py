"""Baselines: a classifier on words, and a small model trained from scratch by distillation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from sieve.data.batches import as_inputs
from sieve.data.choices import ScoringBatch, choice_logprobs, scoring_batches
from sieve.model.backbone import Backbone, count_parameters, forward, load_backbone
from sieve.tasks import Example, Task, build_task

CPU = torch.device("cpu")
EPOCHS, PATIENCE = 60, 8
RATES = (3e-3, 1e-3)
HEAD = 32  # dimensions of an attention head
STEP = 8  # difference between the widths that are tried


@dataclass(frozen=True)
class Materials:
    """The task, model and rows of a run of the claim `kept`."""

    task: Task
    backbone: Backbone
    seen: list[Example]  # calibration rows up to the token budget

    @property
    def test(self) -> list[Example]:
        """The test rows."""
        return self.task.splits["test"]


def materials(out: Path, subject: str) -> Materials:
    """Load the task, the model, and the rows that a run calibrates on."""
    from experiments.jobs import composed

    config = composed(["+experiment=kept", f"subject={subject}"], out)
    task = build_task(config.task, config.seed)
    backbone = load_backbone(config.model, CPU)
    rows = task.splits["calibration"]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(config.seed)).tolist()
    seen, tokens = [], 0
    for index in order:
        if tokens >= config.calibration.tokens:
            break
        seen.append(rows[index])
        tokens += len(backbone.tokenizer(rows[index].prompt)["input_ids"])
    return Materials(task, backbone, seen)


def words(train: Sequence[Example], test: Sequence[Example]) -> float:
    """Test accuracy of a logistic regression on TF-IDF of words and pairs of words.

    The classes are the texts of the answers. The prediction is the likeliest choice of a row; a
    choice that was never a right answer is the least likely.
    """
    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    inputs = vectors.fit_transform([example.prompt for example in train])
    model = LogisticRegression(max_iter=1000, C=10)
    model.fit(inputs, [example.choices[example.answer] for example in train])
    known = {text: place for place, text in enumerate(model.classes_)}
    chances = model.predict_proba(vectors.transform([example.prompt for example in test]))
    right = 0
    for row, example in zip(chances, test, strict=True):
        scores = [row[known[c]] if c in known else -1.0 for c in example.choices]
        right += int(max(range(len(scores)), key=scores.__getitem__) == example.answer)
    return right / len(test)


def distilled(
    given: Materials, parameters: int, rates: Sequence[float] = RATES
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A fresh model of at most `parameters`, trained on the rows that Sieve saw, and its record.

    The targets are right answers and the dense model's probabilities of the choices. The selection
    rows choose the best learning rate and its best epoch.
    """
    trained = [_trained(given, parameters, rate) for rate in rates]
    return max(trained, key=lambda pair: pair[1]["selection"])


def fresh_model(backbone: Backbone, parameters: int, seed: int = 0) -> PreTrainedModel:
    """A random model of the backbone's family and vocabulary with at most `parameters`.

    It has two layers, or one if two do not fit. The width is the largest that fits; wider MLPs use
    the remaining parameters. Raises RuntimeError if not even the narrowest model fits.
    """
    torch.manual_seed(seed)
    for layers in (2, 1):
        for width in range(backbone.model.config.hidden_size, 0, -STEP):
            model = _shaped(backbone, width, layers, math.ceil(2.7 * width))
            if (room := parameters - count_parameters(model)) >= 0:
                more = room // (3 * width * layers)
                return _shaped(backbone, width, layers, math.ceil(2.7 * width) + more)
    raise RuntimeError(f"no model of this vocabulary has at most {parameters} parameters.")


def _shaped(backbone: Backbone, width: int, layers: int, intermediate: int) -> PreTrainedModel:
    config = AutoConfig.for_model(**backbone.model.config.to_dict())
    heads = max(1, width // HEAD)
    config.hidden_size, config.num_hidden_layers = width, layers
    config.num_attention_heads = config.num_key_value_heads = heads
    config.head_dim, config.intermediate_size = HEAD, intermediate
    config.dtype = torch.float32
    return AutoModelForCausalLM.from_config(config)


def _trained(
    given: Materials, parameters: int, rate: float
) -> tuple[PreTrainedModel, dict[str, Any]]:
    tokenizer = given.backbone.tokenizer
    model = fresh_model(given.backbone, parameters)

    def batches(rows: Sequence[Example], tokens: int) -> list[ScoringBatch]:
        options = {"normalize": given.task.normalize, "chat": given.task.chat}
        return scoring_batches(rows, tokenizer, tokens, **options)

    train = batches(given.seen, 1_024)
    with torch.no_grad():
        teacher = [_shares(given.backbone.model, batch).exp() for batch in train]
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
    total = EPOCHS * len(train)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total, pct_start=0.1)
    chosen, kept, waited = batches(given.task.splits["selection"], 8_192), {}, 0
    best = -1.0
    for epoch in range(EPOCHS):
        model.train()
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(epoch)).tolist()
        for place in order:
            shares = _shares(model, train[place])
            loss = functional.nll_loss(shares, train[place].answers)
            loss = loss - torch.where(teacher[place] > 0, teacher[place] * shares, 0).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        found = _accuracy(model, chosen)
        waited = 0 if found > best else waited + 1
        if found > best:
            best, kept = found, {k: v.clone() for k, v in model.state_dict().items()}
        if waited >= PATIENCE:
            break
    model.load_state_dict(kept)
    return model, {
        "parameters": count_parameters(model),
        "rate": rate,
        "epochs": epoch + 1,
        "selection": best,
        "accuracy": _accuracy(model, batches(given.test, 8_192)),
    }


def _shares(model: PreTrainedModel, batch: ScoringBatch) -> torch.Tensor:
    """Log-probabilities of the choices, (rows, choices)."""
    logits = forward(model, as_inputs(batch), batch.keep)
    return torch.log_softmax(choice_logprobs(logits, batch), 1)


@torch.inference_mode()
def _accuracy(model: PreTrainedModel, batches: Sequence[ScoringBatch]) -> float:
    model.eval()
    right = [(_shares(model, batch).argmax(1) == batch.answers).float() for batch in batches]
    return float(torch.cat(right).mean())
