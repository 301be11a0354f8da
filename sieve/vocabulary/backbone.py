"""A model and its tokenizer with some of their tokens, beside the same with all of them."""

from collections.abc import Collection
from dataclasses import dataclass, replace

from sieve.model.backbone import Backbone
from sieve.runtime.artifacts import fingerprint
from sieve.vocabulary.model import Vocabulary, named_ids
from sieve.vocabulary.tokenizer import cut_tokenizer


@dataclass(frozen=True)
class CutBackbone:
    """Both have the same model, in which `vocabulary` puts the embeddings of all tokens back."""

    backbone: Backbone  # with the tokens that stay
    original: Backbone
    vocabulary: Vocabulary
    stays: frozenset[int]  # ids of the tokens that stay, in the original

    @property
    def parameters(self) -> int:
        """Number of parameters of the original."""
        return self.backbone.parameters + self.vocabulary.removed


def cut_backbone(backbone: Backbone, used: Collection[int]) -> CutBackbone:
    """Take most tokens that are not used from a model, in place, and from its tokenizer.

    Args:
        used: ids of tokens that stay.

    Raises:
        ValueError: the tokenizer or the model cannot be cut exactly.
    """
    model = backbone.model
    tokenizer, stays = cut_tokenizer(backbone.tokenizer, {*used, *named_ids(model)})
    vocabulary = Vocabulary(model, stays)
    key = fingerprint(backbone.fingerprint, stays)
    smaller = replace(backbone, tokenizer=tokenizer, fingerprint=key)
    return CutBackbone(smaller, backbone, vocabulary, frozenset(stays))
