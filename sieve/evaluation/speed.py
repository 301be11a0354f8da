"""Prefill and decode speed of the dense and the pruned model, measured alternately."""

import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sieve.bank.genome import Genome
from sieve.bank.switch import Switch
from sieve.data.scored import ScoredBatch
from sieve.model.backbone import cache_name, context_length, forward, is_classifier

Dense = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class Speed:
    """Median tokens per second, and their ratio, pruned over dense.

    A spread is half the range of the ratios of single repeats, as a share of the ratio. A
    classifier does not decode: its decode speeds are None.
    """

    prefill_dense: float
    prefill_pruned: float
    prefill_ratio: float
    prefill_spread: float
    decode_dense: float | None
    decode_pruned: float | None
    decode_ratio: float | None
    decode_spread: float | None


@torch.inference_mode()
def compare_speed(
    switch: Switch,
    genome: Genome,
    batch_size: int = 8,
    prompt_tokens: int = 128,
    new_tokens: int = 16,
    repeats: int = 5,
    finish: Callable[[], object] | None = None,
    dense_model: Dense = nullcontext,
) -> Speed:
    """Time the dense model and the model of `genome` alternately on the same random tokens.

    Prefill is one forward pass over (batch_size, prompt_tokens); decode is `new_tokens` greedy
    steps with a key-value cache on the same batch. Leaves the model dense.

    Args:
        finish: called after every switch to `genome`, for example to quantize the model.
        dense_model: makes the dense model what it is compared as, in a block.
    """
    model = switch.model
    decodes = not is_classifier(model)
    if (limit := context_length(model)) is not None:
        prompt_tokens = max(1, min(prompt_tokens, limit - new_tokens))
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.get_text_config().vocab_size
    tokens = torch.randint(vocabulary, (batch_size, prompt_tokens), generator=generator)
    tokens = tokens.to(model.device)
    prefill: dict[str, list[float]] = {"dense": [], "pruned": []}  # seconds
    decode: dict[str, list[float]] = {"dense": [], "pruned": []}
    for state, counts in _alternately(switch, genome, repeats, finish, dense_model):
        prefill_seconds = _timed(lambda: forward(model, {"input_ids": tokens}, keep=1))
        decode_seconds = _decode_seconds(model, tokens, new_tokens) if decodes else None
        if counts:
            prefill[state].append(prefill_seconds)
            if decode_seconds is not None:
                decode[state].append(decode_seconds)
    switch.restore()
    return Speed(
        *_rates(prefill, batch_size * prompt_tokens),
        *(_rates(decode, batch_size * new_tokens) if decodes else (None,) * 4),
    )


@torch.inference_mode()
def compare_rows(
    switch: Switch,
    genome: Genome,
    dense_rows: Sequence[Sequence[ScoredBatch]],
    pruned_rows: Sequence[Sequence[ScoredBatch]],
    repeats: int = 5,
    finish: Callable[[], object] | None = None,
    dense_model: Dense = nullcontext,
) -> tuple[float, float]:
    """Milliseconds to score one row with the dense model and with the model of `genome`.

    The mean over rows of the median over repeats. Leaves the model dense.

    Args:
        dense_rows: the batches of each row as the dense model reads it.
        pruned_rows: the same as the pruned model reads it.
        finish: as for `compare_speed`.
        dense_model: as for `compare_speed`.
    """
    model = switch.model
    rows = {"dense": dense_rows, "pruned": pruned_rows}
    seconds: dict[str, list[list[float]]] = {"dense": [], "pruned": []}  # by repeat and row
    for state, counts in _alternately(switch, genome, repeats, finish, dense_model):
        times = []
        for batches in rows[state]:
            placed = [batch.to(model.device) for batch in batches]
            times.append(_timed(lambda: [batch.outcome(model) for batch in placed]))  # noqa: B023
        seconds[state] += [times] * counts
    switch.restore()
    dense, pruned = (
        statistics.fmean(map(statistics.median, zip(*seconds[state], strict=True)))
        for state in ("dense", "pruned")
    )
    return 1e3 * dense, 1e3 * pruned


def _alternately(
    switch: Switch,
    genome: Genome,
    repeats: int,
    finish: Callable[[], object] | None,
    dense_model: Dense,
) -> Iterator[tuple[str, bool]]:
    """Switch between "dense" and "pruned"; yields the state, and False while it only warms up."""
    for repeat in range(repeats + 1):
        for state in ("dense", "pruned"):
            # Weights made in inference mode could not be changed in place outside of it.
            with torch.inference_mode(False), torch.no_grad():
                switch.restore() if state == "dense" else switch.to(genome)
                if state == "pruned" and finish is not None:
                    finish()
            with dense_model() if state == "dense" else nullcontext():
                yield state, repeat > 0


def _rates(seconds: dict[str, list[float]], tokens: int) -> tuple[float, float, float, float]:
    """Tokens per second of the dense and the pruned model, their ratio and its spread."""
    dense, pruned = (tokens / statistics.median(seconds[state]) for state in ("dense", "pruned"))
    ratio = pruned / dense
    ratios = [a / b for a, b in zip(seconds["dense"], seconds["pruned"], strict=True)]
    return dense, pruned, ratio, (max(ratios) - min(ratios)) / 2 / ratio


def describe_machine(device: torch.device) -> str:
    """The device that speeds were measured on: the GPU, or the processor and its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"


def _timed(work: Callable[[], object]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _decode_seconds(model: PreTrainedModel, tokens: Tensor, steps: int) -> float:
    """Seconds of `steps` greedy decoding steps; the prefill before them is not timed."""
    cache = cache_name(model)
    out = model(input_ids=tokens, use_cache=True)
    state = [out.logits[:, -1:].argmax(-1), getattr(out, cache)]

    def work() -> None:
        for _ in range(steps):
            out = model(input_ids=state[0], **{cache: state[1]}, use_cache=True)
            state[:] = [out.logits[:, -1:].argmax(-1), getattr(out, cache)]

    return _timed(work)
