"""A run chooses passes that fit into free memory."""

import logging

import pytest
import torch
from models import tiny_llama, tiny_tokenizer

from sieve.config import CalibrationConfig, Config
from sieve.costs.batches import CPU_TOKENS, FEWEST_TOKENS, GPU_TOKENS, fitting_tokens
from sieve.model.backbone import Backbone
from sieve.stages import batch_size
from sieve.tasks import Task, TaskConfig, build_task
from sieve.tasks.metrics import ACCURACY


def test_a_pass_takes_what_is_fast_and_is_halved_until_it_fits_half_of_free_memory() -> None:
    def pass_bytes(tokens: int) -> float:
        return 1000 * tokens

    assert fitting_tokens(pass_bytes, 1e12, on_cpu=True) == CPU_TOKENS
    assert fitting_tokens(pass_bytes, 1e12, on_cpu=False) == GPU_TOKENS
    assert fitting_tokens(pass_bytes, 2 * 1000 * 600, on_cpu=True) == 512
    assert fitting_tokens(pass_bytes, -1.0, on_cpu=True) == FEWEST_TOKENS


def test_little_free_memory_makes_passes_smaller_and_says_so(tmp_path, monkeypatch, caplog) -> None:
    rows = '{"text": "good %d", "label": "yes"}\n{"text": "bad %d", "label": "no"}\n'
    (tmp_path / "train.jsonl").write_text("".join(rows % (i, i) for i in range(40)))
    task = TaskConfig(name="tiny", data_dir=str(tmp_path), prompt="{text}:")
    config = Config(task=task)
    backbone = Backbone(tiny_llama(), tiny_tokenizer(), "tiny", "key", torch.float32)
    chosen = batch_size.batch_tokens(config, build_task(task, 0), backbone)
    assert chosen == CPU_TOKENS
    monkeypatch.setattr(batch_size, "free_bytes", lambda device: 2e6)
    with caplog.at_level(logging.INFO, "sieve"):
        smaller = batch_size.batch_tokens(config, build_task(task, 0), backbone)
    assert FEWEST_TOKENS <= smaller < CPU_TOKENS
    assert f"A pass takes {smaller} tokens" in caplog.text
    config.batch_tokens = 77
    assert batch_size.batch_tokens(config, build_task(task, 0), backbone) == 77


@pytest.mark.parametrize(
    "changes", [{"mix": {"texts": TaskConfig("texts", kind="perplexity")}}, {"checkpointing": True}]
)
def test_texts_of_a_mix_and_moments_beside_checkpoints_count(changes, monkeypatch) -> None:
    estimates = list[tuple[float, float]]()  # bytes of moments, share of positions with logits

    def fitting(pass_bytes, free: float, on_cpu: bool) -> int:
        estimates.append((-free, pass_bytes.keywords["logits"]))
        return 1

    monkeypatch.setattr(batch_size, "free_bytes", lambda device: 0.0)
    monkeypatch.setattr(batch_size, "fitting_tokens", fitting)
    backbone = Backbone(tiny_llama(), tiny_tokenizer(), "tiny", "key", torch.float32)
    config = Config(TaskConfig("tiny"), calibration=CalibrationConfig(**changes))
    batch_size.batch_tokens(config, Task("tiny", "", ACCURACY, {}, {}), backbone)
    moments, logits = estimates[0]
    assert moments > 0
    assert logits == (1.0 if "mix" in changes else batch_size.ANSWER_SHARE)


def test_the_memory_of_a_backward_pass_is_not_underestimated() -> None:
    """The tensors that autograd saves fit into what the choice reckons with."""
    from sieve.costs.batches import calibration_bytes
    from sieve.costs.shape import shape_of
    from sieve.model.backbone import with_input_gradients

    model, saved = tiny_llama(), dict[int, int]()
    ids = torch.arange(256).view(8, 32) % 300

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with with_input_gradients(model), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model(input_ids=ids, logits_to_keep=1, use_cache=False)
    shape = shape_of(model)
    reckoned = calibration_bytes(shape, ids.numel(), 4, 1 / 32, on_cpu=True, saved_blocks=2)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    assert sum(size for pointer, size in saved.items() if pointer not in weights) < reckoned
