"""Tiny random sequence classifiers of three classes, and rows for them."""

import transformers
from models import VOCAB_SIZE, randomized
from transformers import PreTrainedModel

from sieve.tasks.example import Example

ENCODER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 130,
    "vocab_size": VOCAB_SIZE,
    "pad_token_id": 0,
    "num_labels": 3,
}
EXAMPLES = [
    Example("a good movie" + " the" * (2 * i % 7) + f" {i}", (" a", " b", " c"), i % 3)
    for i in range(12)
]


def tiny_classifier(name: str = "Bert", **options: object) -> PreTrainedModel:
    """A random classifier of three classes."""
    model_class = getattr(transformers, f"{name}ForSequenceClassification")
    if name == "ModernBert":
        options = {"local_attention": 8, "cls_token_id": 1, "sep_token_id": 2} | options
    return randomized(model_class, model_class.config_class(**(ENCODER | options)))
