"""A fresh small model, trained from scratch on labels and on the dense model's answers."""

import math
from collections.abc import Sequence

import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from sieve.data.batches import as_inputs
from sieve.data.choices import ScoringBatch, choice_logprobs, scoring_batches
from sieve.model.backbone import Backbone, count_parameters, forward
from sieve.tasks import Example, Task

EPOCHS, PATIENCE, RATE = 60, 8, 3e-3
HEAD = 32  # dimensions of an attention head
STEP = 8  # difference between the widths that are tried


def distilled(
    task: Task, backbone: Backbone, rows: Sequence[Example], parameters: int
) -> PreTrainedModel:
    """A fresh model of at most `parameters`, trained on some rows.

    The targets are right answers and the dense model's probabilities of the choices. The selection
    rows choose the best epoch.
    """
    model = fresh_model(backbone, parameters)

    def batches(some: Sequence[Example], tokens: int) -> list[ScoringBatch]:
        options = {"normalize": task.normalize, "chat": task.chat}
        return scoring_batches(some, backbone.tokenizer, tokens, **options)

    train, chosen = batches(rows, 1_024), batches(task.splits["selection"], 8_192)
    with torch.no_grad():
        teacher = [_shares(backbone.model, batch).exp() for batch in train]
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05)
    steps = EPOCHS * len(train)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps, pct_start=0.1)
    best, kept, waited = -1.0, model.state_dict(), 0
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
        reached = _accuracy(model, chosen)
        waited = 0 if reached > best else waited + 1
        if reached > best:
            best, kept = reached, {k: v.clone() for k, v in model.state_dict().items()}
        if waited >= PATIENCE:
            break
    model.load_state_dict(kept)
    return model.eval()


def fresh_model(backbone: Backbone, parameters: int) -> PreTrainedModel:
    """A random model of the backbone's family and vocabulary with at most `parameters`.

    It has two layers, or one if two do not fit. The width is the largest that fits; wider MLPs use
    the remaining parameters. Raises RuntimeError if not even the narrowest model fits.
    """
    torch.manual_seed(0)
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


def _shares(model: PreTrainedModel, batch: ScoringBatch) -> torch.Tensor:
    """Log-probabilities of the choices, (rows, choices)."""
    logits = forward(model, as_inputs(batch), batch.keep)
    return torch.log_softmax(choice_logprobs(logits, batch), 1)


@torch.inference_mode()
def _accuracy(model: PreTrainedModel, batches: Sequence[ScoringBatch]) -> float:
    model.eval()
    right = [(_shares(model, batch).argmax(1) == batch.answers).float() for batch in batches]
    return float(torch.cat(right).mean())
