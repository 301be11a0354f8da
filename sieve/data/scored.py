"""The base of the batches that a model is scored on: choices, text or written answers."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from sieve.data.batches import TensorBatch
from sieve.data.prefix import PrefixCache
from sieve.tasks.metrics import ACCURACY, Metric
from sieve.tasks.scores import Outcome

LARGEST_DIVERGENCE = 100.0  # nats; also stands for a divergence that is infinite or NaN
NOT_FINITE = -1  # the predicted choice where log-likelihoods are not finite

Reference = dict[int, Any]  # results of the dense model, by the first example of a batch


@dataclass(kw_only=True)
class ScoredBatch(TensorBatch, ABC):
    """Rows of tokens, and how a model is scored on the N examples that they belong to."""

    input_ids: Tensor  # (B, T) int64
    attention_mask: Tensor  # (B, T) int64
    position_ids: Tensor | None = None  # (B, T) int64; None: the model counts positions itself
    examples: Tensor  # (N,) int64: index into the list of examples
    metric: Metric = ACCURACY  # how the values of all examples become one number

    @property
    def key(self) -> int:
        """The key of this batch in a `Reference`."""
        return int(self.examples[0])

    def outcome(
        self,
        model: PreTrainedModel,
        reference: Reference | None = None,
        prefix_cache: PrefixCache | None = None,
    ) -> Outcome:
        """Score a model.

        Args:
            reference: results of the dense model, which divergences are computed from. A batch that
                is missing in it adds its own results, so score the dense model first. None: no
                divergences.
            prefix_cache: what earlier batches computed with the same weights; None runs every row
                whole.
        """
        return self._outcome(model, reference, prefix_cache or PrefixCache(lends=False))

    @abstractmethod
    def _outcome(
        self, model: PreTrainedModel, reference: Reference | None, prefix_cache: PrefixCache
    ) -> Outcome: ...


def clamped_divergence(nats: Tensor) -> Tensor:
    """Divergences between 0 and `LARGEST_DIVERGENCE`, which also replaces NaN and infinity."""
    return nats.nan_to_num(LARGEST_DIVERGENCE, LARGEST_DIVERGENCE).clamp(0.0, LARGEST_DIVERGENCE)
