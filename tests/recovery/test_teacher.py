"""The dense model's answers to a batch are computed once, and are those that it computes itself."""

import pytest
import torch
from models import build, tiny_llama
from sieved import tokens

from sieve.evaluation.divergence import answer_logprobs
from sieve.model.backbone import eager_attention
from sieve.recovery.teacher import Teacher, TrainingBatch

ROWS = {"input_ids": tokens(4, 16, seed=1)}


def test_a_batch_is_answered_once_and_from_memory_then() -> None:
    model = tiny_llama()
    teacher, passes = Teacher(model), list[int]()
    with model.model.register_forward_hook(lambda *_: passes.append(1)):
        first, again = (teacher.answer(TrainingBatch(ROWS, 0)).logprobs for _ in range(2))
        assert len(passes) == 1
        teacher.answer(TrainingBatch({"input_ids": tokens(4, 16, seed=2)}, 1))
        assert len(passes) == 2
    torch.testing.assert_close(again, first)
    torch.testing.assert_close(first, answer_logprobs(model, ROWS).detach())


def test_the_dense_model_reads_its_own_prompt() -> None:
    model, long = tiny_llama(), {"input_ids": tokens(4, 20, seed=3)}
    answers = Teacher(model).answer(TrainingBatch(ROWS, 0, dense=long)).logprobs
    torch.testing.assert_close(answers, answer_logprobs(model, long).detach())


def test_a_model_that_changes_its_logits_is_asked_each_time() -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    model = build("Gemma2", **sizes, **heads, final_logit_softcapping=0.05)
    teacher = Teacher(model)
    for _ in range(2):
        answers = teacher.answer(TrainingBatch(ROWS, 0)).logprobs
        torch.testing.assert_close(answers, answer_logprobs(model, ROWS).detach())
    assert teacher.head is None


@pytest.mark.parametrize("fails", [False, True])
def test_attention_is_eager_inside_the_block_alone_and_gives_the_same(fails: bool) -> None:
    model = tiny_llama()
    fused = answer_logprobs(model, ROWS)
    try:
        with eager_attention(model):
            assert model.config._attn_implementation == "eager"
            torch.testing.assert_close(answer_logprobs(model, ROWS), fused, atol=1e-5, rtol=1e-5)
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert model.config._attn_implementation == "sdpa"
