"""Pivoted factors are the same map in fewer numbers, well conditioned, and stay so when stored."""

import pytest
import torch
from models import tiny_gpt2, tiny_llama, tiny_tokenizer
from sieved import banked, logits, mixed, uniform
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM

import sieve
from sieve.bank.merging import merge_dense
from sieve.bank.pivoting import BOUND, Pivoted, pivot
from sieve.bank.switch import Switch
from sieve.factorized.modeling_layers import FactorizedLinear


def rebuilt(pivoted: Pivoted) -> Tensor:
    """The dense matrix (d_out, d_in) that pivoted factors stand for."""
    rows = pivoted.rows.double()
    return torch.cat([rows, pivoted.mix.double() @ rows])[pivoted.order]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kahan(n: int) -> Tensor:
    """Rows that mislead a pivoted QR: T grows with n."""
    s, c = 0.6, 0.8
    upper = torch.eye(n, dtype=torch.float64) - c * torch.triu(torch.ones(n, n), 1).double()
    return torch.diag(s ** torch.arange(n).double()) @ upper


def wilkinson(n: int) -> Tensor:
    """Rows that mislead LU with row pivoting: T grows like 1.9 to the power of n."""
    lower = torch.eye(n, dtype=torch.float64) - 0.9 * torch.ones(n, n).double().tril(-1)
    lower[:, -1] = 1
    return torch.cat([lower, -torch.ones(3, n, dtype=torch.float64)])


BASES = {
    "random": draw(40, 12),
    "tall": draw(200, 3),
    "graded": draw(40, 12) * torch.logspace(0, -9, 12, dtype=torch.float64),
    "kahan": torch.cat([kahan(20), draw(5, 20) * 1e-3]).T.contiguous().T,
    "wilkinson": wilkinson(100),
    "repeated rows": draw(10, 6).repeat(4, 1),
    "small rows": torch.cat([draw(6, 6), 1e-8 * draw(30, 6)]),
}


@pytest.mark.parametrize("name", BASES)
def test_the_map_is_the_same_and_no_mixture_exceeds_the_bound(name: str) -> None:
    u = BASES[name]
    v = draw(u.shape[1], 17, seed=1)
    pivoted = pivot(u, v)
    assert sorted(pivoted.order.tolist()) == list(range(len(u)))
    assert pivoted.rows.shape == v.shape
    assert pivoted.mix.shape == (len(u) - u.shape[1], u.shape[1])
    assert not pivoted.mix.numel() or float(pivoted.mix.abs().max()) <= BOUND
    product = u @ v
    assert float((rebuilt(pivoted) - product).abs().max()) <= 1e-9 * float(product.abs().max())


def test_factors_that_are_not_of_full_rank_are_exact_too() -> None:
    u = draw(20, 3) @ draw(3, 6, seed=1)
    v = draw(6, 9, seed=2)
    torch.testing.assert_close(rebuilt(pivot(u, v)), u @ v, rtol=0, atol=1e-9)


def test_columns_of_very_different_lengths_are_exact() -> None:
    lengths = torch.logspace(0, -20, 12, dtype=torch.float64)
    u, v = draw(40, 12), draw(12, 17, seed=1)
    pivoted = pivot(u * lengths, v / lengths[:, None])
    torch.testing.assert_close(rebuilt(pivoted), u @ v, rtol=0, atol=1e-9)


