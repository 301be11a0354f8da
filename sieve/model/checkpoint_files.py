"""The files of a checkpoint: where they are, what they hold, and one sentence on what is wrong.

Weights are read from safetensors or GGUF: no pickle is ever loaded.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from sieve.config import ModelConfig
from sieve.model.gguf_files import explained_gguf_errors, find_gguf, is_gguf, source
from sieve.model.quantized import parts
from sieve.runtime.artifacts import fingerprint, hash_files

# Files that say what a model computes: weights, configuration, tokenizer, code.
FINGERPRINTED = (
    "*.safetensors config.json tokenizer* vocab* merges.txt added_tokens.json "
    "special_tokens_map.json chat_template* *.py"
).split()


class LoadingInfo(TypedDict):
    """What `from_pretrained(..., output_loading_info=True)` tells of a checkpoint."""

    missing_keys: set[str]
    mismatched_keys: set[tuple[str, torch.Size, torch.Size]]


def find_model(path: str, weights: bool = True) -> str:
    """The path of a local directory or GGUF file that holds a model, or a Hub name unchanged.

    A directory with one GGUF file and no safetensors becomes the path of that file.

    Args:
        weights: whether the directory needs weights beside its config.json.

    Raises:
        ValueError: a directory without config.json or weights, or a path that does not exist.
    """
    folder = Path(path).expanduser()
    if folder.exists() and (file := find_gguf(folder)):
        return str(file)
    if folder.is_dir():
        if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
            raise ValueError(
                f"{folder} holds an adapter and no model; set model.adapter={folder}, and "
                "model.path to the model that it was trained on."
            )
        if not (folder / "config.json").is_file():
            raise ValueError(
                f"{folder} has no config.json; set model.path to a directory written by "
                "save_pretrained."
            )
        if weights and not any(folder.glob("*.safetensors")):
            raise ValueError(_no_safetensors(str(folder)))
        return str(folder)
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1
    looks_local |= path.lower().endswith(".gguf")
    if looks_local or folder.exists():
        raise ValueError(
            f"model.path is {path!r}: there is no such directory or GGUF file; check the path."
        )
    return path


def hub_options(config: ModelConfig) -> dict[str, object]:
    """The keyword arguments for every `from_pretrained` of a model."""
    return {"revision": config.revision, "trust_remote_code": config.trust_remote_code}


def load_config(config: ModelConfig, path: str, **options: object) -> PreTrainedConfig:
    """The configuration of a model, without its weights."""
    with source(path) as (name, file), explained_errors(config.path, "configuration", path):
        return AutoConfig.from_pretrained(name, **hub_options(config), **file, **options)


def load_tokenizer(config: ModelConfig, path: str, **options: object) -> PreTrainedTokenizerBase:
    """The tokenizer of a model."""
    with source(path) as (name, file), explained_errors(config.path, "tokenizer", path):
        return AutoTokenizer.from_pretrained(name, **hub_options(config), **file, **options)


def auto_class(
    config: PreTrainedConfig,
) -> type[AutoModelForCausalLM] | type[AutoModelForSequenceClassification]:
    """The Auto class of a model, by the first architecture in its configuration."""
    names = config.architectures or [""]
    classifies = names[0].endswith("ForSequenceClassification")
    return AutoModelForSequenceClassification if classifies else AutoModelForCausalLM


@contextmanager
def explained_errors(name: str, part: str, path: str = "") -> Iterator[None]:
    """Turn the errors of `from_pretrained` into a ValueError of one sentence.

    name: model.path; part: what is loaded, for the message; path: what `find_model` returned.
    """
    if is_gguf(path):
        with explained_gguf_errors(path):
            yield
        return
    try:
        yield
    except SafetensorError as error:
        raise ValueError(
            f"the weights of {name!r} are damaged ({error}); download the checkpoint again."
        ) from error
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = _first_line(error)
        if "cannot be loaded with `safetensors`" in reason:
            raise ValueError(_no_safetensors(f"the Hub model {name!r}")) from error
        raise ValueError(
            f"the {part} of {name!r} could not be loaded ({reason}); check model.path, or for a "
            "Hub model the network, its name and your access to it."
        ) from error
    except (AttributeError, RuntimeError, TypeError) as error:  # Built from a damaged config.json.
        raise ValueError(
            f"the {part} of {name!r} could not be built from its config.json "
            f"({_first_line(error)}); download the checkpoint again, or export the model again."
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _no_safetensors(where: str) -> str:
    return (
        f"{where} has no *.safetensors, and Sieve reads no other format, because a pickle (*.bin) "
        "can run code; load a model that you trust with transformers and write it with "
        "save_pretrained."
    )


def check_complete(info: LoadingInfo) -> None:
    """ValueError if transformers drew weights at random that the checkpoint lacks."""
    names = sorted({*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])})
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise ValueError(
            f"the weights {names[0]}{more} are missing from the checkpoint or have another shape "
            "than its config.json says; download the checkpoint again."
        )


def check_finite(model: PreTrainedModel) -> None:
    """ValueError if a weight is NaN or infinite."""
    for name, parameter in model.named_parameters():
        if not all(torch.isfinite(part).all() for part in parts(parameter)):
            raise ValueError(
                f"the weights {name} are not finite (NaN or infinity): the checkpoint is damaged; "
                "get it again."
            )


def weights_fingerprint(path: str, revision: str | None) -> str:
    """Digest of weights and tokenizer: of local files, or of a Hub model's commit."""
    folder = Path(path)
    if is_gguf(path):
        return hash_files([folder])
    if not folder.is_dir():
        # <cache>/models--<name>/snapshots/<commit>/config.json
        config_file = cached_file(path, "config.json", revision=revision)
        assert config_file is not None
        return fingerprint(path, Path(config_file).parent.name)
    files = {file for pattern in FINGERPRINTED for file in folder.glob(pattern) if file.is_file()}
    return fingerprint(hash_files(list(files)))
