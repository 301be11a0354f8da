"""Load an export in a fresh process, as its users do, and compare it with the model in memory.

The process loads the directory through transformers in the directory's own dtype and computes the
log-likelihoods of the answers of some test rows. The two may differ by rounding alone.
"""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from sieve.data.batches import as_inputs
from sieve.data.choices import ScoringBatch, choice_logprobs
from sieve.data.generation import WritingBatch
from sieve.data.scored import ScoredBatch
from sieve.data.text import TextBatch
from sieve.exports.gguf_loading import is_gguf_export, load_gguf
from sieve.exports.onnx import NAME
from sieve.exports.onnx_model import load_onnx
from sieve.factorized.modeling_sieve import auto_class
from sieve.model.backbone import forward

log = logging.getLogger(__name__)
MAX_DIFFERENT = 1 / 32  # of the rows
LARGEST_SHARE = 0.5  # of the typical difference between answers; a larger change is a fault
LARGEST_ROUNDING = 16  # units of the last place of a log-likelihood in the export's dtype
KINDS = {kind.__name__: kind for kind in (ScoringBatch, TextBatch)}


@dataclass(frozen=True)
class Agreement:
    """How an export in a fresh process compares with the finished model in memory."""

    dtype: str  # of the export
    rows: int
    not_finite: int  # rows with NaN or infinity in either
    different: int  # rows that differ by more than rounding
    same_answer: int  # rows with the same most likely choice


