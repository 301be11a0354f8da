"""A pivoted layer computes the same map for few and for many tokens, whatever its factors are."""

import copy
from collections.abc import Callable

import pytest
import torch
from models import tiny_llama
from sieved import banked, logits, mixed
from torch import Tensor, nn

import sieve
from sieve.factorized.modeling_layers import FactorizedLinear, SharedLinear, share_factor_in

FEW, MANY = 3, 60  # tokens: the outputs are put in order for few, the weight for many
RANKS = (1, 7, 13, 24)  # the weight is put in order up to rank 13, a third of the outputs


def layer_of(rank: int, bias: bool, d_in: int = 24, d_out: int = 40) -> FactorizedLinear:
    """A random pivoted layer in evaluation mode."""
    layer = FactorizedLinear(d_in, d_out, rank, bias, pivoted=True).eval()
    generator = torch.Generator().manual_seed(rank)
    layer.order = torch.randperm(d_out, generator=generator).int()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def reference(layer: FactorizedLinear, x: Tensor) -> Tensor:
    """Pivots, mixtures and their order, in float64, from the weights of the layer."""
    inner, outer = layer.factor_in, layer.factor_out
    pivots = x.double() @ inner.weight.double().T
    pivots = pivots if inner.bias is None else pivots + inner.bias.double()
    mixtures = pivots @ outer.weight.double().T
    mixtures = mixtures if outer.bias is None else mixtures + outer.bias.double()
    return torch.cat([pivots, mixtures], -1)[..., layer.order.long()]


