"""A common prefix that runs once gives the same scores as whole rows, with fewer tokens."""

import math
from pathlib import Path

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
from sieve.data.encoding import EncodedExample, Tokens
from sieve.data.generation import Writer, writing_batches
from sieve.data.prefix import PrefixCache
from sieve.data.sharing import PrefixSharing, common_prefix, longest_exact_row, prefix_sharing_of
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
    """Batches that share their prefix, and batches of whole rows."""
    tokenizer, sharing = tiny_tokenizer(), prefix_sharing_of(model, least)
    shared = scoring_batches(EXAMPLES, tokenizer, batch_tokens, sharing=sharing)
    return shared, scoring_batches(EXAMPLES, tokenizer, batch_tokens)


@pytest.mark.parametrize("name", ALL)
def test_choices_have_the_same_scores_with_and_without_sharing(name: str) -> None:
    model = ALL[name](**({"sliding_window": 120} if name in WINDOWED else {}))
    shared, plain = pair(model)
    assert all(len(batch.prefix) > 20 for batch in shared) and len(shared) < len(plain)
    cache = PrefixCache()
    ours, theirs = score(model, shared, prefix_cache=cache), score(model, plain)
    assert (ours.predicted == theirs.predicted).all()
    np.testing.assert_allclose(ours.losses, theirs.losses, rtol=1e-5, atol=1e-5)
    assert cache.tokens < 0.6 * cache.unshared


@pytest.mark.parametrize("name", [n for n in ALL if n not in WINDOWED])
def test_models_with_full_attention_share_a_prefix_in_rows_of_any_length(name: str) -> None:
    assert longest_exact_row(ALL[name]()) == math.inf


@pytest.mark.parametrize("name", sorted(WINDOWED))
def test_rows_longer_than_the_sliding_window_run_whole(name: str) -> None:
    model = ALL[name]()
    assert longest_exact_row(model) <= 8
    shared, plain = pair(model)
    assert not any(batch.prefix for batch in shared)
    assert (score(model, shared).losses == score(model, plain).losses).all()


def test_only_rows_that_fit_the_sliding_window_share_a_prefix() -> None:
    lengths = [len(row) for b in pair(tiny_llama())[1] for row in b.attention_mask]
    window = int(np.median([int(b.attention_mask[0].sum()) for b in pair(tiny_llama())[1]]))
    model = tiny_mistral(sliding_window=window)
    shared, plain = pair(model)
    assert min(lengths) <= window < max(lengths)
    assert {bool(batch.prefix) for batch in shared} == {True, False}
    ours, theirs = score(model, shared), score(model, plain)
    np.testing.assert_allclose(ours.losses, theirs.losses, rtol=1e-5, atol=1e-5)


def test_a_state_space_model_and_an_unknown_architecture_share_no_prefix() -> None:
    mamba = build("Mamba", hidden_size=32, state_size=4, num_hidden_layers=2)
    assert longest_exact_row(mamba) == 0 and longest_exact_row(tiny_odd()) == 0


def test_attention_biases_by_column_rule_out_sharing() -> None:
    assert longest_exact_row(build("Mpt", d_model=32, n_heads=4, n_layers=2, max_seq_len=128)) == 0
    neo = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "window_size": 40}
    model = build("GPTNeo", **neo, attention_types=[[["global", "local"], 1]])
    assert longest_exact_row(model) == 40


def test_dynamic_rope_shares_up_to_the_length_where_its_frequencies_change() -> None:
    rope = {
        "rope_type": "dynamic",
        "factor": 2.0,
        "rope_theta": 1e4,
        "original_max_position_embeddings": 64,
    }
    assert longest_exact_row(tiny_llama(rope_parameters=rope)) == 64


def test_the_prefix_runs_once_per_genome(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_llama()
    bank = banked(model)
    tokenizer, sharing, widths = tiny_tokenizer(), prefix_sharing_of(model), list[tuple[int, ...]]()
    stages = (EXAMPLES[1:4], EXAMPLES[:1] + EXAMPLES[4:])
    shared = [scoring_batches(rows, tokenizer, 120, sharing=sharing) for rows in stages]
    plain = [scoring_batches(rows, tokenizer, 120) for rows in stages]
    forward = module.forward

    def counted(model: PreTrainedModel, inputs: dict[str, Tensor], *rest: object) -> Tensor:
        widths.append(tuple(inputs["input_ids"].shape))
        return forward(model, inputs, *rest)

    monkeypatch.setattr(module, "forward", counted)
    objective = Objective(model, bank, shared, tolerance=1.0)
    passes = 1 + sum(map(len, shared))
    assert shared[0][0].prefix != shared[1][0].prefix and len(shared[1]) > 1
    assert len(widths) == passes
    assert widths[0] == (1, len(shared[0][0].prefix))
    assert objective.tokens_per_genome["run"] == sum(a * b for a, b in widths)
    shared_scores = [objective.score(uniform(bank, level)) for level in (0.3, 0.6)]
    assert len(widths) == 3 * passes
    whole = Objective(model, bank, plain, tolerance=1.0)
    assert objective.tokens_per_genome["run"] < 0.6 * whole.tokens_per_genome["run"]
    for ours, level in zip(shared_scores, (0.3, 0.6), strict=True):
        theirs = whole.score(uniform(bank, level))
        assert (ours.accuracy, ours.margin) == (theirs.accuracy, theirs.margin)
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)
        assert ours.divergence == pytest.approx(theirs.divergence, rel=1e-4, abs=1e-7)


