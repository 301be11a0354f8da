"""What a dry run reckons with is what really happens: counted, collected, fitted, searched."""

import dataclasses
from functools import cache
from typing import Any

import pytest
import torch
from models import tiny_gpt2, tiny_llama, tiny_mixtral, tiny_phi3, tiny_qwen2, tiny_tokenizer
from test_conf_groups import load
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, AutoTokenizer

import sieve
from sieve.bank.genome import Sizing
from sieve.calibration.calibration import CalibrationModule
from sieve.config import SearchConfig
from sieve.conversion import ASSETS
from sieve.costs.dry_run import shape_of
from sieve.costs.inspection import build_without_weights
from sieve.costs.passes import Rows, backward_flops, forward_flops, held_bytes, moment_flops
from sieve.costs.searching import line_length, search_evaluations
from sieve.costs.shape import bank_bytes
from sieve.costs.solving import solve_work
from sieve.model.matrices import find_matrices
from sieve.projections import get_projection
from sieve.projections.moments import Gradient, Moment, moment_bytes
from sieve.search.lines import uniform_line, waterfill_line
from sieve.tasks import build_task

# As each model's card, or its checkpoint's index, says.
PARAMETERS = {
    "llama3_1_8b": 8_030_261_248,
    "llama3_1_70b": 70_553_706_496,
    "llama3_2_1b": 1_235_814_400,
    "phi3_mini": 3_821_079_552,
    "qwen2_5_0_5b": 494_032_768,
}
FAMILIES = {"llama": tiny_llama, "phi3": tiny_phi3, "gpt2": tiny_gpt2, "qwen2": tiny_qwen2}
ROWS, LENGTH = 3, 24


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_stated_architecture_has_the_parameters_of_the_model(name: str) -> None:
    config = load("+task=sst2", f"model={name}", "dry_run=true")
    with FakeTensorMode():
        shape = shape_of(build_without_weights(config))
    assert shape.parameters == PARAMETERS[name]


def rows(kept: float = 1.0) -> Rows:
    return Rows(ROWS, LENGTH, kept, padding=1.0)


def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 300, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def counted(work: object) -> float:
    def in_place(_sum: Any, a: Any, b: Any, *_: Any, **__: Any) -> int:
        return 2 * a[0] * a[1] * b[1]

    with FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten.addmm_: in_place}
    ) as counter:
        work()  # type: ignore[operator]
    return counter.get_total_flops()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pass_takes_the_operations_that_torch_counts(family: str) -> None:
    model = FAMILIES[family](attn_implementation="eager", hidden_size=64) if family != "gpt2" else (
        tiny_gpt2(attn_implementation="eager")
    )  # fmt: skip
    shape = shape_of(model)
    with torch.no_grad():
        found = counted(lambda: model(**batch(), logits_to_keep=1, use_cache=False))
    assert forward_flops(shape, rows()) == pytest.approx(found, rel=0.01)


def test_of_experts_a_token_passes_those_it_is_routed_to() -> None:
    model = tiny_mixtral()
    shape = shape_of(model)
    experts = [m for m in shape.matrices if m.expert]
    text = model.config
    share = text.num_experts_per_tok / text.num_local_experts
    assert experts and shape.routed == share
    dense = sum(m.size for m in shape.matrices if not m.expert)
    assert shape.per_token == pytest.approx(dense + share * sum(m.size for m in experts))


@pytest.mark.parametrize("projection", ["output", "loss_aware", "asvd", "input_pca"])
def test_calibration_takes_the_operations_that_torch_counts(projection: str) -> None:
    model = tiny_llama(attn_implementation="eager", hidden_size=64)
    needs = get_projection(projection).needs
    by_gradient = needs.weighting == "gradient"
    module = CalibrationModule(model, needs=needs, weighting=needs.weighting, answers="gold")
    shape = shape_of(model)
    kept = LENGTH if needs.gradient else 1
    expected = forward_flops(shape, rows(kept)) + moment_flops(shape, rows(), needs, by_gradient)
    expected += backward_flops(shape, rows(kept)) if needs.gradient else 0.0
    assert expected == pytest.approx(counted(lambda: module.predict_step(batch())), rel=0.02)


