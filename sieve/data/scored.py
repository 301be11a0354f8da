"""The base of the batches that a model is scored on: choices, text or written answers."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from sieve.data.batches import TensorBatch
from sieve.data.prefix import PrefixCache
from sieve.tasks.metrics import ACCURACY, Metric
from sieve.tasks.scores import Outcome

LARGEST_DIVERGENCE = 100.0  # nats; also stands for a divergence that is infinite or NaN
NOT_FINITE = -1  # the predicted choice where log-likelihoods are not finite

Reference = dict[int, Any]  # results of the dense model, by example


@dataclass(kw_only=True)
class ScoredBatch(TensorBatch, ABC):
    """Rows of tokens, and how a model is scored on the N examples that they belong to."""

    input_ids: Tensor  # (B, T) int64
    attention_mask: Tensor  # (B, T) int64
    position_ids: Tensor | None = None  # (B, T) int64; None: the model counts positions itself
    examples: Tensor  # (N,) int64: index into the list of examples
    metric: Metric = ACCURACY  # how the values of all examples become one number

    def outcome(
        self,
        model: PreTrainedModel,
        reference: Reference | None = None,
        prefix_cache: PrefixCache | None = None,
    ) -> Outcome:
        """Score a model.

        Args:
            reference: results of the dense model, which divergences are computed from. Examples
                that are missing in it add their own results, so score the dense model first. Its
                prompts and batches may be other ones. None: no divergences.
            prefix_cache: what earlier batches computed with the same weights; None runs every row
                whole.
        """
        return self._outcome(model, reference, prefix_cache or PrefixCache(lends=False))

    @abstractmethod
    def _outcome(
        self, model: PreTrainedModel, reference: Reference | None, prefix_cache: PrefixCache
    ) -> Outcome: ...


def dense_results(reference: Reference, examples: Tensor, own: Tensor) -> Tensor:
    """The dense model's values of a batch's examples, in the shape of `own`.

    own: the batch's values, (N,) or (N, C), −inf where an example has fewer than C. They are added
    to the reference for examples that it does not have.
    """
    indexes = examples.tolist()
    for index, values in zip(indexes, own, strict=True):
        reference.setdefault(index, values)
    if own.ndim == 1:
        return torch.stack([reference[index] for index in indexes])
    width = own.shape[1]  # A batch of other examples may have had more or fewer columns.
    rows = [reference[index][:width] for index in indexes]
    return torch.stack([pad(row, (0, width - len(row)), value=-torch.inf) for row in rows])


def clamped_divergence(nats: Tensor) -> Tensor:
    """Divergences between 0 and `LARGEST_DIVERGENCE`, which also replaces NaN and infinity."""
    return nats.nan_to_num(LARGEST_DIVERGENCE, LARGEST_DIVERGENCE).clamp(0.0, LARGEST_DIVERGENCE)