def test_hooks_see_every_token_of_every_row() -> None:
    model = tiny_llama()
    shared, _ = pair(model)
    tokens: list[int] = []

    def note(module: object, args: tuple[Tensor, ...]) -> None:
        tokens.append(args[0].shape[0] * args[0].shape[1])

    without = score(model, shared)
    handle = model.model.layers[0].self_attn.q_proj.register_forward_pre_hook(note)
    cache = PrefixCache()
    watched = score(model, shared, prefix_cache=cache)
    handle.remove()
    assert sum(tokens) == sum(batch.input_ids.numel() for batch in shared) == cache.tokens
    assert max(tokens) <= 120  # A forward pass stays within the tokens of a batch.
    np.testing.assert_allclose(watched.losses, without.losses, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2", "mistral", "opt", "gemma3"])
def test_written_answers_are_the_same_with_and_without_sharing(name: str) -> None:
    model = ALL[name](**({"sliding_window": 120} if name in WINDOWED else {}))
    row_metric = RowMetric(Metric("exact_match"), from_text=exact_match)
    writer = Writer(tiny_tokenizer(), Writing(stop=(), max_new_tokens=6), row_metric)
    rows = [Example(e.prompt, (" yes",), 0, references=("yes",)) for e in EXAMPLES]
    shared = writing_batches(rows, writer, 300, prefix_sharing_of(model))
    plain = writing_batches(rows, writer, 300)
    assert all(len(batch.prefix) > 20 for batch in shared)
    written: list[dict[int, Tokens]] = []
    for batches, cache in ((shared, PrefixCache()), (plain, PrefixCache())):
        answers: dict[int, Tokens] = {}
        for b in batches:
            texts = b.writer.write(model, b.input_ids, b.attention_mask, cache, b.prefix)
            answers |= dict(zip(b.examples.tolist(), texts, strict=True))
        written.append(answers)
    assert written[0] == written[1]
    ours, theirs = score(model, shared, reference={}), score(model, plain, reference={})
    np.testing.assert_allclose(ours.losses, theirs.losses, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_run_shares_the_preamble_of_a_task(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    preamble = "yes is good and no is bad and that is all there is\\n\\n"
    result = finished(world, "run", f"task.preamble='{preamble}'", "share_prefix=0.25")
    tokens = result["search"]["tokens_per_genome"]
    assert tokens["run"] < 0.75 * tokens["unshared"]


def encoded(*rows: tuple[tuple[int, ...], tuple[int, ...]]) -> list[EncodedExample]:
    return [EncodedExample(prompt, (choice,), 0) for prompt, choice in rows]


def test_the_prefix_never_contains_the_last_token_of_a_prompt() -> None:
    assert common_prefix(encoded(((1, 2, 3, 4), (9,)), ((1, 2, 3, 5), (9,)))) == (1, 2, 3)
    assert common_prefix(encoded(((1, 2, 3), (9,)), ((1, 2, 3, 5), (9,)))) == (1, 2)
    assert common_prefix(encoded(((1, 2), (9,)), ((2, 2), (9,)))) == ()
    assert common_prefix(encoded(((), (1, 9)), ((), (1, 8)))) == () == common_prefix([])


def test_a_prefix_is_shared_if_it_is_a_large_part_of_a_typical_row() -> None:
    rows = encoded(*(((1, 2, 3, 9, 9, 9, 9, 9, own), (4,)) for own in (5, 6, 7)))
    assert common_prefix(rows) == (1, 2, 3, 9, 9, 9, 9, 9)
    assert PrefixSharing(8 / 9, lambda: math.inf).prefix(rows)[0] == common_prefix(rows)
    assert (
        PrefixSharing(0.9, lambda: pytest.fail("called though sharing does not pay")).prefix(rows)[
            0
        ]
        == ()
    )
    assert PrefixSharing(0.1, lambda: 8).prefix(rows)[0] == ()
    assert PrefixSharing(0.1, lambda: 9).prefix(rows, new_tokens=1)[0] == ()
    assert prefix_sharing_of(tiny_llama(), 2) is None


def test_probing_a_model_leaves_its_weights_unchanged() -> None:
    model = tiny_llama()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    longest_exact_row(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
