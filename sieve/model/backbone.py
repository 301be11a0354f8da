"""A Hugging Face causal language model or sequence classifier and its tokenizer.

The model comes from the Hub or a local directory. Its weights keep the values of the checkpoint's
dtype (the storage dtype) even if the model computes in another dtype.
"""

import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase
from transformers import logging as transformers_logging

from sieve.config import ModelConfig
from sieve.factorized.modeling_sieve import contiguous_input, native_class
from sieve.model.checkpoint_files import (
    LoadingInfo,
    auto_class,
    check_complete,
    check_finite,
    explained_errors,
    find_model,
    hub_options,
    load_config,
    load_tokenizer,
    weights_fingerprint,
)
from sieve.model.gguf_files import (
    check_installed,
    dequantized,
    forget_quantization,
    is_gguf,
    source,
)
from sieve.model.matrices import Matrix, find_matrices


@dataclass
class Backbone:
    """A loaded model in evaluation mode, without gradients."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    fingerprint: str
    storage_dtype: torch.dtype  # of the checkpoint

    @property
    def skeleton(self) -> PreTrainedModel:
        """The model, for callers that need its structure but not its weights."""
        return self.model

    @property
    def device(self) -> torch.device:
        """The device that the model computes on."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the model computes in."""
        return self.model.dtype

    def matrices(self, head: bool = False, embedding: bool = False) -> list[Matrix]:
        """The prunable matrices, with the output head and the input embedding if asked for."""
        return find_matrices(self.model, head, embedding)

    @property
    def context_length(self) -> int | None:
        """The longest input in tokens; None if the model sets no limit."""
        return usable_length(self.skeleton, self.tokenizer)

    @property
    def parameters(self) -> int:
        """Number of parameters, counting tied ones once."""
        return count_parameters(self.model)


def context_length(model: PreTrainedModel) -> int | None:
    """The longest input in tokens by the model's configuration; None if it sets no limit."""
    text = model.config.get_text_config()
    for key in ("max_position_embeddings", "n_positions", "max_seq_len"):
        if isinstance(length := getattr(text, key, None), int):
            return length
    return None


def usable_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """As `context_length`, but at most what the tokenizer of a classifier says."""
    limit = context_length(model)
    if limit is not None and is_classifier(model):
        # Some encoders include padding positions in their own limit.
        return min(limit, tokenizer.model_max_length)
    return limit


def count_parameters(model: torch.nn.Module) -> int:
    """Number of parameters of a module, counting shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def load_backbone(
    config: ModelConfig, device: torch.device, put: Callable[..., None] | None = None
) -> Backbone:
    """Load a model and its tokenizer onto a device.

    Args:
        put: called as put(model, device, dtype) to move the weights, which are views of their
            files until then; None: `place`.

    Raises:
        ValueError: the path holds no model, the Hub cannot be reached, or weights are missing, not
            finite or stored as pickle.
    """
    path = find_model(config.path)
    model = load_model(config, path)
    tokenizer = load_tokenizer(config, path)
    if is_classifier(model):
        agree_on_padding(model, tokenizer)
    check_finite(model)
    model.eval()
    model.requires_grad_(False)
    storage_dtype = model.dtype
    (put or place)(model, device, compute_dtype(config.dtype, storage_dtype, device))
    key = weights_fingerprint(path, config.revision)
    return Backbone(model, tokenizer, config.label, key, storage_dtype)


def load_model(
    config: ModelConfig, path: str, dtype: torch.dtype | str = "auto"
) -> PreTrainedModel:
    """A model on the CPU, with every weight of its checkpoint.

    Args:
        path: what `find_model` returned.
        dtype: of the weights; "auto": the checkpoint's.
    """
    transformers_logging.disable_progress_bar()
    # Otherwise transformers would ask a public service to convert a Hub model without safetensors.
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
    options = hub_options(config)
    if config.attn_implementation:
        options["attn_implementation"] = config.attn_implementation
    if is_gguf(path):
        check_installed("accelerate")
        options |= dequantized()
    model_class = auto_class(load_config(config, path))
    with source(path) as (name, file), explained_errors(config.path, "model", path):
        loaded = model_class.from_pretrained(
            name,
            dtype=dtype,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **file,
            **options,
        )
    model, loading_info = cast("tuple[PreTrainedModel, LoadingInfo]", loaded)
    check_complete(loading_info)
    if is_gguf(path):
        forget_quantization(model)
    return model


def agree_on_padding(model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a classifier and its tokenizer the same padding token: some models search for it."""
    text = model.config.get_text_config()
    if text.pad_token_id is None:
        text.pad_token_id = model.config.pad_token_id = pad_token_id(tokenizer)
    elif tokenizer.pad_token_id != text.pad_token_id:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(text.pad_token_id)


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """A token to pad with; padding is masked, so any token will do."""
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return int(token_id)
    return 0


