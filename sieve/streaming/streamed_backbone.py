"""A backbone whose blocks are read one at a time.

Calibration and fit read each block once. Stages that only run the model read each block whenever it
runs. If another stage needs more, the whole model is loaded when a stage after the fit first uses
it.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from sieve.config import ModelConfig
from sieve.model.backbone import Backbone, agree_on_padding, compute_dtype, is_classifier
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
from sieve.streaming.offloaded import offload

log = logging.getLogger(__name__)


class StreamedBackbone(Backbone):
    """A backbone with `blocks`, and the whole model from the first use of `model` on.

    Args:
        load: loads the whole model.
        again: builds the blocks of a model that reads them while they run, in place of `load`.
    """

    def __init__(
        self,
        blocks: BlockModel,
        load: Callable[[], Backbone],
        *,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        fingerprint: str,
        storage_dtype: torch.dtype,
        again: Callable[[], BlockModel] | None = None,
    ) -> None:
        self._again = again
        self.blocks, self._load = blocks, load
        self.tokenizer, self.name = tokenizer, name
        self.fingerprint, self.storage_dtype = fingerprint, storage_dtype
        self._parameters = sum(p.numel() for p in blocks.model.parameters())

    def __getattr__(self, name: str) -> PreTrainedModel:
        if name != "model":
            raise AttributeError(name)
        if self._again is not None:
            self.model = offload(self._again())
            return self.model
        log.info("Loading the whole model, which was read block by block so far.")
        self.model = self._load().model
        return self.model

    @property
    def skeleton(self) -> PreTrainedModel:
        """The model without weights."""
        return self.blocks.model

    @property
    def device(self) -> torch.device:
        """The device that computes blocks."""
        return self.blocks.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that blocks are computed in."""
        return self.blocks.dtype

    @property
    def parameters(self) -> int:
        """Number of parameters, tied ones once."""
        return self._parameters

    def matrices(self, head: bool = False, embedding: bool = False) -> list[Matrix]:
        """The prunable matrices; whether the head is one was set when the model was loaded.

        The embedding is none: it stays whole.
        """
        return self.blocks.matrices


def load_streamed(
    config: ModelConfig,
    device: torch.device,
    head: bool,
    load: Callable[[], Backbone],
    only_runs: bool = False,
) -> StreamedBackbone:
    """A streamed backbone; no weights of blocks are read yet.

    Raises ValueError like `load_backbone`, and if the model cannot run block by block.

    Args:
        head: whether the output head is prunable.
        load: loads the whole model.
        only_runs: whether later stages only run the model, so that `load` is not needed.
    """
    path = find_model(config.path)
    model_config = load_config(config, path)
    tokenizer = load_tokenizer(config, path)
    stored: Any = model_config.get_text_config().dtype or torch.float32
    dtype = compute_dtype(config.dtype, stored, device)
    kind: Any = auto_class(model_config)
    prefix = kind._model_mapping[type(model_config)].base_model_prefix

    def build() -> PreTrainedModel:
        options: dict[str, Any] = {"trust_remote_code": config.trust_remote_code}
        if config.attn_implementation:
            options["attn_implementation"] = config.attn_implementation
        model: PreTrainedModel = kind.from_config(model_config, **options)
        return model.eval()

    def streamed() -> BlockModel:
        return BlockModel(
            build,
            Checkpoint(fetch(path, config.revision), prefix),
            device,
            dtype,
            head,
            check=lambda model: check_supported(model, config.allow_partial),
        )

    blocks = streamed()
    if is_classifier(blocks.model):
        agree_on_padding(blocks.model, tokenizer)
    return StreamedBackbone(
        blocks,
        load,
        tokenizer=tokenizer,
        name=config.label,
        fingerprint=weights_fingerprint(path, config.revision),
        storage_dtype=stored,
        again=streamed if only_runs else None,
    )
