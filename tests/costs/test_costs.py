"""The figures of a dry run are what happens: counted by torch, collected, fitted and searched."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from models import tiny_gpt2, tiny_llama, tiny_mixtral, tiny_phi3, tiny_qwen2, tiny_tokenizer
from test_conf_groups import load
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import sieve
from sieve.bank.genome import Sizing
from sieve.calibration.calibration import CalibrationModule
from sieve.config import Config, DeviceConfig, SearchConfig
from sieve.costs.lengths import Lengths
from sieve.costs.plan import Plan
from sieve.costs.probe import find_device
from sieve.costs.searching import line_length, search_evaluations
from sieve.costs.shape import Rows, build_without_weights, shape_of
from sieve.costs.solving import BY_LAPACK, BY_TORCH, DECOMPOSITIONS, SOLVES, fit_flops
from sieve.model.matrices import find_matrices
from sieve.projections import get_projection
from sieve.projections.moments import Gradient, Moment, moment_bytes
from sieve.search.objective import Score
from sieve.tasks import TaskConfig

# From each model's card, or from the index of its checkpoint.
PARAMETERS = {
    "llama3_1_8b": 8_030_261_248,
    "llama3_1_70b": 70_553_706_496,
    "llama3_2_1b": 1_235_814_400,
    "phi3_mini": 3_821_079_552,
    "qwen2_5_0_5b": 494_032_768,
    "smollm2_135m": 134_515_008,
    "smollm2_360m": 361_821_120,
    "qwen3_0_6b": 596_049_920,
    "gemma3_270m": 268_098_176,
    "llama3_2_3b": 3_212_749_824,
    "qwen3_4b": 4_022_468_096,
}
FAMILIES = {"llama": tiny_llama, "phi3": tiny_phi3, "gpt2": tiny_gpt2, "qwen2": tiny_qwen2}
ROWS, LENGTH = 3, 24


@pytest.mark.slow
@pytest.mark.parametrize("name", PARAMETERS)
def test_a_stated_architecture_has_the_parameters_of_the_model(name: str) -> None:
    config = load("+task=sst2", f"model={name}", "dry_run=true")
    with FakeTensorMode():
        shape = shape_of(build_without_weights(config.model)[0])
    assert shape.parameters == PARAMETERS[name]


def rows(logits: float = 1.0) -> Rows:
    return Rows(ROWS, LENGTH, logits, padding=1.0)


def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 300, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def counted(work: Callable[[], object], lapack: bool = False) -> dict[object, float]:
    """The operations of some work, by the kind of operation; lapack: on one thread of a CPU."""

    def in_place(_sum: list[int], a: list[int], b: list[int], **_: object) -> int:
        return 2 * a[0] * a[1] * b[1]

    mapping = DECOMPOSITIONS | SOLVES | (BY_LAPACK if lapack else BY_TORCH)
    mapping |= {torch.ops.aten.addmm_: in_place}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        work()
    return counter.get_flop_counts()["Global"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pass_takes_the_operations_that_torch_counts(family: str) -> None:
    wide = {} if family == "gpt2" else {"hidden_size": 64}
    model = FAMILIES[family](attn_implementation="eager", **wide)
    with torch.no_grad():
        flops = counted(lambda: model(**batch(), logits_to_keep=1, use_cache=False))
    assert shape_of(model).pass_flops(rows()) == pytest.approx(sum(flops.values()), rel=0.01)


def test_a_token_passes_the_experts_that_it_is_routed_to() -> None:
    model = tiny_mixtral()
    shape = shape_of(model)
    experts = sum(m.size for m in shape.matrices if m.expert)
    share = model.config.num_experts_per_tok / model.config.num_local_experts
    dense = sum(m.size for m in shape.matrices if not m.expert)
    assert experts and shape.routed == share
    a_token = Rows(count=1, length=1, logits=0, padding=1)
    other = shape.unprunable + 2 * shape.queries * shape.layers
    assert shape.pass_flops(a_token) == pytest.approx(2 * (dense + share * experts + other))


@pytest.mark.parametrize("projection", ["output", "loss_aware", "input_pca"])
def test_calibration_takes_the_operations_that_torch_counts(projection: str) -> None:
    model = tiny_llama(attn_implementation="eager", hidden_size=160)
    needs = get_projection(projection).needs
    module = CalibrationModule(model, needs=needs, weighting=needs.weighting, answers="gold")
    flops = counted(lambda: module.predict_step(batch()))
    shape, logits = shape_of(model), LENGTH if needs.gradient else 1
    expected = shape.pass_flops(rows(logits), backward=int(needs.gradient))
    expected += shape.moment_flops(rows(), needs, needs.weighting == "gradient")
    assert expected == pytest.approx(sum(flops.values()), rel=0.02)


@pytest.mark.parametrize("projection", ["output", "loss_aware", "asvd", "learned"])
@pytest.mark.parametrize("family", ["phi3", "gpt2"])
def test_the_size_of_moments_is_that_of_collected_ones(family: str, projection: str) -> None:
    model, needs = FAMILIES[family](), get_projection(projection).needs
    moments = sieve.calibrate(model, [batch()], needs=needs, weighting=needs.weighting)
    expected = moment_bytes(find_matrices(model), needs, needs.weighting == "gradient")
    activations = sum(m.second.nbytes + m.mean.nbytes for m in moments.entries.values())
    activations += sum(m.nbytes for m in moments.magnitudes.values())
    gradients = sum(g.second.nbytes for g in moments.gradients.values())
    assert expected == (activations, gradients)


def planned(model, tokens: int = 200, **projection: object) -> Plan:
    """The plan of a run on a model, for a device that is not measured."""
    config = Config(TaskConfig("random"))
    config.projection = dataclasses.replace(config.projection, **projection)
    spec = DeviceConfig("cpu", "cpu", 8, {"float32": 0.1, "float64": 0.05}, 10)
    lengths = Lengths({"calibration": 9}, tokens / 9, tokens / 9, "random")
    device = find_device(spec, "cpu", {"float32"})
    return Plan(config, shape_of(model), lengths, device)


@pytest.mark.parametrize(
    ("projection", "storage", "joint"),
    [("output", "plain", False), ("loss_aware", "pivoted", True), ("affine", "pivoted", False)],
)
def test_the_size_of_a_bank_is_that_of_a_fitted_one(projection, storage, joint) -> None:
    model, needs = tiny_llama(), get_projection(projection).needs
    needs = dataclasses.replace(needs, input=needs.input or joint)
    moments = sieve.calibrate(model, [batch()], needs=needs, weighting=needs.weighting)
    bank = sieve.fit(model, moments, projection, storage, rank_multiple=4, joint=joint)
    plan = planned(model, name=projection, storage=storage, rank_multiple=4, joint=joint)
    factors = bank.factors.values()
    assert plan.bank_bytes == sum(f.u.nbytes + f.v.nbytes for f in factors)
    assert plan.sizing.fits_bias == bank.sizing.fits_bias


@pytest.mark.parametrize("shape", [(96, 160), (160, 96)])
@pytest.mark.parametrize("projection", ["output", "loss_aware", "whitened"])
@pytest.mark.parametrize("lapack", [False, True])
def test_a_small_matrix_tells_the_operations_of_a_large_one(
    projection: str, shape: tuple[int, int], lapack: bool
) -> None:
    d_out, d_in = shape
    weight, n = torch.randn(shape, generator=torch.Generator().manual_seed(0)), min(shape)
    gradient = Gradient("output" if d_out <= d_in else "input", torch.eye(n), n, 200)
    moment = Moment("input", torch.eye(d_in), torch.zeros(d_in), 200, gradient=gradient)
    flops = counted(lambda: get_projection(projection)(weight, moment, n), lapack)
    products, decompositions = fit_flops(projection, d_out, d_in, "input", n, lapack)
    assert products + decompositions == pytest.approx(sum(flops.values()), rel=1e-6)
    assert decompositions > 0


def test_a_backward_pass_saves_what_torch_saves_and_hooks_keep() -> None:
    model = tiny_llama(hidden_size=128, intermediate_size=352, num_hidden_layers=4)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved, alive = dict[int, int](), list[torch.Tensor]()

    def save(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and tensor.shape[-1] != model.config.vocab_size:
            saved[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # An address is unique only while its tensor lives.
        return tensor

    for matrix in find_matrices(model):
        module = model.get_submodule(matrix.name)
        module.register_forward_pre_hook(lambda _, args: (save(args[0]), None)[1])
    needs = get_projection("loss_aware").needs
    module = CalibrationModule(model, needs=needs, weighting="gradient", answers="gold")
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        module.predict_step(batch())
    expected = shape_of(model).activation_bytes(ROWS * LENGTH, 4, saved_blocks=4)
    assert expected == pytest.approx(sum(saved.values()), rel=0.1)


class Threshold:
    """Accepts every genome that keeps at least `least`, and counts the genomes it scores."""

    def __init__(self, bank: sieve.Bank, least: float) -> None:
        self.bank, self.least, self.scored = bank, least, set[object]()

    def score(self, genome, *_: object) -> Score:
        self.scored.add(genome)
        kept = self.bank.kept_fraction(genome)
        return Score(kept, 1.0, kept - self.least, examples_used=48)


@pytest.mark.parametrize("method", ["uniform", "waterfill"])
def test_a_search_scores_no_more_genomes_than_forecast(method: str) -> None:
    model = tiny_llama()
    moments = sieve.calibrate(model, [batch()], projection="loss_aware")
    bank = sieve.fit(model, moments, "loss_aware", "pivoted")
    settings, sizing, shape = SearchConfig(method=method), Sizing("pivoted"), shape_of(model)
    (expected, most), _, _ = search_evaluations(shape, sizing, settings, 48, {})
    assert line_length(shape, sizing, settings, method) == most + 1
    for least in (0.9, 0.3):
        scorer = Threshold(bank, least)
        find = sieve.search_uniform if method == "uniform" else sieve.search_waterfill
        find(bank, scorer)
        assert len(scorer.scored) <= most
        assert expected - 2 <= len(scorer.scored) <= expected + 3


def test_a_genetic_search_is_bounded_by_its_generations() -> None:
    shape = shape_of(tiny_llama())
    settings = load("+task=sst2", "search=paper", "dry_run=true").search
    sweeper = {"population": 100, "generations": 30, "stagnation_generations": 10}
    genomes, (rows, most_rows), _ = search_evaluations(shape, Sizing(), settings, 500, sweeper)
    assert genomes.tolist() == [13 * 100, 30 * 100]
    # The dense model is scored twice by the first job, and twice by later ones.
    assert rows < most_rows == (30 * 100 + 2 + 2) * 500
    few, _, _ = search_evaluations(shape, Sizing(), settings, 500, sweeper | {"generations": 2})
    assert few.tolist() == [200, 200]


def test_genomes_that_share_blocks_count_by_the_blocks_that_run() -> None:
    model = tiny_llama()
    shape, sweeper = shape_of(model), {"population": 8, "generations": 2}
    for settings, least in (
        (SearchConfig(method="genetic", judge="divergence"), 2 * len(shape.matrices)),
        (SearchConfig(method="waterfill", bottlenecks=True), len(shape.matrices)),
    ):
        whole, shared = (
            search_evaluations(shape, Sizing(), settings, 64, sweeper, share)[1]
            for share in (1.0, 0.5)
        )
        assert (whole - shared >= 0.5 * 64 * least).all()
    default = search_evaluations(shape, Sizing(), settings, 64, sweeper)[1]
    assert default.tolist() == shared.tolist()


def test_the_vocabulary_is_that_of_the_head_not_of_the_tokenizer() -> None:
    model = tiny_llama(vocab_size=500)
    assert len(tiny_tokenizer()) != 500 and shape_of(model).vocabulary == 500