@pytest.mark.parametrize("projection", ["output", "loss_aware", "asvd", "learned"])
@pytest.mark.parametrize("family", FAMILIES)
def test_moments_weigh_what_collected_ones_do(family: str, projection: str) -> None:
    model, needs = FAMILIES[family](), get_projection(projection).needs
    moments = sieve.calibrate(model, [batch()], needs=needs, weighting=needs.weighting)
    expected = moment_bytes(find_matrices(model), needs, needs.weighting == "gradient")
    entries = moments.entries.values()
    activations = sum(m.second.nbytes + m.mean.nbytes for m in entries)
    activations += sum(m.nbytes for m in moments.magnitudes.values())
    gradients = sum(g.second.nbytes for g in moments.gradients.values())
    assert (expected.activations, expected.gradients) == (activations, gradients)


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("storage", ["plain", "pivoted"])
@pytest.mark.parametrize("projection", ["output", "affine", "loss_aware", "input_pca"])
def test_a_bank_weighs_what_a_fitted_one_does(projection: str, storage: str, joint: bool) -> None:
    model, needs = tiny_llama(), get_projection(projection).needs
    needs = dataclasses.replace(needs, input=needs.input or joint)
    moments = sieve.calibrate(model, [batch()], needs=needs, weighting=needs.weighting)
    bank = sieve.fit(
        model, moments, projection, storage, rank_multiple=4, dtype=torch.float16, joint=joint
    )
    found = 0
    for held in bank.factors.values():
        parts = (held.u, held.v, held.energy, held.mean, held.offset)
        found += sum(part.nbytes for part in parts if part is not None)
    size = bank_bytes(shape_of(model), Sizing(storage, 4), projection, bank.sizing.fits_bias, joint)
    assert size.total(2) == found


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (32, 32)])
@pytest.mark.parametrize("projection", ["output", "affine", "loss_aware", "input_pca", "whitened"])
def test_a_solve_takes_the_products_that_torch_counts(projection: str, shape: tuple) -> None:
    d_out, d_in = shape
    drawn = torch.Generator().manual_seed(0)
    weight, x = torch.randn(shape, generator=drawn), torch.randn(200, d_in, generator=drawn)
    side, z = ("output", x @ weight.T) if d_out < d_in and projection == "affine" else ("input", x)
    g = torch.randn(200, min(shape), generator=drawn)
    gradient = Gradient("output" if d_out <= d_in else "input", g.T @ g / 200, 1.0, 200)
    moment = Moment(side, z.T @ z / 200, z.mean(0), 200, gradient=gradient)
    found = counted(lambda: get_projection(projection)(weight, moment))
    work = solve_work(projection, d_out, d_in, side)
    assert work.products == pytest.approx(found, rel=0.1)
    assert work.spectral > 0


def test_a_pass_with_a_way_back_holds_what_torch_saves_and_hooks_keep() -> None:
    model = tiny_llama(hidden_size=128, intermediate_size=352, num_hidden_layers=4)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept, alive = dict[int, int](), list[torch.Tensor]()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and tensor.shape[-1] != model.config.vocab_size:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # An address is unique only while its tensor lives.
        return tensor

    for matrix in find_matrices(model):
        module = model.get_submodule(matrix.name)
        module.register_forward_pre_hook(lambda _, args: (keep(args[0]), None)[1])
    needs = get_projection("loss_aware").needs
    module = CalibrationModule(model, needs=needs, weighting="gradient", answers="gold")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module.predict_step(batch())
    expected = held_bytes(shape_of(model), ROWS * LENGTH, 4)
    assert expected == pytest.approx(sum(kept.values()), rel=0.1)


@cache
def embedded():
    """The embedded model, rows to calibrate on, and an objective's batches."""
    model = AutoModelForCausalLM.from_pretrained(ASSETS / "embedded", dtype="float32").eval()
    model.requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "embedded")
    task = build_task(load("+task=almanac_medicine").task)
    seen = sieve.calibration_batches(task.splits["calibration"][:96], tokenizer)
    return model, seen, sieve.scoring_batches(task.splits["selection"][:48], tokenizer)


@pytest.mark.parametrize(
    ("method", "projection", "storage"),
    [("uniform", "output", "plain"), ("waterfill", "loss_aware", "pivoted")],
)
def test_a_search_takes_no_more_than_is_said(method: str, projection: str, storage: str) -> None:
    model, seen, batches = embedded()
    bank = sieve.fit(
        model, sieve.calibrate(model, seen, projection=projection), projection, storage
    )
    settings, sizing = SearchConfig(method=method), Sizing(storage)
    shape = shape_of(model)
    line = (uniform_line if method == "uniform" else waterfill_line)(bank)
    assert line.count <= line_length(shape, sizing, settings, method) <= 1.5 * line.count + 2
    expected = search_evaluations(shape, sizing, settings, 48, {})
    for tolerance in (0.02, 0.3):
        objective = sieve.Objective(model, bank, batches, tolerance)
        find = sieve.search_uniform if method == "uniform" else sieve.search_waterfill
        find(bank, objective)
        found = len(objective.evaluated)
        assert found <= expected.most and objective.examples_scored <= expected.most_rows
        assert expected.expected - 2 <= found <= expected.expected + 3


def test_a_genetic_search_is_bounded_by_its_generations() -> None:
    shape = shape_of(tiny_llama())
    settings = load("+task=sst2", "search=paper", "dry_run=true").search
    sweeper = {"population": 100, "generations": 30, "stagnation_generations": 10}
    found = search_evaluations(shape, Sizing(), settings, 500, sweeper)
    assert found.most == 30 * 100 and found.expected == 13 * 100
    # The dense model is scored twice by the first job, and by those after it.
    assert found.rows < found.most_rows == (30 * 100 + 2 + 2) * 500
    few = search_evaluations(shape, Sizing(), settings, 500, sweeper | {"generations": 2})
    assert few.most == few.expected == 200


def test_a_tokenizer_s_vocabulary_is_not_the_head_s() -> None:
    model = tiny_llama(vocab_size=500)
    assert len(tiny_tokenizer()) != 500 and shape_of(model).vocabulary == 500
