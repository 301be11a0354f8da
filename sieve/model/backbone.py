"""A Hugging Face causal language model or sequence classifier and its tokenizer, checked.

Works on a Hub name or a local directory. The weights keep the values of the checkpoint's dtype
(the storage dtype) even where they are computed with in another. Weights are read from safetensors
alone: no pickle is ever loaded.
"""

import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Cache,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import logging as transformers_logging
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils import cached_file

from sieve.config import ModelConfig
from sieve.factorized.modeling_sieve import native_class
from sieve.model.matrices import Matrix, find_matrices
from sieve.model.quantized import parts
from sieve.runtime.artifacts import fingerprint, hash_files

# Files of a directory that say what the model computes: weights, configuration, tokenizer, code.
DIGESTED = (
    "*.safetensors", "config.json", "tokenizer*", "vocab*", "merges.txt", "added_tokens.json",
    "special_tokens_map.json", "chat_template*", "*.py",
)  # fmt: skip


@dataclass
class Backbone:
    """A loaded model in evaluation mode, without gradients.

    storage_dtype: dtype of the checkpoint; context_length: longest input in tokens, or None.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    fingerprint: str
    storage_dtype: torch.dtype

    @property
    def skeleton(self) -> PreTrainedModel:
        """The model, for those who ask how it is built and not for its weights."""
        return self.model

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return self.model.dtype

    def matrices(self, head: bool = False) -> list[Matrix]:
        """The prunable matrices."""
        return find_matrices(self.model, head)

    @property
    def context_length(self) -> int | None:
        """Longest input in tokens that the model was made for."""
        limit = context_length(self.skeleton)
        if limit is not None and is_classifier(self.skeleton):  # Some encoders count padding in.
            return min(limit, self.tokenizer.model_max_length)
        return limit

    @property
    def parameters(self) -> int:
        """Number of parameters, tied ones once."""
        return count_parameters(self.model)


def context_length(model: PreTrainedModel) -> int | None:
    """Longest input in tokens that a model was made for; None where it sets no limit."""
    text = model.config.get_text_config()
    for key in ("max_position_embeddings", "n_positions", "max_seq_len"):
        if isinstance(length := getattr(text, key, None), int):
            return length
    return None


def count_parameters(model: torch.nn.Module) -> int:
    """Number of parameters of a module, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def load_backbone(
    config: ModelConfig, device: torch.device, put: Callable[..., None] | None = None
) -> Backbone:
    """Load model and tokenizer onto a device.

    The weights are views of their files until they are placed. put: what places a model, by default
    `place`, and is given the device and the dtype.

    Raises:
        ValueError: the path holds no model, the Hub cannot be had, or weights are stored as pickle,
            not all there or not finite.
    """
    transformers_logging.disable_progress_bar()
    # Else transformers would send a Hub model without safetensors to a public converter.
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
    options = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    path = find_model(config.path)
    if config.attn_implementation:
        options["attn_implementation"] = config.attn_implementation
    model, loaded = load_part(
        config.path, "model", auto_class(loaded_config(config, path)), path, dtype="auto",
        use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True, **options,
    )  # fmt: skip
    options.pop("attn_implementation", None)
    tokenizer = load_part(config.path, "tokenizer", AutoTokenizer, path, **options)
    if is_classifier(model):
        _agree_on_padding(model, tokenizer)
    storage_dtype = model.dtype
    _check_whole(loaded)
    _check_finite(model)
    model.eval()
    model.requires_grad_(False)
    (put or place)(model, device, compute_dtype(config.dtype, storage_dtype, device))
    key = weights_fingerprint(path, config.revision)
    return Backbone(model, tokenizer, config.label, key, storage_dtype)


def loaded_config(config: ModelConfig, path: str) -> PreTrainedConfig:
    """The configuration of a model, without its weights."""
    options = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    found: PreTrainedConfig = load_part(config.path, "configuration", AutoConfig, path, **options)
    return found


def auto_class(config: PreTrainedConfig) -> Any:
    """The Auto class of a model: that of a classifier where its configuration says it is one."""
    names = config.architectures or [""]
    classifies = names[0].endswith("ForSequenceClassification")
    return AutoModelForSequenceClassification if classifies else AutoModelForCausalLM


def _agree_on_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let the tokenizer pad with what a classifier takes for padding, as some look for it."""
    text = model.config.get_text_config()
    if text.pad_token_id is None:
        text.pad_token_id = model.config.pad_token_id = pad_token_id(tokenizer)
    elif tokenizer.pad_token_id != text.pad_token_id:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(text.pad_token_id)


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """A token to pad with; it is masked, so any will do."""
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return int(token_id)
    return 0


def is_classifier(model: PreTrainedModel) -> bool:
    """Whether a model gives one prediction for a whole sequence."""
    return native_class(model).__name__.endswith("ForSequenceClassification")


def find_model(path: str, weights: bool = True) -> str:
    """The path of a local directory that holds a model, or a Hub name unchanged.

    weights: whether it has to hold more than a configuration.

    Raises ValueError for a directory without config.json or safetensors and for a path that is
    neither.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ValueError(
                f"{folder} holds no config.json; model.path expects a directory written by "
                "save_pretrained."
            )
        if weights and not any(folder.glob("*.safetensors")):
            raise ValueError(_no_safetensors(str(folder)))
        return str(folder)
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1
    if looks_local or folder.exists():
        raise ValueError(f"model.path is {path!r}: there is no such directory; check the path.")
    return path