def is_classifier(model: PreTrainedModel) -> bool:
    """Whether a model makes one prediction for a whole sequence."""
    return native_class(model).__name__.endswith("ForSequenceClassification")


def place(
    model: torch.nn.Module, device: torch.device | None, dtype: torch.dtype | None = None
) -> None:
    """Move a module to a device and a dtype in place; None changes nothing.

    Buffers that are not loaded but computed, such as rotary frequencies, keep their precision, as
    they do when transformers loads a model in a dtype.
    """
    computed = [
        (inner, name, buffer)
        for inner in model.modules()
        for name in inner._non_persistent_buffers_set
        if (buffer := inner._buffers.get(name)) is not None
    ]
    model.to(device=device, dtype=dtype)
    for inner, name, buffer in computed:
        inner._buffers[name] = buffer.to(device=device)


def compute_dtype(name: str, storage: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype to compute in: `name`, or the checkpoint's dtype for "auto".

    With "auto", a CPU computes in float32, unless it has instructions for a bfloat16 checkpoint.
    """
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cpu" and not (storage == torch.bfloat16 and cpu_has_bfloat16()):
        return torch.float32
    return storage


def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices: with AMX or AVX512-BF16 instructions."""
    # Old versions of torch do not tell.
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def input_names(model: PreTrainedModel) -> set[str]:
    """Names of the keyword arguments of a model's forward method."""
    return set(inspect.signature(model.forward).parameters)


def cache_name(model: PreTrainedModel) -> str:
    """The forward argument that takes cached keys and values; "" if there is none."""
    names = input_names(model)
    return next((name for name in ("cache", "past_key_values") if name in names), "")


def forward(
    model: PreTrainedModel, batch: dict[str, Tensor], keep: int, cache: Cache | None = None
) -> Tensor:
    """Logits (B, keep, V) of the last `keep` positions; most models compute no others.

    A classifier gives (B, 1, classes).

    Args:
        cache: keys and values of tokens before the rows; the model adds to it.
    """
    names = input_names(model)
    inputs: dict[str, object] = {key: value for key, value in batch.items() if key in names}
    if "logits_to_keep" in names:
        inputs["logits_to_keep"] = keep
    if "use_cache" in names:
        inputs["use_cache"] = cache is not None
    if cache is not None:
        inputs[cache_name(model)] = cache
    with contiguous_head_input(model):
        logits = model(**inputs).logits
    return logits[:, None] if logits.ndim == 2 else logits[:, -keep:]


@contextmanager
def contiguous_head_input(model: PreTrainedModel) -> Iterator[None]:
    """Copy what the output head reads: a slice of positions.

    On a CPU a linear layer is many times slower on a slice than on a copy of it.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is None:  # of a classifier or an ONNX graph
        yield
        return
    with head.register_forward_pre_hook(contiguous_input):
        yield


@contextmanager
def eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """Compute attention by plain products on a CPU inside the block.

    torch's fused attention has a slow backward pass for short rows on CPUs.
    """
    fused = model.config._attn_implementation
    if model.device.type != "cpu" or fused != "sdpa":
        yield
        return
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(fused)


@contextmanager
def replaced_forwards(forwards: Mapping[Any, Callable[..., Any]]) -> Iterator[None]:
    """Give modules other forward methods inside the `with` block."""
    own = {module: vars(module).get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module, before in own.items():
            del module.forward  # Restores the method of the class.
            if before is not None:
                module.forward = before


@contextmanager
def with_input_gradients(
    model: PreTrainedModel, checkpointed: Sequence[torch.nn.Module] = ()
) -> Iterator[None]:
    """Let gradients flow to a frozen model's activations inside the `with` block.

    Args:
        checkpointed: decoder blocks whose activations are recomputed in the backward pass.
    """

    def differentiable(_module: torch.nn.Module, _args: object, y: Tensor) -> Tensor:
        return y.detach().requires_grad_().clone()  # Some models scale it in place.

    def recomputed(inner: Callable[..., object]) -> Callable[..., object]:
        return lambda *args, **kwargs: checkpoint(
            partial(inner, **kwargs), *args, use_reentrant=True
        )

    with (
        model.get_input_embeddings().register_forward_hook(differentiable),
        replaced_forwards({block: recomputed(block.forward) for block in checkpointed}),
    ):
        yield
