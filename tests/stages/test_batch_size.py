"""A run chooses passes that fit into free memory."""

import logging

import torch
from models import tiny_llama, tiny_tokenizer

from sieve.config import Config
from sieve.costs.batches import CPU_TOKENS, FEWEST_TOKENS, GPU_TOKENS, fitting_tokens
from sieve.model.backbone import Backbone
from sieve.stages import batch_size
from sieve.tasks import TaskConfig, build_task


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
