"""PEFT adapters (LoRA and its kin): checked against a model and merged into its weights.

The model that an adapter was trained on is known by name only, so names and shapes of the adapter's
weights decide whether it fits.
"""

import re
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel

from sieve.config import ModelConfig
from sieve.model.backbone import is_classifier, load_model
from sieve.model.quantized import is_quantized
from sieve.runtime.artifacts import read_json

SETTINGS = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
# What PEFT raises if an adapter does not fit or cannot be merged.
ERRORS = (AttributeError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)
MISMATCH = re.compile(r"size mismatch for (\S+): .*?Size\((.*?)\).*?Size\((.*?)\)")


def find_adapter(path: str) -> Path:
    """The folder of an adapter; ValueError if its files are missing or pickle."""
    folder = Path(path).expanduser()
    if not (folder / SETTINGS).is_file():
        raise ValueError(
            f"model.adapter is {path!r}: there is no {SETTINGS}; set it to a folder that PEFT's "
            "save_pretrained wrote, and download an adapter of the Hub first."
        )
    if not (folder / WEIGHTS).is_file():
        pickle = f", only {PICKLE}, a pickle, which can run code" * (folder / PICKLE).is_file()
        raise ValueError(
            f"the adapter {folder} has no {WEIGHTS}{pickle}; save it again with PEFT's "
            "save_pretrained."
        )
    settings = None
    with suppress(ValueError):
        settings = read_json(folder / SETTINGS)
    if not isinstance(settings, dict) or not isinstance(settings.get("peft_type"), str):
        raise ValueError(
            f"{folder / SETTINGS} is damaged: it names no peft_type; get the adapter again."
        )
    return folder


def merge(config: ModelConfig, path: str, adapter: Path) -> PreTrainedModel:
    """A model in float32 with an adapter merged.

    Args:
        path: the model without the adapter, as `find_model` returned it.
        adapter: what `find_adapter` returned.

    Raises:
        ValueError: the adapter does not belong to the model, or cannot be merged.
        RuntimeError: PEFT is not installed.
    """
    settings = _read_settings(adapter)
    base = load_model(config, path, torch.float32)
    _check_kind(settings, base, adapter, config.path)
    tied = _untie(base)
    merged = _merge_into(base, settings, adapter, config.path)
    if tied:
        _tie_again(merged)
    return merged


def _read_settings(folder: Path) -> Any:
    """PEFT's settings of an adapter; ValueError if it changes no weights."""
    try:
        from peft import PeftConfig
    except ImportError as error:
        raise RuntimeError(
            f"model.adapter needs {error.name}, which is not installed; run pip install "
            "'sieve-llm[recovery]'."
        ) from error
    try:
        settings = PeftConfig.from_pretrained(str(folder))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"PEFT could not read {folder / SETTINGS} ({error}); a newer PEFT may know this kind "
            "of adapter: pip install --upgrade peft."
        ) from error
    if settings.is_prompt_learning or settings.is_adaption_prompt:
        raise ValueError(
            f"the adapter {folder} is of type {settings.peft_type.value}, which adds tokens and "
            "changes no weights, so it cannot be merged; use one that can, such as LoRA."
        )
    return settings


def _check_kind(settings: Any, base: PreTrainedModel, folder: Path, name: str) -> None:
    """ValueError if an adapter is for another kind of task, or the model is quantized."""
    expected = "SEQ_CLS" if is_classifier(base) else "CAUSAL_LM"
    task = settings.task_type
    if task is not None and getattr(task, "value", task) != expected:
        raise ValueError(
            f"the adapter {folder} is for the task type {getattr(task, 'value', task)}, and "
            f"{name!r} is a model for {expected}; set model.adapter to an adapter for {expected}."
        )
    if any(is_quantized(parameter) for parameter in base.parameters()):
        raise ValueError(
            f"{name!r} is quantized, and an adapter is merged into plain weights; set model.path "
            "to the model as it was before quantization."
        )


def _merge_into(base: PreTrainedModel, settings: Any, folder: Path, name: str) -> PreTrainedModel:
    trained_on = settings.base_model_name_or_path or "a model that it does not name"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of what `_attach` checks.
        try:
            adapted = _attach(base, settings, folder)
        except SafetensorError as error:
            raise ValueError(
                f"{folder / WEIGHTS} is damaged ({error}); get the adapter again."
            ) from error
        except ERRORS as error:
            raise ValueError(
                f"the adapter {folder} does not fit the model {name!r} ({_reason(error)}): it was "
                f"trained on {trained_on!r}; set model.path to that model, or model.adapter to an "
                f"adapter of {name!r}."
            ) from error
        try:
            return adapted.merge_and_unload()
        except ERRORS as error:
            raise ValueError(
                f"PEFT cannot merge the adapter {folder} of type {settings.peft_type.value} "
                f"({_reason(error)}); use an adapter that can be merged, such as LoRA."
            ) from error


def _attach(base: PreTrainedModel, settings: Any, folder: Path) -> Any:
    """The model with its adapter; ValueError if weights of the adapter are unknown or missing."""
    from peft import get_peft_model, get_peft_model_state_dict

    settings.inference_mode = True
    adapted: Any = get_peft_model(base, settings)
    keys = adapted.load_adapter(str(folder), "default", torch_device="cpu")
    if keys.unexpected_keys:
        raise ValueError(f"the model has no place for {keys.unexpected_keys[0]}")
    missing = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        missing -= set(file.keys())
    # Some kinds of adapter rename or share weights, which one of the two lists reports as missing.
    if missing and keys.missing_keys:
        raise ValueError(f"the adapter lacks {min(missing)}")
    return adapted


def _reason(error: Exception) -> str:
    """The first line of an error, or the first weight whose shape torch says is wrong."""
    text = str(error).strip() or type(error).__name__
    if shapes := MISMATCH.search(text):
        return f"{shapes[1]} has the shape {shapes[2]}, and the model needs {shapes[3]}"
    return text.splitlines()[0].rstrip(".")


def _untie(model: PreTrainedModel) -> bool:
    """Give the output head weights of its own; returns whether it shared the embedding's.

    Else, merging into one would change the other too.
    """
    embedding, head = _ends(model)
    if head is None or head.weight is not embedding.weight:
        return False
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    return True


def _tie_again(model: PreTrainedModel) -> None:
    """Tie the output head to the embedding, unless the adapter made them different."""
    embedding, head = _ends(model)
    tied = embedding.weight.equal(head.weight)
    if tied:
        head.weight = embedding.weight
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = tied  # PEFT sets it to False for some adapters.


def _ends(model: PreTrainedModel) -> tuple[Any, Any]:
    return model.get_input_embeddings(), model.get_output_embeddings()
