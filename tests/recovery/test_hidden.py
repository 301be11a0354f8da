"""Hidden states of the pruned model are compared with the dense model's, token by token."""

from dataclasses import replace

import pytest
import torch
from models import tiny_gpt2, tiny_llama
from sieved import banked, mixed, tokens
from torch import Tensor, nn
from transformers import PreTrainedModel

from sieve.bank.switch import Switch
from sieve.config import RecoveryConfig
from sieve.data.batches import TokenBatch
from sieve.recovery.hidden import BLOCKS, compared_blocks, outputs_of, states
from sieve.recovery.module import RecoveryModule
from sieve.recovery.teacher import Teacher, TrainingBatch

SETTINGS = RecoveryConfig("full", loss="kl", hidden=0.0)
MASK = torch.ones(3, 12, dtype=torch.int64)
MASK[0, :5] = 0  # Left padding.
ROWS = {"input_ids": tokens(3, 12, seed=4), "attention_mask": MASK}


def block_outputs(model: PreTrainedModel, blocks: nn.ModuleList) -> list[Tensor]:
    """What every block writes: what the next one, or the norm after the last one, reads."""
    read: list[Tensor] = []
    readers = [*blocks[1:], model.base_model.get_submodule(norm_of(model))]
    hooks = [
        reader.register_forward_pre_hook(
            lambda _, args, kwargs: read.append(args[0] if args else kwargs["hidden_states"]),
            with_kwargs=True,
        )
        for reader in readers
    ]
    with torch.no_grad():
        model(**ROWS)
    for hook in hooks:
        hook.remove()
    return read


def norm_of(model: PreTrainedModel) -> str:
    return "norm" if hasattr(model.base_model, "norm") else "ln_f"


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
def test_the_error_is_relative_per_token_without_padding(build) -> None:
    model = build()
    bank = banked(model)
    genome = mixed(bank)
    blocks = model.base_model.layers if build is tiny_llama else model.base_model.h
    dense = block_outputs(model, blocks)
    with Switch(model, bank, as_stored=False).to(genome):
        pruned = block_outputs(model, blocks)
    errors = []
    for block_dense, block_pruned in zip(dense, pruned, strict=True):
        for row in range(3):
            for token in range(12):
                if MASK[row, token]:
                    d, p = block_dense[row, token].double(), block_pruned[row, token].double()
                    errors.append(float((p - d).norm() ** 2 / d.norm() ** 2))
    expected = sum(errors) / len(errors)
    assert expected > 1e-3

    def loss(hidden: float) -> Tensor:
        settings = replace(SETTINGS, hidden=hidden)
        module = RecoveryModule(Switch(model, bank, as_stored=False), genome, settings)
        return module.loss(TrainingBatch(ROWS, 0)).detach()

    assert float(loss(2.0) - loss(0.0)) == pytest.approx(2 * expected, rel=0.01)  # bfloat16


def test_few_blocks_are_compared_evenly_spaced_up_to_the_last() -> None:
    model = tiny_llama(num_hidden_layers=13)
    layers = list(model.model.layers)
    places = [layers.index(block) for block in compared_blocks(model)]
    assert len(places) == BLOCKS and places[-1] == 12
    steps = [after - before for before, after in zip(places, places[1:], strict=False)]
    assert set(steps) == {2, 3}
    small = tiny_llama(num_hidden_layers=2)
    assert compared_blocks(small) == list(small.model.layers)


def test_tokens_of_a_common_prefix_are_left_out() -> None:
    """Rows of 2 and of 5 own tokens after 3 common ones, which ran before."""
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1]])
    ids = torch.arange(16).reshape(2, 8)
    batch = TokenBatch(ids, mask, None, mask.bool(), ids, prefix=(7, 8, 9))
    own = torch.arange(3, 8).expand(2, 5)[..., None]  # The number of the column as a state.
    [read] = states(batch, [own], answers_only=False)
    assert read.flatten().tolist() == [6, 7, 3, 4, 5, 6, 7]


def test_rows_with_another_prompt_are_compared_where_answers_are_predicted() -> None:
    model = tiny_llama()
    bank = banked(model)
    long = {"input_ids": torch.cat([tokens(3, 6, seed=9), ROWS["input_ids"]], 1)}
    answers = torch.full((3, 12), -100)
    answers[:, -2] = 5
    targets = {"answer_mask": answers >= 0, "targets": answers}
    short = TokenBatch(ROWS["input_ids"], MASK, None, **targets)
    padded = {name: nn.functional.pad(t, (6, 0)) for name, t in targets.items()}
    padded["targets"][:, :6] = -100
    dense = TokenBatch(long["input_ids"], torch.ones(3, 18, dtype=torch.int64), None, **padded)
    settings = replace(SETTINGS, hidden=1.0)
    module = RecoveryModule(Switch(model, bank, as_stored=False), mixed(bank), settings)
    batch = TrainingBatch(short, 0, dense=dense)
    assert [len(state) for state in module.teacher.answer(batch).states] == [3] * 2
    assert torch.isfinite(module.loss(batch))


def test_states_come_from_memory_while_there_is_room_and_are_the_same() -> None:
    model = tiny_llama()
    blocks = compared_blocks(model)
    roomy, full = Teacher(model, blocks), Teacher(model, blocks, most_bytes=100)
    batch, passes = TrainingBatch(ROWS, 0), list[int]()
    with model.model.register_forward_hook(lambda *_: passes.append(1)):
        first = [teacher.answer(batch).states for teacher in (roomy, full)]
        assert len(passes) == 2
        again = [teacher.answer(batch).states for teacher in (roomy, full)]
        assert len(passes) == 3  # Only the teacher without room computes them again.
    for one, other in zip(first, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert len(first[0]) == 2 and len(first[0][0]) == int(MASK.sum())


def test_each_batch_takes_its_share_of_the_room() -> None:
    model = tiny_llama()
    blocks = compared_blocks(model)
    size = sum(
        state.nbytes for state in Teacher(model, blocks).answer(TrainingBatch(ROWS, 0)).states
    )
    teacher, passes = Teacher(model, blocks, most_bytes=size + 1), list[int]()
    for index in (0, 1):
        teacher.answer(TrainingBatch(ROWS, index))
    with model.model.register_forward_hook(lambda *_: passes.append(1)):
        teacher.answer(TrainingBatch(ROWS, 0))
        assert passes == []
        teacher.answer(TrainingBatch(ROWS, 1))
        assert passes == [1]


def test_outputs_are_the_latest_and_no_hook_stays() -> None:
    model = tiny_llama()
    blocks = compared_blocks(model)
    with outputs_of(blocks) as outputs, torch.no_grad():
        for _ in range(2):
            model(input_ids=tokens(1, 5))
        model(input_ids=tokens(2, 7))
        assert [tuple(output.shape[:2]) for output in outputs] == [(2, 7)] * 2
    assert not any(block._forward_hooks for block in blocks)
