"""Prefill and decode speed of two states of one model, measured in turn in the same run."""

import inspect
import math
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sieve.bank.genome import Genome
from sieve.bank.switch import Switch
from sieve.model.backbone import context_length, forward, is_classifier


@dataclass(frozen=True)
class Speed:
    """Tokens per second, medians; ratios are pruned over dense, the median over paired repeats."""

    prefill_dense: float
    prefill_pruned: float
    prefill_ratio: float
    decode_dense: float | None  # of a classifier, which writes nothing
    decode_pruned: float | None
    decode_ratio: float | None


@torch.inference_mode()
def compare_speed(
    switch: Switch,
    genome: Genome,
    batch_size: int = 8,
    prompt_tokens: int = 128,
    new_tokens: int = 16,
    repeats: int = 5,
    finish: Callable[[], object] | None = None,
) -> Speed:
    """Time the dense model and the model of `genome` alternately on the same random tokens.

    Prefill is one forward pass over (batch_size, prompt_tokens); decode is `new_tokens` greedy
    steps with a key-value cache on the same batch. finish: what else is done to the model once it
    is that of `genome`, such as quantizing it. The model is left dense.
    """
    model = switch.model
    writes = not is_classifier(model)
    if (limit := context_length(model)) is not None:
        prompt_tokens = max(1, min(prompt_tokens, limit - new_tokens))
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.get_text_config().vocab_size
    tokens = torch.randint(vocabulary, (batch_size, prompt_tokens), generator=generator)
    tokens = tokens.to(model.device)
    seconds: dict[str, list[float]] = {}
    for repeat in range(repeats + 1):  # The first round warms up.
        for state in ("dense", "pruned"):
            # Layers made in inference mode would not know when their weights change.
            with torch.inference_mode(False), torch.no_grad():
                switch.restore() if state == "dense" else switch.to(genome)
                if state == "pruned" and finish is not None:
                    finish()
            prefill = _timed(lambda: _prefill(model, tokens))
            decode = _decode_seconds(model, tokens, new_tokens) if writes else math.nan
            if repeat:
                seconds.setdefault(f"prefill_{state}", []).append(prefill)
                seconds.setdefault(f"decode_{state}", []).append(decode)
    switch.restore()
    prefill_tokens, decode_tokens = batch_size * prompt_tokens, batch_size * new_tokens
    return Speed(
        prefill_dense=prefill_tokens / statistics.median(seconds["prefill_dense"]),
        prefill_pruned=prefill_tokens / statistics.median(seconds["prefill_pruned"]),
        prefill_ratio=_ratio(seconds["prefill_dense"], seconds["prefill_pruned"]),
        decode_dense=decode_tokens / statistics.median(seconds["decode_dense"]) if writes else None,
        decode_pruned=decode_tokens / statistics.median(seconds["decode_pruned"])
        if writes
        else None,
        decode_ratio=_ratio(seconds["decode_dense"], seconds["decode_pruned"]) if writes else None,
    )


def describe_machine(device: torch.device) -> str:
    """What speeds depend on: the GPU, or the processor and the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"


def _ratio(dense: list[float], pruned: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(dense, pruned, strict=True))


def _timed(work: Callable[[], object]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _prefill(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    return forward(model, {"input_ids": tokens}, keep=1)


def _decode_seconds(model: PreTrainedModel, tokens: Tensor, steps: int) -> float:
    """Seconds of `steps` greedy decoding steps after a prefill that is not counted."""
    named = inspect.signature(model.forward).parameters
    cache = "cache" if "cache" in named else "past_key_values"  # before transformers 5.24
    out = model(input_ids=tokens, use_cache=True)
    state = [out.logits[:, -1:].argmax(-1), getattr(out, cache)]

    def work() -> None:
        for _ in range(steps):
            out = model(input_ids=state[0], **{cache: state[1]}, use_cache=True)
            state[:] = [out.logits[:, -1:].argmax(-1), getattr(out, cache)]

    return _timed(work)
