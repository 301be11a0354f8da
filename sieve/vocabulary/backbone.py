"""A model and its tokenizer with some of their tokens, beside the same with all of them."""

from collections.abc import Collection
from dataclasses import dataclass, replace

from sieve.model.backbone import Backbone
from sieve.runtime.artifacts import fingerprint
from sieve.vocabulary.model import Vocabulary, least_tokens, named_ids
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


def cut_backbone(backbone: Backbone, used: Collection[int], fill: float = 0.0) -> CutBackbone:
    """Take most tokens that are not used from a model, in place, and from its tokenizer.

    Args:
        used: ids of tokens that stay.
        fill: share of the model's parameters that the embeddings have at least; where the tokens
            that stay have fewer, the most common others stay too.

    Raises:
        ValueError: the tokenizer or the model cannot be cut exactly.
    """
    model = backbone.model
    used, least = {*used, *named_ids(model)}, least_tokens(model, fill)
    tokenizer, stays = cut_tokenizer(backbone.tokenizer, used, least)
    vocabulary = Vocabulary(model, stays)
    key = fingerprint(backbone.fingerprint, stays)
    smaller = replace(backbone, tokenizer=tokenizer, fingerprint=key)
    return CutBackbone(smaller, backbone, vocabulary, frozenset(stays))