def load_part(asked: str, part: str, auto_class: Any, path: str, **options: Any) -> Any:
    """What `from_pretrained` returns; ValueError in one sentence when it fails."""
    try:
        return auto_class.from_pretrained(path, **options)
    except SafetensorError as error:
        raise ValueError(
            f"the weights of {asked!r} are damaged ({error}); get the checkpoint again."
        ) from error
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if "cannot be loaded with `safetensors`" in reason:
            raise ValueError(_no_safetensors(f"the Hub model {asked!r}")) from error
        raise ValueError(
            f"the {part} of {asked!r} could not be loaded ({reason}); check model.path, or for a "
            "Hub model the network, its name and your access to it."
        ) from error
    except (AttributeError, RuntimeError, TypeError) as error:  # Built from a damaged config.json.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"the {part} of {asked!r} could not be built as its config.json says ({reason}); get "
            "the directory again, or export the model again."
        ) from error


def place(
    model: torch.nn.Module, device: torch.device | None, dtype: torch.dtype | None = None
) -> None:
    """Move a module to a device and to a dtype, where they are given, in place.

    Buffers that are computed and not loaded, such as the frequencies of rotary positions, keep
    their precision, as they do where transformers loads a model in a dtype.
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


def input_names(model: PreTrainedModel) -> set[str]:
    """Names of the keyword arguments of a model's forward method."""
    return set(inspect.signature(model.forward).parameters)


def cache_name(model: PreTrainedModel) -> str:
    """What a model's forward method calls its keys and values; "" where it takes none."""
    known = input_names(model)
    return next((name for name in ("cache", "past_key_values") if name in known), "")


def forward(
    model: PreTrainedModel, batch: dict[str, Tensor], keep: int, cache: Cache | None = None
) -> Tensor:
    """Logits (B, keep, V) of the last `keep` positions; where a model can, no others are made.

    Those of a classifier are of its classes, at one position. cache: keys and values that stand
    before the rows', to which a model adds.
    """
    known = input_names(model)
    inputs: dict[str, Any] = {key: value for key, value in batch.items() if key in known}
    if "logits_to_keep" in known:
        inputs["logits_to_keep"] = keep
    if "use_cache" in known:
        inputs["use_cache"] = cache is not None
    if cache is not None:
        inputs[cache_name(model)] = cache
    logits = model(**inputs).logits
    return logits[:, None] if logits.ndim == 2 else logits[:, -keep:]


@contextmanager
def with_input_gradients(
    model: PreTrainedModel, checkpointed: Sequence[torch.nn.Module] = ()
) -> Iterator[None]:
    """Let gradients flow to a frozen model's activations for the duration of the block.

    checkpointed: blocks whose activations are not held but computed again backwards.
    """
    forwards = {block: block.forward for block in checkpointed}

    def differentiable(_module: torch.nn.Module, _args: Any, y: Tensor) -> Tensor:
        return y.detach().requires_grad_().clone()  # Some models scale it in place.

    def recomputed(inner: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: checkpoint(
            partial(inner, **kwargs), *args, use_reentrant=True
        )

    handle = model.get_input_embeddings().register_forward_hook(differentiable)
    try:
        for block, inner in forwards.items():
            block.forward = recomputed(inner)
        yield
    finally:
        handle.remove()
        for block in forwards:
            del block.forward  # The class's own shows again.


def compute_dtype(name: str, storage: torch.dtype, device: torch.device) -> torch.dtype:
    if name != "auto":
        return getattr(torch, name)
    return torch.float32 if device.type == "cpu" else storage


def _no_safetensors(where: str) -> str:
    return (
        f"{where} holds no *.safetensors, and weights are read from no other format, for a pickle "
        "(*.bin) can run code; load a model that you trust with transformers and write it with "
        "save_pretrained."
    )


def _check_whole(loaded: dict[str, Any]) -> None:
    """ValueError where transformers filled in random weights for what the checkpoint lacks."""
    names = sorted({*loaded["missing_keys"], *(key[0] for key in loaded["mismatched_keys"])})
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise ValueError(
            f"the weights {names[0]}{more} are missing from the checkpoint or not of the shape "
            "that its config.json asks for; get the checkpoint again."
        )


def _check_finite(model: PreTrainedModel) -> None:
    for name, parameter in model.named_parameters():
        if not all(torch.isfinite(part).all() for part in parts(parameter)):
            raise ValueError(
                f"the weights {name} are not finite (NaN or infinity); the checkpoint is damaged, "
                "get it again."
            )


def weights_fingerprint(path: str, revision: str | None) -> str:
    """Digest of weights and tokenizer: of a directory's files, or of a Hub model's commit."""
    folder = Path(path)
    if not folder.is_dir():
        # <cache>/models--<name>/snapshots/<commit>/config.json
        config_file = cached_file(path, "config.json", revision=revision)
        assert config_file is not None
        return fingerprint(path, Path(config_file).parent.name)
    files = {file for pattern in DIGESTED for file in folder.glob(pattern) if file.is_file()}
    return fingerprint(hash_files(list(files)))
