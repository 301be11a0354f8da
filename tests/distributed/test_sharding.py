"""A model shared out over 2 and 4 ranks is, to whoever asks, the model that it was."""

import time

import pytest
import torch
from models import tiny_gpt2, tiny_llama, tiny_llama_tied, tiny_mixtral, tiny_tokenizer
from ranked import on_ranks, position, sharded
from sieved import mixed, tokens, uniform
from torch import distributed
from transformers import PreTrainedModel
from written import EXAMPLES, writer

from sieve.bank.bank import fit
from sieve.bank.switch import Switch
from sieve.calibration.calibration import CalibrationModule, calibrate
from sieve.data.batches import batches_of_rank as dealt
from sieve.data.generation import writing_batches
from sieve.distributed.sharding import average_gradients, whole, whole_layer
from sieve.evaluation.evaluation import score
from sieve.factorized.modeling_sieve import native_class
from sieve.model.matrices import block_of, block_paths, find_matrices, layer_of, shares_embedding
from sieve.projections.moments import Moments, Needs
from sieve.refit.refit import refit

TOKENS = torch.arange(5, 25)[None]
FAMILIES = {"llama": tiny_llama, "tied": tiny_llama_tied, "gpt2": tiny_gpt2, "moe": tiny_mixtral}


def shares(family: str) -> dict:
    """What a rank has of a sharded model, and what the model computes."""
    rank, world = position()
    plain = FAMILIES[family]()
    matrices = find_matrices(plain)
    model = sharded(FAMILIES[family]())
    last, gathered = block_paths(model)[-1], set[str]()
    model.get_submodule(matrices[-1].name).register_forward_hook(
        lambda *_: gathered.update(n for n, p in model.named_parameters() if whole(p) is p)
    )
    with torch.no_grad():
        logits = model(TOKENS).logits
    held = [p.to_local() for p in model.parameters()]
    name = matrices[-1].name
    layer = model.get_submodule(name)
    return {
        "one block": {block_of(n) for n in gathered if layer_of(n) is not None} == {last},
        "fraction": sum(p.numel() for p in held) / sum(p.numel() for p in model.parameters()),
        "bytes": sum(part.untyped_storage().nbytes() for part in held),
        "all": sum(p.numel() * p.element_size() for p in plain.parameters()),
        "logits": (logits - plain(TOKENS).logits).abs().max().item(),
        "matrices": find_matrices(model) == matrices,
        "tied": shares_embedding(model),
        "class": native_class(model) is type(plain),
        "whole": torch.equal(whole(layer.weight), plain.get_submodule(name).weight),
        "layer": torch.equal(whole_layer(layer).weight, plain.get_submodule(name).weight),
    }


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_rank_holds_its_share_and_the_model_computes_as_before(family, world):
    found = on_ranks(shares, world, family)
    assert sum(rank["fraction"] for rank in found) == pytest.approx(1)
    for rank in found:
        assert rank["fraction"] == pytest.approx(1 / world, abs=0.02)
        assert rank["bytes"] <= rank["all"] / world * 1.02  # No view of the whole is kept.
        assert rank["logits"] == 0
        assert rank["tied"] == (family in ("tied", "gpt2"))
        assert all(rank[key] for key in ("one block", "matrices", "class", "whole", "layer"))


def pieces() -> list[dict]:
    """Five batches, which neither two nor four ranks can share evenly."""
    batches = []
    generator = torch.Generator().manual_seed(0)
    for width in (9, 7, 5):
        for rows, padding in ((1, 3), (3, 1)):
            mask = torch.ones(rows, width, dtype=torch.long)
            mask[0, :padding] = 0
            ids = torch.randint(3, 40, (rows, width), generator=generator)
            positions = (mask.cumsum(1) - 1).clamp_min(0)
            batches.append({"input_ids": ids, "attention_mask": mask, "position_ids": positions})
    return batches[:5]


def moments_of(needs: Needs, checkpointing: bool, weighting: str, head: bool) -> tuple:
    model = sharded(tiny_llama_tied() if head else tiny_llama())
    matrices = find_matrices(model, head)
    module = CalibrationModule(
        model, matrices, needs, "margin", weighting, checkpointing=checkpointing
    )
    module.on_predict_start()
    for batch in dealt(pieces(), *position()):
        module.predict_step(batch)
    module.on_predict_end()
    assert module.moments is not None
    return module.moments, module.turns.passes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "needs", "checkpointing", "weighting", "head"),
    [
        (2, Needs(), False, "none", False),
        (4, Needs(magnitude=True), False, "answer", False),
        (2, Needs(gradient=True), True, "gradient", False),
        (4, Needs(gradient=True), False, "gradient", False),
        (2, Needs(gradient=True), False, "none", True),
    ],
)
def test_ranks_with_unequal_batches_make_the_moments_of_one_process(
    world, needs, checkpointing, weighting, head
):
    model = tiny_llama_tied() if head else tiny_llama()
    options = {"answers": "margin", "weighting": weighting}
    alone = calibrate(model, pieces(), find_matrices(model, head), needs, **options)
    found = on_ranks(moments_of, world, needs, checkpointing, weighting, head)
    assert [passes > 0 for _, passes in found] == [5 % world <= rank for rank in range(world)]
    for moments, _ in found:
        assert moments.entries.keys() == alone.entries.keys()
        for name, entry in moments.entries.items():
            one = alone.entries[name]
            assert entry.count == one.count
            assert torch.dist(entry.second, one.second) <= 1e-6 * one.second.norm()
            torch.testing.assert_close(entry.mean, one.mean, rtol=1e-5, atol=1e-6)
        for name, gradient in moments.gradients.items():
            one = alone.gradients[name]
            assert gradient.power == pytest.approx(one.power, rel=1e-5)
            assert torch.dist(gradient.second, one.second) <= 1e-6 * one.second.norm()
        for name, size in moments.magnitudes.items():
            torch.testing.assert_close(size, alone.magnitudes[name])


