"""Embedding and output head as dense matrices, for engines that compute these themselves."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from sieve.bank.merging import merged_like, to_merge
from sieve.distributed.sharding import is_sharded
from sieve.exports.onnx import replaced_layers
from sieve.model.matrices import block_of
from sieve.quantization import check_not_quantized


@contextmanager
def ends_merged(model: PreTrainedModel, merge: bool = True) -> Iterator[None]:
    """Multiply the factors of embedding and output head for the block; `merge=False` does nothing.

    Raises:
        ValueError: the model is sharded over ranks or quantized, or the head needs a bias that its
            architecture lacks.
    """
    with torch.no_grad(), replaced_layers(model) as layers:
        ends = [name for name in layers if merge and block_of(name) == name]
        if ends and is_sharded(model):
            raise ValueError(
                "got a model sharded over ranks, whose head cannot be merged; run the same command "
                "again with trainer=cpu, which only exports."
            )
        if ends:
            check_not_quantized(model)
        for name, (layer, original) in to_merge(model, ends).items():
            model.set_submodule(name, merged_like(layer, original))
        yield
