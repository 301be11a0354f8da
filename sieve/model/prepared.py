"""A GGUF file or a model with an adapter as an ordinary checkpoint, written once into the cache.

Every other part of Sieve then loads that checkpoint like any other: whole, sharded or block by
block. Its weights are stored in the smallest dtype that holds them without rounding.
"""

import fcntl
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sieve.config import ModelConfig
from sieve.model.adapter import SETTINGS, find_adapter, merge
from sieve.model.backbone import load_model, place
from sieve.model.checkpoint_files import (
    check_finite,
    find_model,
    load_config,
    load_tokenizer,
    weights_fingerprint,
)
from sieve.model.gguf_files import is_gguf, unread_numbers
from sieve.runtime.artifacts import Cache, fingerprint, hash_files, written_beside
from sieve.runtime.progress import is_rank_zero

log = logging.getLogger(__name__)
FORMAT = 1  # raise it when the same files give another checkpoint
Parts = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def prepare(config: ModelConfig, cache: Cache) -> ModelConfig:
    """Settings that name a plain checkpoint, which is written into the cache at the first use.

    Settings that already name one are returned unchanged.

    Raises:
        ValueError: the file or the adapter cannot be used.
        RuntimeError: a package is missing.
    """
    path = ready = check_source(config)
    if is_gguf(path):
        ready = _dequantized(config, Path(path), cache)
    if config.adapter:
        ready = _merged(config, ready, find_adapter(config.adapter), cache)
    if ready == path:
        return config
    if is_rank_zero():
        log.info("The dense model is %s, stored in %s.", describe(config), ready)
    return replace(config, path=ready, name=config.label, revision=None, adapter=None)


def check_source(config: ModelConfig) -> str:
    """What `find_model` returns; ValueError also if the adapter's files are missing."""
    if config.adapter:
        find_adapter(config.adapter)
    return find_model(config.path)


def describe(config: ModelConfig) -> str:
    """What the dense model is, if it is not the checkpoint of `model.path` itself; else ""."""
    changes = []
    with suppress(ValueError):  # At the end of a long run, the file may have been moved.
        changes += ["dequantized"] * is_gguf(find_model(config.path))
    changes += [f"with {config.adapter} merged"] * bool(config.adapter)
    return f"{config.path}, {' and '.join(changes)}" if changes else ""


def _dequantized(config: ModelConfig, file: Path, cache: Cache) -> str:
    """The folder of the dequantized model of a GGUF file."""
    key = fingerprint(FORMAT, version("transformers"), hash_files([file]))

    def build() -> Parts:
        log.info("Dequantizing %s, once.", file)
        model = load_model(config, str(file), torch.float32)
        if unread := unread_numbers(file, model):
            log.warning(
                "transformers does not read %s numbers of %s, such as scaled rotary frequencies, "
                "so the dense model may differ from what llama.cpp computes. Set model.path to the "
                "same model in safetensors if you can.",
                f"{unread:,}",
                file.name,
            )
        return model, load_tokenizer(config, str(file))

    return _written_once(cache.folder("dequantized", key), build)


def _merged(config: ModelConfig, path: str, adapter: Path, cache: Cache) -> str:
    """The folder of a model with an adapter merged, with the adapter's tokenizer if it has one."""
    load_config(config, path)  # Raises a clear error if the Hub cannot be reached.
    files = [weights_fingerprint(path, config.revision), weights_fingerprint(str(adapter), None)]
    key = fingerprint(FORMAT, version("peft"), *files, hash_files([adapter / SETTINGS]))

    def build() -> Parts:
        log.info("Merging the adapter %s into %s, once.", adapter, config.path)
        own = (adapter / "tokenizer_config.json").is_file()
        tokenizer = load_tokenizer(config, str(adapter) if own else path)
        return merge(config, path, adapter), tokenizer

    return _written_once(cache.folder("merged", key), build)


def _written_once(folder: Path, build: Callable[[], Parts]) -> str:
    """Write a float32 model and a tokenizer to a folder, unless it exists; returns the folder.

    Only one process of a machine builds the model; the others wait.
    """
    with _locked(folder):
        if not folder.is_dir():
            model, tokenizer = build()
            check_finite(model)
            place(model, None, _exact_dtype(model))
            with written_beside(folder) as partial:
                model.save_pretrained(partial)
                tokenizer.save_pretrained(partial)
    return str(folder)


def _exact_dtype(model: PreTrainedModel) -> torch.dtype:
    """The smallest dtype that holds all weights of a float32 model without rounding."""
    weights = [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
    for dtype in (torch.bfloat16, torch.float16):
        if all(torch.equal(tensor.to(dtype).to(tensor.dtype), tensor) for tensor in weights):
            return dtype
    return torch.float32


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time run the `with` block, if the file system can lock files."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