def scores_of(stop: tuple) -> tuple:
    model = sharded(tiny_llama())
    rows = writing_batches(EXAMPLES, writer(stop=stop, max_new_tokens=8), batch_tokens=64)
    found = score(model, rows)
    return found.values, found.losses, found.predicted


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_ranks_whose_answers_are_of_unequal_length_score_as_one_process(world):
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    rows = writing_batches(EXAMPLES, writer(max_new_tokens=8), batch_tokens=64)
    free = [row.writer.write(model, row.input_ids, row.attention_mask) for row in rows]
    # A stop string ends some answers early, so that passes differ in number.
    stop = (tokenizer.decode([free[1][0][4]]),)
    rows = writing_batches(EXAMPLES, writer(stop=stop, max_new_tokens=8), batch_tokens=64)
    written = [row.writer.write(model, row.input_ids, row.attention_mask) for row in rows]
    assert len({max(map(len, answers)) for answers in written}) > 1
    alone = score(model, rows)
    for values, losses, predicted in on_ranks(scores_of, world, stop):
        assert (values == alone.values).all() and (predicted == alone.predicted).all()
        assert losses == pytest.approx(alone.losses, abs=1e-6)


def fitted(family: str, moments: Moments) -> dict:
    return pruned(sharded(FAMILIES[family]()), moments)


def pruned(model: PreTrainedModel, moments: Moments) -> dict:
    """A bank of a model, what a genome of it computes, and a refit."""
    data = [{"input_ids": tokens(8, 32, seed)} for seed in range(8)]
    bank = fit(model, moments, "loss_aware")
    with Switch(model, bank, as_stored=False).to(mixed(bank)), torch.no_grad():
        logits = model(TOKENS).logits
    again = refit(model, bank, uniform(bank, 0.5), moments, data, residual=True)
    return {
        "bank": bank.fingerprint,  # of every number in it
        "logits": logits,
        "kept": again.kept,
        "after": again.after,
    }


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_bank_and_its_models_are_those_of_one_process(family):
    model = FAMILIES[family]()
    data = [{"input_ids": tokens(8, 32, seed)} for seed in range(8)]
    moments = calibrate(model, data, projection="loss_aware")
    alone = pruned(model, moments)
    for found in on_ranks(fitted, 2, family, moments):
        assert found["bank"] == alone["bank"]
        assert torch.equal(found["logits"], alone["logits"])
        assert found["kept"] == alone["kept"] and found["kept"]
        assert found["after"] == pytest.approx(alone["after"])


def averaged() -> torch.Tensor:
    rank, _ = position()
    parameters = [torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(1))]
    parameters[0].grad = torch.full((3,), float(rank))
    average_gradients(parameters)
    assert parameters[1].grad is None and parameters[0].grad is not None
    return parameters[0].grad


@pytest.mark.slow
def test_gradients_of_what_all_ranks_hold_are_averaged():
    for found in on_ranks(averaged, 4):
        assert found.tolist() == [1.5, 1.5, 1.5]


def refused() -> str:
    model = tiny_llama()
    weight = model.model.layers[0].mlp.up_proj.weight
    weight.tensor_data_names = []  # As torchao marks its own.
    with pytest.raises(ValueError, match="quantized") as error:
        sharded(model)
    return str(error.value)


@pytest.mark.slow
def test_a_quantized_model_is_not_shared_out():
    assert all("trainer=gpu" in text for text in on_ranks(refused, 2))


def stays_away() -> None:
    """Rank 0 waits for a pass of rank 1, which never comes."""
    if position()[0] == 0:
        distributed.barrier()
    time.sleep(1000)


@pytest.mark.slow
def test_a_rank_that_joins_no_pass_of_the_others_ends_the_test():
    with pytest.raises(AssertionError, match=r"(?s)rank 0: .*barrier.*rank 1 was still at work"):
        on_ranks(stays_away, 2, limit_s=10)