class FreshProcess:
    """A process that imports transformers while the caller writes the export.

    Leaving the context ends the process.
    """

    def __enter__(self) -> "FreshProcess":
        package = Path(__file__).parents[2]
        paths = os.pathsep.join(filter(None, (str(package), os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name if __spec__ else __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"},
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def answers(
        self, folder: Path, batches: Sequence[ScoredBatch], device: torch.device
    ) -> tuple[list[Tensor], torch.dtype]:
        """What `answer_logprobs` returns in the process, and the dtype of the export.

        Raises RuntimeError if the export cannot be loaded or run.
        """
        with TemporaryDirectory() as scratch:
            rows, results = (str(Path(scratch) / name) for name in ("rows", "results"))
            save_batches(batches, rows)
            request = [str(folder), rows, results, str(device)]
            _, errors = self._process.communicate(json.dumps(request) + "\n")
            if self._process.returncode:
                status = f"exit status {self._process.returncode}"
                reason = (errors.strip() or status).splitlines()[-1]
                raise RuntimeError(
                    f"the export could not be loaded in a fresh process ({reason}), so it was "
                    "deleted. Choose another export format, or set export.check_rows=0 to keep it "
                    "unchecked."
                )
            tensors = load_file(results)
            with safe_open(results, framework="pt") as file:
                dtype = getattr(torch, file.metadata()["dtype"])
        return [tensors[str(index)] for index in range(len(tensors))], dtype


def check_export(
    process: FreshProcess,
    folder: Path,
    batches: Sequence[ScoredBatch],
    expected: Sequence[Tensor],
    device: torch.device,
) -> Agreement:
    """Compare an export with the log-likelihoods that the finished model gave.

    Raises RuntimeError if it cannot be loaded, gives numbers that are not finite, or differs by
    more than rounding on more than one row of 32.
    """
    logprobs, dtype = process.answers(folder, batches, device)
    agreement = compare(expected, logprobs, dtype)
    if agreement.not_finite or agreement.different > MAX_DIFFERENT * agreement.rows:
        raise RuntimeError(
            f"the export in {agreement.dtype}, loaded in a fresh process, does not agree with the "
            f"finished model, so it was deleted: of {agreement.rows} test rows, "
            f"{agreement.not_finite} have numbers that are not finite and {agreement.different} "
            "differ by more than rounding. Set projection.dtype=float32 to export in float32."
        )
    return agreement


def compare(
    expected: Sequence[Tensor], logprobs: Sequence[Tensor], dtype: torch.dtype
) -> Agreement:
    """Compare log-likelihoods (N, C) on the CPU; -inf in `expected` marks missing choices.

    A row of several choices is compared by the differences between them. It may change by rounding
    in `dtype` and by half of the typical difference: only a wrong model changes more.
    """
    masks = [~batch.isneginf() for batch in expected]
    before, after = _rows(expected, masks), _rows(logprobs, masks)
    finite = [bool(torch.cat(pair).isfinite().all()) for pair in zip(before, after, strict=True)]
    advantages = [(_advantages(a), _advantages(b)) for a, b in zip(before, after, strict=True)]
    typical = torch.cat([a for a, _ in advantages]).square().nanmean().sqrt()
    rounding = torch.cat(before).square().nanmean().sqrt() * torch.finfo(dtype).eps
    largest = float(LARGEST_SHARE * typical + LARGEST_ROUNDING * rounding)
    return Agreement(
        dtype=str(dtype).removeprefix("torch."),
        rows=len(before),
        not_finite=len(before) - sum(finite),
        different=sum(float((a - b).abs().max()) > largest for a, b in advantages),
        same_answer=sum(int(a.argmax()) == int(b.argmax()) for a, b in advantages),
    )


def _rows(logprobs: Sequence[Tensor], masks: Sequence[Tensor]) -> list[Tensor]:
    """The log-likelihoods of each row, float64, where its mask is True."""
    pairs = [pair for both in zip(logprobs, masks, strict=True) for pair in zip(*both, strict=True)]
    return [row[mask].double() for row, mask in pairs]


def _advantages(row: Tensor) -> Tensor:
    """The log-likelihoods of choices over their mean; of a single answer, as they are."""
    return row - row.mean() if len(row) > 1 else row


def without_writing(batches: Sequence[ScoredBatch]) -> list[ScoredBatch]:
    """The batches to compare: where answers are written, the right answers take their place."""
    return [batch.right if isinstance(batch, WritingBatch) else batch for batch in batches]


@torch.no_grad()
def answer_logprobs(model: PreTrainedModel, batch: ScoredBatch) -> Tensor:
    """Log-likelihoods on the CPU: of choices (N, C), or of texts per unit (N, 1)."""
    batch = batch.to(model.device)
    if isinstance(batch, TextBatch):
        return -(batch.outcome(model).losses / batch.units)[:, None].cpu()
    assert isinstance(batch, ScoringBatch)
    return choice_logprobs(forward(model, as_inputs(batch), batch.keep), batch).cpu()


def save_batches(batches: Sequence[ScoredBatch], path: str) -> None:
    """Write the tensors and the whole numbers of batches to a safetensors file."""
    tensors, numbers = dict[str, Tensor](), list[dict[str, object]]()
    for index, batch in enumerate(batches):
        values = {field.name: getattr(batch, field.name) for field in fields(batch)}
        tensors |= {
            f"{index}.{name}": value.contiguous()
            for name, value in values.items()
            if isinstance(value, Tensor)
        }
        numbers.append({name: value for name, value in values.items() if type(value) is int})
        numbers[-1]["kind"] = type(batch).__name__
    save_file(tensors, path, metadata={"batches": json.dumps(numbers)})


def load_batches(path: str) -> list[ScoredBatch]:
    """The batches of `save_batches`."""
    with safe_open(path, framework="pt") as file:
        numbers = json.loads(file.metadata()["batches"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    batches = list[ScoredBatch]()
    for index, values in enumerate(numbers):
        start = f"{index}."
        values |= {k.removeprefix(start): t for k, t in tensors.items() if k.startswith(start)}
        batches.append(KINDS[values.pop("kind")](**values))
    return batches


def load_as_users_do(folder: Path, device: str) -> Any:
    """The model of an export in its own dtype, as transformers, onnxruntime or Sieve loads it."""
    import transformers

    if (folder / NAME).is_file():
        return load_onnx(folder)[0]
    if is_gguf_export(folder):  # llama.cpp may be absent, so Sieve reads the file.
        model: Any = load_gguf(folder)[0]
        return model.to(device)
    config = transformers.AutoConfig.from_pretrained(folder)
    model_class = getattr(transformers, auto_class(config.architectures[0]))
    return model_class.from_pretrained(folder, dtype="auto").to(device).eval()


def main() -> None:
    """Answer one request, a line of JSON on stdin: [folder, rows, results, device]."""
    folder, rows, results, device = json.loads(sys.stdin.readline())
    model = load_as_users_do(Path(folder), device)
    logprobs = [answer_logprobs(model, batch) for batch in load_batches(rows)]
    tensors = {str(index): tensor.contiguous() for index, tensor in enumerate(logprobs)}
    save_file(tensors, results, metadata={"dtype": str(model.dtype).removeprefix("torch.")})


if __name__ == "__main__":
    main()
