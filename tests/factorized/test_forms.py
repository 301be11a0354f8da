"""Every form a pivoted layer computes in is the same map, and none outlives its weights."""

import copy
from collections.abc import Callable

import pytest
import torch
from models import tiny_llama
from sieved import banked, logits, mixed
from torch import Tensor, nn

import sieve
from sieve.factorized import modeling_layers
from sieve.factorized.modeling_layers import FactorizedLinear, SharedLinear

FORMS = ("ordered", "buffered", "unfolded", "kept", "merged")


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
    """Pivots, mixtures and their order, in float64, from the weights as they are now."""
    inner, outer = layer.factor_in, layer.factor_out
    pivots = x.double() @ inner.weight.double().T
    pivots = pivots if inner.bias is None else pivots + inner.bias.double()
    mixtures = pivots @ outer.weight.double().T
    mixtures = mixtures if outer.bias is None else mixtures + outer.bias.double()
    return torch.cat([pivots, mixtures], -1)[..., layer.order.long()]


def close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-4)


def force(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.setattr(modeling_layers, "_quickest", lambda *_: form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rank", [1, 7, 24])
def test_every_form_is_the_same_map(monkeypatch, form: str, bias: bool, rank: int) -> None:
    force(monkeypatch, form)
    layer = layer_of(rank, bias)
    for shape in ((24,), (1, 1, 24), (3, 5, 24), (2, 300, 24), (0, 24)):
        x = inputs(*shape)
        with torch.no_grad():
            for _ in range(2):  # The second time from what was kept.
                got = layer(x)
                assert got.shape == (*shape[:-1], 40)
                close(got, reference(layer, x))
    assert bool(layer._kept) == (form in ("kept", "merged"))


@pytest.mark.parametrize("form", FORMS)
def test_a_layer_of_full_rank_has_no_mixtures(monkeypatch, form: str) -> None:
    force(monkeypatch, form)
    layer, x = layer_of(24, True, d_out=24), inputs(4, 24)
    with torch.no_grad():
        close(layer(x), reference(layer, x))
        close(layer(x), reference(layer, x))


@pytest.mark.parametrize("bias", [False, True])
def test_rank_zero_is_the_bias_in_memory_of_its_own(bias: bool) -> None:
    layer = FactorizedLinear(24, 40, 0, bias)
    with torch.no_grad():
        out = layer(inputs(2, 3, 24))
    wanted = layer.factor_out.bias if bias else torch.zeros(40)
    assert torch.equal(out, wanted.expand(2, 3, 40)) and out.is_contiguous()


def test_all_parameters_of_rank_zero_get_gradients() -> None:
    layer = FactorizedLinear(24, 40, 0, True)
    layer(inputs(2, 3, 24)).sum().backward()
    assert torch.equal(layer.factor_out.bias.grad, torch.full((40,), 6.0))
    assert all(parameter.grad is not None for parameter in layer.parameters())


@pytest.mark.parametrize(("tokens", "d"), [(1, 256), (32, 256), (1024, 256), (8, 768), (1024, 768)])
@pytest.mark.parametrize("keeps", [False, True])
def test_the_form_that_is_chosen_is_known_and_one_product_at_high_ranks(
    tokens: int, d: int, keeps: bool
) -> None:
    forms = [modeling_layers._quickest(tokens, d, d, rank, True, keeps) for rank in range(1, d + 1)]
    assert set(forms) <= set(FORMS)
    assert (forms[-1] == "merged") == keeps
    assert ("merged" in forms[: d // 4]) == (keeps and tokens * d <= 256)


@pytest.mark.parametrize("tokens", [1, 40, 600])
def test_gradients_are_those_of_the_reference(tokens: int) -> None:
    layer, x = layer_of(5, True), inputs(tokens, 24).requires_grad_()
    with torch.no_grad():
        layer(x)  # What is kept has no part in training.
    names, parameters = zip(*layer.named_parameters(), strict=True)
    weights = inputs(tokens, 40)
    got = torch.autograd.grad((layer(x) * weights).sum(), (x, *parameters))
    wanted = torch.autograd.grad((reference(layer, x) * weights).sum(), (x, *parameters))
    for name, ours, theirs in zip(("x", *names), got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3, msg=name)


def _edit(layer: FactorizedLinear, name: str) -> Tensor:
    return layer.get_submodule(name).weight


def _load(layer: FactorizedLinear) -> None:
    layer.load_state_dict({k: v.clone().flip(0) for k, v in layer.state_dict().items()})


def _assign(layer: FactorizedLinear) -> None:
    state = {k: v.clone().flip(0) for k, v in layer.state_dict().items()}
    layer.load_state_dict(state, assign=True)


def _replace(layer: FactorizedLinear) -> None:
    layer.factor_in = nn.Linear(24, 7).requires_grad_(False)


CHANGES: dict[str, Callable[[FactorizedLinear], object]] = {
    "in place": lambda layer: _edit(layer, "factor_in").mul_(2),
    "one number": lambda layer: _edit(layer, "factor_out")[-1, -1].add_(3),
    "new data": lambda layer: setattr(
        layer.factor_in.weight, "data", layer.factor_in.weight.data.clone() * 2
    ),
    "a new parameter": lambda layer: setattr(
        layer.factor_in, "weight", nn.Parameter(layer.factor_in.weight * 3)
    ),
    "a new bias": lambda layer: setattr(layer.factor_in, "bias", nn.Parameter(torch.ones(7))),
    "another order": lambda layer: setattr(layer, "order", layer.order.flip(0)),
    "the order in place": lambda layer: layer.order.copy_(layer.order.flip(0)),
    "another factor": _replace,
    "a state": _load,
    "an assigned state": _assign,
}  # fmt: skip


@pytest.mark.parametrize("form", ["kept", "merged"])
@pytest.mark.parametrize("change", CHANGES)
def test_nothing_kept_outlives_a_change(monkeypatch, form: str, change: str) -> None:
    force(monkeypatch, form)
    layer, x = layer_of(7, True), inputs(3, 24)
    with torch.no_grad():
        before = layer(x)
        CHANGES[change](layer)
        assert not torch.allclose(layer(x), before)
        close(layer(x), reference(layer, x))


def test_forms_for_a_prompt_and_for_its_answer_are_both_kept(monkeypatch) -> None:
    layer, prompt, token = layer_of(7, True), inputs(30, 24), inputs(1, 24)
    with torch.no_grad():
        for form, x in (("kept", prompt), ("merged", token)):
            force(monkeypatch, form)
            close(layer(x), reference(layer, x))
        held = dict(layer._kept)
        assert {kept.form for kept in held.values()} == {"kept", "merged"}
        for x in (prompt, token):
            close(layer(x), reference(layer, x))
        assert layer._kept == held
        layer.factor_out.weight.mul_(2)
        close(layer(token), reference(layer, token))
        assert len(layer._kept) == 1


def test_what_is_kept_is_no_state_and_no_part_of_a_copy(monkeypatch) -> None:
    force(monkeypatch, "merged")
    layer, x = layer_of(7, True), inputs(3, 24)
    keys = list(layer.state_dict())
    with torch.no_grad():
        wanted = layer(x)
        assert layer._kept and list(layer.state_dict()) == keys
        twin = copy.deepcopy(layer)
        assert not twin._kept and torch.equal(twin(x), wanted)
        twin.factor_in.weight.zero_()
        assert torch.equal(layer(x), wanted) and not torch.equal(twin(x), wanted)
        assert layer.double()(x.double()).dtype == torch.float64


def test_a_hook_is_called_after_something_was_kept(monkeypatch) -> None:
    layer, x, called = layer_of(20, False), inputs(1, 24), []
    with torch.no_grad():
        layer(x)
        assert layer._kept
        layer.factor_in.register_forward_pre_hook(lambda *_: called.append("in"))
        layer.factor_out.register_forward_hook(lambda *_: called.append("out"))
        close(layer(x), reference(layer, x))
    assert called == ["in", "out"]


def test_a_factor_whose_forward_was_replaced_is_called() -> None:
    layer, called = layer_of(20, False), []
    forward = layer.factor_out.forward
    layer.factor_out.forward = lambda x: called.append(1) or forward(x)
    with torch.no_grad():
        for tokens in (1, 400):
            layer(inputs(tokens, 24))
    assert called == [1, 1]


def test_autocast_and_tensors_made_in_inference_mode_keep_nothing() -> None:
    x = inputs(1, 24)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        layer = layer_of(20, False)
        assert layer(x).dtype == torch.bfloat16 and not layer._kept
    with torch.inference_mode():
        layer = layer_of(20, False)
        layer(x)
        layer.factor_in.weight[-1, -1] += 3
        close(layer(x), reference(layer, x))
        assert not layer._kept


def test_siblings_share_one_product_in_every_mode() -> None:
    layers = [layer_of(6, True) for _ in range(2)]
    shared = SharedLinear(24, 6, True, readers=2)
    for layer in layers:
        layer.factor_in = shared
    for tokens in (1, 500):
        x = inputs(tokens, 24)
        with torch.no_grad():
            for layer in layers:
                close(layer(x), reference(layer, x))
                assert not layer._kept
        assert shared._last is None


# PEFT asks transformers for a name that it calls deprecated.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_a_merge_of_peft_is_seen() -> None:
    peft = pytest.importorskip("peft")
    model = tiny_llama()
    bank = banked(model, storage="pivoted")
    sieve.apply(model, bank, mixed(bank, (0.6, 0.3)))
    before = logits(model)
    assert any(getattr(layer, "_kept", None) for layer in model.modules())
    wrapped = peft.get_peft_model(
        model, peft.LoraConfig(target_modules=r".*\.factor_out", init_lora_weights=False, r=2)
    ).eval()
    adapted = logits(wrapped)
    merged = logits(wrapped.merge_and_unload())
    assert not torch.allclose(adapted, before, atol=1e-3)
    torch.testing.assert_close(merged, adapted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("shared", [False, True])
def test_a_compiled_graph_does_the_same(shared: bool) -> None:
    layer = layer_of(7, True)
    if shared:
        layer.factor_in = SharedLinear(24, 7, True, readers=2)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    with torch.no_grad():
        for tokens in (1, 3, 500):
            x = inputs(tokens, 24)
            close(compiled(x), reference(layer, x))


def test_it_exports_with_open_sizes() -> None:
    layer = layer_of(7, True)
    shapes = {"x": {0: torch.export.Dim("tokens", min=1, max=4096)}}
    program = torch.export.export(layer, (inputs(8, 24),), dynamic_shapes=shapes)
    x = inputs(700, 24)
    close(program.module()(x), reference(layer, x))
