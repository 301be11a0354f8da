"""A common prefix that is run once: the same scores as every row run whole, of fewer tokens."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import FAMILIES, build, tiny_llama, tiny_mistral, tiny_mixtral, tiny_odd, tiny_tokenizer
from runs import finished, make_world
from sieved import banked, uniform
from torch import Tensor
from transformers import PreTrainedModel

from sieve.data import prefix as module
from sieve.data.choices import scoring_batches
from sieve.data.encoding import EncodedExample
from sieve.data.generation import Writer, writing_batches
from sieve.data.prefix import (
    PrefixCache,
    PrefixSharing,
    common_prefix,
    longest_exact_row,
    prefix_sharing_of,
)
from sieve.evaluation.evaluation import score
from sieve.search.objective import Objective
from sieve.tasks.example import Example
from sieve.tasks.metrics import Metric, RowMetric
from sieve.tasks.row_values import exact_match
from sieve.tasks.writing import Writing

SHOTS = "question: is the movie good? answer: yes question: is a film bad? answer: no "
LABELS = (" good", " bad", " positive review")
EXAMPLES = [
    Example(SHOTS + f"question: {'the ' * (i % 4)}film {i}? answer:", LABELS, i % 3)
    for i in range(9)
]
WINDOWED = {"mistral", "gemma2", "gemma3"}
ALL = FAMILIES | {"mixtral": tiny_mixtral}


def pair(model: PreTrainedModel, least: float = 0.25, batch_tokens: int = 120) -> tuple:
    """Batches that share and batches that do not."""
    tokenizer, sharing = tiny_tokenizer(), prefix_sharing_of(model, least)
    shared = scoring_batches(EXAMPLES, tokenizer, batch_tokens, sharing=sharing)
    return shared, scoring_batches(EXAMPLES, tokenizer, batch_tokens)


@pytest.mark.parametrize("name", ALL)
def test_choices_are_scored_as_without_sharing(name: str) -> None:
    model = ALL[name](**({"sliding_window": 120} if name in WINDOWED else {}))
    shared, plain = pair(model)
    assert all(len(batch.prefix) > 20 for batch in shared) and len(shared) < len(plain)
    spent = PrefixCache()
    ours, theirs = score(model, shared, shared=spent), score(model, plain)
    assert (ours.predicted == theirs.predicted).all()
    np.testing.assert_allclose(ours.losses, theirs.losses, rtol=1e-5, atol=1e-5)
    assert spent.tokens < 0.6 * spent.unshared


@pytest.mark.parametrize("name", [n for n in ALL if n not in WINDOWED])
def test_full_attention_with_a_plain_cache_shares_at_any_length(name: str) -> None:
    assert longest_exact_row(ALL[name]()) == math.inf


@pytest.mark.parametrize("name", sorted(WINDOWED))
def test_rows_beyond_a_sliding_window_are_run_whole(name: str) -> None:
    model = ALL[name]()
    assert longest_exact_row(model) <= 8
    shared, plain = pair(model)
    assert not any(batch.prefix for batch in shared)
    assert (score(model, shared).losses == score(model, plain).losses).all()


def test_only_the_rows_that_fit_a_window_share() -> None:
    lengths = [len(row) for b in pair(tiny_llama())[1] for row in b.attention_mask]
    window = int(np.median([int(b.attention_mask[0].sum()) for b in pair(tiny_llama())[1]]))
    model = tiny_mistral(sliding_window=window)
    shared, plain = pair(model)
    assert min(lengths) <= window < max(lengths)
    assert {bool(batch.prefix) for batch in shared} == {True, False}
    ours, theirs = score(model, shared), score(model, plain)
    np.testing.assert_allclose(ours.losses, theirs.losses, rtol=1e-5, atol=1e-5)


def test_a_state_space_model_and_an_unknown_one_share_nothing() -> None:
    mamba = build("Mamba", hidden_size=32, state_size=4, num_hidden_layers=2)
    assert longest_exact_row(mamba) == 0 and longest_exact_row(tiny_odd()) == 0


def test_distances_counted_by_column_are_not_exact_behind_a_prefix() -> None:
    assert longest_exact_row(build("Mpt", d_model=32, n_heads=4, n_layers=2, max_seq_len=128)) == 0
    neo = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "window_size": 40}
    model = build("GPTNeo", **neo, attention_types=[[["global", "local"], 1]])
    assert longest_exact_row(model) == 40


def test_positions_that_change_with_the_length_share_up_to_where_they_do() -> None:
    rope = {
        "rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    assert longest_exact_row(tiny_llama(rope_parameters=rope)) == 64


def test_the_prefix_is_run_once_for_a_genome_and_anew_for_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_llama()
    bank = banked(model)
    tokenizer, sharing, widths = tiny_tokenizer(), prefix_sharing_of(model), list[tuple[int, ...]]()
    parts = (EXAMPLES[1:4], EXAMPLES[:1] + EXAMPLES[4:])
    shared = [scoring_batches(part, tokenizer, 120, sharing=sharing) for part in parts]
    plain = [scoring_batches(part, tokenizer, 120) for part in parts]
    forward = module.forward

    def counted(model: PreTrainedModel, inputs: dict[str, Tensor], *rest: Any) -> Tensor:
        widths.append(tuple(inputs["input_ids"].shape))
        return forward(model, inputs, *rest)

    monkeypatch.setattr(module, "forward", counted)
    objective = Objective(model, bank, shared, tolerance=1.0)
    passes = 1 + sum(map(len, shared))
    assert shared[0][0].prefix != shared[1][0].prefix and len(shared[1]) > 1
    assert len(widths) == passes
    assert widths[0] == (1, len(shared[0][0].prefix))
    assert objective.tokens_per_genome["run"] == sum(a * b for a, b in widths)
    found = [objective.score(uniform(bank, level)) for level in (0.3, 0.6)]
    assert len(widths) == 3 * passes
    whole = Objective(model, bank, plain, tolerance=1.0)
    assert objective.tokens_per_genome["run"] < 0.6 * whole.tokens_per_genome["run"]
    for ours, level in zip(found, (0.3, 0.6), strict=True):
        theirs = whole.score(uniform(bank, level))
        assert (ours.accuracy, ours.margin) == (theirs.accuracy, theirs.margin)
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)
        assert ours.divergence == pytest.approx(theirs.divergence, rel=1e-4, abs=1e-7)


def test_hooks_see_every_token_of_every_row() -> None:
    model = tiny_llama()
    shared, _ = pair(model)
    seen: list[int] = []

    def note(module: object, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0].shape[0] * args[0].shape[1])

    without = score(model, shared)
    handle = model.model.layers[0].self_attn.q_proj.register_forward_pre_hook(note)
    spent = PrefixCache()
    watched = score(model, shared, shared=spent)
    handle.remove()
    assert sum(seen) == sum(batch.input_ids.numel() for batch in shared) == spent.tokens
    assert max(seen) <= 120  # No more at once than was asked for.
    np.testing.assert_allclose(watched.losses, without.losses, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2", "mistral", "opt", "gemma3"])
def test_answers_are_written_as_without_sharing(name: str) -> None:
    model = ALL[name](**({"sliding_window": 120} if name in WINDOWED else {}))
    writer = Writer(
        tiny_tokenizer(), Writing(stop=(), max_new_tokens=6),
        RowMetric(Metric("exact_match"), from_text=exact_match),
    )  # fmt: skip
    rows = [Example(e.prompt, (" yes",), 0, references=("yes",)) for e in EXAMPLES]
    shared = writing_batches(rows, writer, 300, prefix_sharing_of(model))
    plain = writing_batches(rows, writer, 300)
    assert all(len(batch.prefix) > 20 for batch in shared)
    written: list[dict] = []
    for batches, spent in ((shared, PrefixCache()), (plain, PrefixCache())):
        found = {}
        for b in batches:
            texts = b.writer.write(model, b.input_ids, b.attention_mask, spent, b.prefix)
            found |= dict(zip(b.examples.tolist(), texts, strict=True))
        written.append(found)
    assert written[0] == written[1]
    ours, theirs = score(model, shared, reference={}), score(model, plain, reference={})
    np.testing.assert_allclose(ours.losses, theirs.losses, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_run_that_shares_chooses_the_same_genome_with_fewer_tokens(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    shots = "task.preamble='yes is good and no is bad and that is all there is\\n\\n'"
    results = [finished(world, f"at{least}", shots, f"share_prefix={least}", cache=f"{least}")
               for least in (0.25, 2)]  # fmt: skip
    genomes = [(world / f"at{least}/genome.json").read_text() for least in (0.25, 2)]
    assert genomes[0] == genomes[1]
    shared, plain = (result["search"]["tokens_per_genome"] for result in results)
    assert plain["run"] == plain["unshared"] and shared["run"] < 0.75 * shared["unshared"]
    assert results[0]["pruned"] == results[1]["pruned"]


def encoded(*rows: tuple[tuple[int, ...], tuple[int, ...]]) -> list[EncodedExample]:
    return [EncodedExample(prompt, (choice,), 0) for prompt, choice in rows]


def test_the_prefix_leaves_every_prompt_its_last_token() -> None:
    assert common_prefix(encoded(((1, 2, 3, 4), (9,)), ((1, 2, 3, 5), (9,)))) == (1, 2, 3)
    assert common_prefix(encoded(((1, 2, 3), (9,)), ((1, 2, 3, 5), (9,)))) == (1, 2)
    assert common_prefix(encoded(((1, 2), (9,)), ((2, 2), (9,)))) == ()
    assert common_prefix(encoded(((), (1, 9)), ((), (1, 8)))) == () == common_prefix([])


def sharing(least: float, longest: Callable[[], float]) -> PrefixSharing:
    return PrefixSharing(least, longest)


def test_a_prefix_is_shared_where_it_is_a_large_part_of_a_typical_row() -> None:
    rows = encoded(*(((1, 2, 3, 9, 9, 9, 9, 9, own), (4,)) for own in (5, 6, 7)))
    assert common_prefix(rows) == (1, 2, 3, 9, 9, 9, 9, 9)
    assert sharing(8 / 9, lambda: math.inf).prefix(rows)[0] == common_prefix(rows)
    assert sharing(0.9, lambda: pytest.fail("the model need not be asked")).prefix(rows)[0] == ()
    assert sharing(0.1, lambda: 8).prefix(rows)[0] == ()
    assert sharing(0.1, lambda: 9).prefix(rows, new_tokens=1)[0] == ()
    assert prefix_sharing_of(tiny_llama(), 2) is None


def test_a_probe_leaves_no_trace_in_the_model() -> None:
    model = tiny_llama()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    longest_exact_row(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