class LargestTensor(TorchDispatchMode):
    """The most numbers in a tensor that any operation returned."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.numbers = max([self.numbers, *sizes])
        return result


def test_no_step_takes_more_memory_than_a_factor() -> None:
    with LargestTensor() as largest:
        pivot(draw(300, 5), draw(5, 300))
    assert largest.numbers == 300 * 5


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_factors_that_are_not_finite_are_refused(value: float) -> None:
    u = draw(20, 4)
    u[3, 1] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        pivot(u, draw(4, 5))


def test_a_bias_goes_through_the_mixture() -> None:
    u, v, bias, x = draw(15, 4), draw(4, 8, seed=1), draw(15, seed=2), draw(5, 8, seed=3)
    pivoted = pivot(u, v, bias)
    inner = x @ pivoted.rows.T + pivoted.row_bias
    outer = inner @ pivoted.mix.T + pivoted.mix_bias
    torch.testing.assert_close(torch.cat([inner, outer], 1)[:, pivoted.order], x @ v.T @ u.T + bias)


@pytest.mark.parametrize("kind", ["float16", "int8"])
@pytest.mark.parametrize("rank", [4, 24, 60])
def test_rounding_costs_it_little_more_than_plain_factors(kind: str, rank: int) -> None:
    u, v, x = torch.linalg.qr(draw(96, rank)).Q, draw(rank, 64, seed=1), draw(500, 64, seed=2)
    pivoted = pivot(u, v)

    def rounded(w: Tensor) -> Tensor:
        if kind == "float16":
            return w.half().double()
        scale = w.abs().amax(1, keepdim=True) / 127
        return (w / scale).round() * scale

    exact = x @ (u @ v).T
    plain = x @ rounded(v).T @ rounded(u).T
    inner = x @ rounded(pivoted.rows).T
    ours = torch.cat([inner, inner @ rounded(pivoted.mix).T], 1)[:, pivoted.order]
    assert float((ours - exact).norm()) <= 2 * float((plain - exact).norm())


@pytest.mark.parametrize("projection", ["output", "affine", "loss_aware"])
@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
def test_what_is_stored_computes_what_the_slices_do(build, projection: str) -> None:
    model = build().double()
    bank = banked(model, projection, storage="pivoted")
    genome = mixed(bank)
    with Switch(model, bank, as_stored=False).to(genome):
        quick = logits(model)
    with Switch(model, bank).to(genome):
        layers = [model.get_submodule(n) for n, r in bank.ranks(genome).items() if r]
        assert layers and all(layer.order is not None for layer in layers)
        torch.testing.assert_close(logits(model), quick, rtol=0, atol=1e-8)


def test_a_pivoted_layer_holds_what_its_storage_form_says() -> None:
    model = tiny_llama()
    bank = banked(model, storage="pivoted")
    genome = mixed(bank)
    sieve.apply(model, bank, genome)
    held = 0
    for name in bank.names:
        layer = model.get_submodule(name)
        held += sum(parameter.numel() for parameter in layer.parameters())
    assert held == bank.kept_parameters(genome)


def test_level_one_is_the_dense_module_itself() -> None:
    model = tiny_llama()
    bank = banked(model, storage="pivoted")
    dense = {name: model.get_submodule(name) for name in bank.names}
    Switch(model, bank).to(uniform(bank, 0.6)).to(uniform(bank, 1.0))
    assert all(model.get_submodule(name) is layer for name, layer in dense.items())


@pytest.mark.parametrize(("build", "projection"), [(tiny_llama, "output"), (tiny_gpt2, "affine")])
def test_an_export_loads_and_computes_the_same(build, projection: str, tmp_path) -> None:
    model = build()
    bank = banked(model, projection, storage="pivoted")
    switch = sieve.apply(model, bank, mixed(bank))
    wanted = logits(model)
    sieve.export(model, tiny_tokenizer(), tmp_path / "small")
    switch.restore()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "small").eval()
    assert any(getattr(m, "order", None) is not None for m in loaded.modules())
    torch.testing.assert_close(logits(loaded), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("build", "projection"), [(tiny_llama, "output"), (tiny_gpt2, "affine")])
def test_merging_gives_one_dense_layer_that_does_the_same(build, projection: str) -> None:
    model = build().double()
    bank = banked(model, projection, storage="pivoted")
    sieve.apply(model, bank, uniform(bank, 0.6))
    wanted = logits(model)
    merge_dense(model)
    assert not any(isinstance(module, FactorizedLinear) for module in model.modules())
    torch.testing.assert_close(logits(model), wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("bias", [False, True])
def test_many_tokens_and_few_give_the_same_outputs(bias: bool) -> None:
    layer = FactorizedLinear(12, 20, 5, bias, pivoted=True).double().eval()
    layer.order = torch.randperm(20, generator=torch.Generator().manual_seed(0)).int()
    x = draw(3, 7, 12)
    inner = layer.factor_in(x)
    wanted = torch.cat([inner, layer.factor_out(inner)], -1)[..., layer.order.long()]
    torch.testing.assert_close(layer(x), wanted)
    torch.testing.assert_close(layer(x[:1, :5]), wanted[:1, :5])


def test_a_wrapped_or_hooked_factor_is_called() -> None:
    layer = FactorizedLinear(12, 20, 5, False, pivoted=True).eval()
    called: list[int] = []
    handle = layer.factor_out.register_forward_hook(lambda *_: called.append(1))
    layer(torch.zeros(40, 12))
    handle.remove()
    layer.factor_out = torch.nn.Sequential(layer.factor_out)
    assert called and layer(torch.zeros(40, 12)).shape == (40, 20)
