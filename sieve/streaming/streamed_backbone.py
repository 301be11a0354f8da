"""A backbone of which calibration and fit read one block at a time from its files.

The whole model is loaded once something else asks for it: the search, as a rule.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

from sieve.config import ModelConfig
from sieve.model.backbone import Backbone, compute_dtype
from sieve.model.checkpoint_files import (
    auto_class,
    find_model,
    load_config,
    load_tokenizer,
    weights_fingerprint,
)
from sieve.model.matrices import Matrix, check_supported
from sieve.streaming.blocks import BlockModel
from sieve.streaming.checkpoint import Checkpoint, fetch

log = logging.getLogger(__name__)


class StreamedBackbone(Backbone):
    """`model` is loaded by `load` at its first use; until then `blocks` is all there is."""

    def __init__(self, blocks: BlockModel, load: Callable[[], Backbone], **known: Any) -> None:
        self.blocks, self._load = blocks, load
        self._parameters = sum(p.numel() for p in blocks.model.parameters())
        for name, value in known.items():
            setattr(self, name, value)

    def __getattr__(self, name: str) -> Any:
        if name != "model":
            raise AttributeError(name)
        log.info("loading the whole model, which has been read block by block so far")
        self.model = self._load().model
        return self.model

    @property
    def skeleton(self) -> PreTrainedModel:
        """The model without weights."""
        return self.blocks.model

    @property
    def device(self) -> torch.device:
        """Where blocks are computed."""
        return self.blocks.device

    @property
    def dtype(self) -> torch.dtype:
        """What blocks are computed in."""
        return self.blocks.dtype

    @property
    def parameters(self) -> int:
        """Number of parameters, tied ones once."""
        return self._parameters

    def matrices(self, head: bool = False) -> list[Matrix]:
        """The prunable matrices, the output head too where it was asked for at the start."""
        return self.blocks.matrices


def load_streamed(
    config: ModelConfig,
    device: torch.device,
    head: bool,
    load: Callable[[], Backbone],
) -> StreamedBackbone:
    """What there is to know of a model before its weights are read.

    head: whether the output head is to be pruned. load: loads all of it.
    Raises ValueError as `load_backbone`, and where the model cannot be walked through.
    """
    path = find_model(config.path)
    found = load_config(config, path)
    tokenizer = load_tokenizer(config, path)
    stored: Any = found.get_text_config().dtype or torch.float32
    dtype = compute_dtype(config.dtype, stored, device)
    kind: Any = auto_class(found)
    prefix = kind._model_mapping[type(found)].base_model_prefix

    def build() -> PreTrainedModel:
        more: dict[str, Any] = {"trust_remote_code": config.trust_remote_code}
        if config.attn_implementation:
            more["attn_implementation"] = config.attn_implementation
        model: PreTrainedModel = kind.from_config(found, **more)
        return model.eval()

    blocks = BlockModel(
        build, Checkpoint(fetch(path, config.revision), prefix), device, dtype, head,
        lambda model: check_supported(model, config.allow_partial),
    )  # fmt: skip
    return StreamedBackbone(
        blocks, load, tokenizer=tokenizer, name=config.label,
        fingerprint=weights_fingerprint(path, config.revision), storage_dtype=stored,
    )  # fmt: skip