def assert_close(outputs: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(outputs.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rank", RANKS)
def test_every_shape_of_input_gets_the_same_map(bias: bool, rank: int) -> None:
    layer = layer_of(rank, bias)
    for shape in ((24,), (1, 1, 24), (FEW, 5, 24), (2, 300, 24), (0, 24)):
        x = inputs(*shape)
        with torch.no_grad():
            outputs = layer(x)
        assert outputs.shape == (*shape[:-1], 40)
        assert_close(outputs, reference(layer, x))


def test_the_weight_is_put_in_order_for_many_tokens_at_a_small_rank(monkeypatch) -> None:
    counted = []
    unfolded = FactorizedLinear.unfolded
    monkeypatch.setattr(
        FactorizedLinear, "unfolded", lambda layer: counted.append(layer) or unfolded(layer)
    )
    small, large = layer_of(13, True), layer_of(14, True)
    for tokens in (FEW, 32, 33, MANY):
        small(inputs(tokens, 24))
        large(inputs(tokens, 24))
    assert counted == [small, small]


def test_a_layer_of_full_rank_has_no_mixtures() -> None:
    layer = layer_of(24, True, d_out=24)
    for tokens in (FEW, MANY):
        assert_close(layer(inputs(tokens, 24)), reference(layer, inputs(tokens, 24)))


@pytest.mark.parametrize("bias", [False, True])
def test_rank_zero_is_the_bias_in_memory_of_its_own(bias: bool) -> None:
    layer = FactorizedLinear(24, 40, 0, bias)
    with torch.no_grad():
        y = layer(inputs(2, 3, 24))
    expected = layer.factor_out.bias if bias else torch.zeros(40)
    assert torch.equal(y, expected.expand(2, 3, 40)) and y.is_contiguous()


def test_all_parameters_of_rank_zero_get_gradients() -> None:
    layer = FactorizedLinear(24, 40, 0, True)
    layer(inputs(2, 3, 24)).sum().backward()
    assert torch.equal(layer.factor_out.bias.grad, torch.full((40,), 6.0))
    assert all(parameter.grad is not None for parameter in layer.parameters())


@pytest.mark.parametrize("tokens", [FEW, MANY])
def test_gradients_are_those_of_the_reference(tokens: int) -> None:
    layer, x = layer_of(5, True), inputs(tokens, 24).requires_grad_()
    names, parameters = zip(*layer.named_parameters(), strict=True)
    weights = inputs(tokens, 40)
    gradients = torch.autograd.grad((layer(x) * weights).sum(), (x, *parameters))
    expected = torch.autograd.grad((reference(layer, x) * weights).sum(), (x, *parameters))
    for name, ours, theirs in zip(("x", *names), gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3, msg=name)


CHANGES: dict[str, Callable[[FactorizedLinear], object]] = {
    "new data": lambda layer: setattr(
        layer.factor_out.weight, "data", layer.factor_out.weight.data.clone() * 2
    ),
    "a new bias": lambda layer: setattr(layer.factor_in, "bias", nn.Parameter(torch.ones(7))),
    "another order": lambda layer: setattr(layer, "order", layer.order.flip(0)),
    "another factor": lambda layer: setattr(layer, "factor_in", nn.Linear(24, 7)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_weights_counts_at_once(change: str) -> None:
    for tokens in (FEW, MANY):
        layer, x = layer_of(7, True), inputs(tokens, 24)
        with torch.no_grad():
            before = layer(x)
            CHANGES[change](layer)
            assert not torch.allclose(layer(x), before)
            assert_close(layer(x), reference(layer, x))


def test_a_copy_has_weights_of_its_own() -> None:
    layer, x = layer_of(7, True), inputs(FEW, 24)
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(x), layer(x))
    twin.factor_in.weight.data.zero_()
    assert not torch.equal(twin(x), layer(x))


def test_factors_that_are_hooked_or_have_another_forward_are_called() -> None:
    layer, called = layer_of(7, False), []
    layer.factor_in.register_forward_pre_hook(lambda *_: called.append("in"))
    handle = layer.factor_out.register_forward_hook(lambda *_: called.append("out"))
    layer(inputs(MANY, 24))
    handle.remove()
    forward = layer.factor_out.forward
    layer.factor_out.forward = lambda x: called.append("forward") or forward(x)
    layer(inputs(MANY, 24))
    layer.factor_out = nn.Sequential(layer.factor_out)
    assert layer(inputs(MANY, 24)).shape == (MANY, 40)
    assert called == ["in", "out", "in", "forward", "in", "forward"]


def test_autocast_computes_in_its_dtype() -> None:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for tokens in (FEW, MANY):
            assert layer_of(7, True)(inputs(tokens, 24)).dtype == torch.bfloat16


def siblings() -> list[FactorizedLinear]:
    """Two layers that share the factor_in of the first."""
    layers = [layer_of(6, True), layer_of(6, True)]
    share_factor_in(*layers)
    return layers


def test_siblings_share_one_product_and_one_module() -> None:
    layers = siblings()
    shared = layers[0].factor_in
    assert isinstance(shared, SharedLinear) and layers[1].factor_in is shared
    assert not any(name.startswith("factor_in") for name in layers[1].state_dict())
    for tokens in (FEW, MANY):
        x = inputs(tokens, 24)
        for layer in layers:
            assert_close(layer(x), reference(layer, x))
        assert shared._last is None


def test_a_replaced_shared_factor_is_replaced_for_all_siblings() -> None:
    layers = siblings()
    layers[0].factor_in = nn.Linear(24, 6)
    assert layers[1].factor_in is layers[0].factor_in
    twins = copy.deepcopy(nn.ModuleList(layers))
    assert twins[1].factor_in is twins[0].factor_in is not layers[0].factor_in


# PEFT asks transformers for a name that it calls deprecated.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapter_of_peft_counts_before_and_after_it_is_merged() -> None:
    peft = pytest.importorskip("peft")
    model = tiny_llama()
    bank = banked(model, storage="pivoted")
    sieve.apply(model, bank, mixed(bank, (0.6, 0.3)))
    before = logits(model)
    wrapped = peft.get_peft_model(
        model, peft.LoraConfig(target_modules=r".*\.factor_out", init_lora_weights=False, r=2)
    ).eval()
    adapted = logits(wrapped)
    merged = logits(wrapped.merge_and_unload())
    assert not torch.allclose(adapted, before, atol=1e-3)
    torch.testing.assert_close(merged, adapted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("shared", [False, True])
def test_a_compiled_graph_does_the_same(shared: bool) -> None:
    layer = siblings()[1] if shared else layer_of(7, True)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    with torch.no_grad():
        for tokens in (1, FEW, MANY):
            x = inputs(tokens, 24)
            assert_close(compiled(x), reference(layer, x))


def test_it_exports_with_open_sizes() -> None:
    layer = layer_of(7, True)
    shapes = {"x": {0: torch.export.Dim("tokens", min=1, max=4096)}}
    program = torch.export.export(layer, (inputs(8, 24),), dynamic_shapes=shapes)
    x = inputs(700, 24)
    assert_close(program.module()(x), reference(layer, x))
