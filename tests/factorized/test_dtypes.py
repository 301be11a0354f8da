"""Every matrix shape of SmolLM2-135M computes right numbers in every dtype, on memory full of NaN.

A kernel that adds to memory which it has not written keeps a NaN that happens to be there. With
deterministic algorithms torch fills new memory with NaN, so such a kernel shows itself.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from models import tiny_llama, tiny_tokenizer
from sieved import logits, tokens
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

import sieve
from sieve.factorized.modeling_layers import FactorizedLinear, factorize
from sieve.model.backbone import place

WIDTH, KEYS, FFN = 576, 192, 1536
SHAPES = {  # (d_in, d_out)
    "q_proj": (WIDTH, WIDTH),
    "k_proj": (WIDTH, KEYS),
    "v_proj": (WIDTH, KEYS),
    "o_proj": (WIDTH, WIDTH),
    "gate_proj": (WIDTH, FFN),
    "up_proj": (WIDTH, FFN),
    "down_proj": (FFN, WIDTH),
}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
INPUTS = ((1,), (1, 1), (2, 30))  # one token, one token in decoding, many tokens


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Fill all memory that torch allocates with NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(before)


def fill(module: nn.Module, seed: int = 0) -> None:
    """Give the factors random weights of a size that keeps activations near 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in module.modules():
            if not isinstance(layer, FactorizedLinear):
                continue
            for parameter in layer.parameters():
                fan_in = max(1, parameter.shape[-1])
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
            if layer.order is not None:
                size = len(layer.order)
                layer.order.copy_(torch.randperm(size, generator=generator))


def ranks(name: str) -> list[int]:
    """Rank 0, ranks on both sides of a third of the outputs, and full rank."""
    return [0, 1, 48, 150, min(SHAPES[name])]


def layers_of(name: str, biases: Sequence[bool] = (False, True)) -> list[FactorizedLinear]:
    """A layer of every rank and storage form, with and without a bias, in float32."""
    layers = [
        FactorizedLinear(*SHAPES[name], rank, bias, pivoted)
        for rank in ranks(name)
        for bias in biases
        for pivoted in ((False, True) if rank else (False,))
    ]
    fill(nn.ModuleList(layers))
    return layers


def reference(layer: FactorizedLinear, x: Tensor, magnitudes: bool = False) -> Tensor:
    """The map of a layer in float64, from its rounded weights.

    magnitudes: of the absolute values of the input and of all weights. Times the resolution of a
    dtype, this bounds by how much rounding may change an output.
    """

    def exact(tensor: Tensor | None) -> Tensor | None:
        double = None if tensor is None else tensor.double()
        if double is None or not magnitudes:
            return double
        return torch.where(double < 0, -double, double)  # Its gradient at 0 is 1, unlike `abs`.

    pivots, y = layer.factor_in, layer.factor_out
    pivots = nn.functional.linear(exact(x), exact(pivots.weight), exact(pivots.bias))
    y = nn.functional.linear(pivots, exact(y.weight), exact(y.bias))
    return y if layer.order is None else torch.cat([pivots, y], -1)[..., layer.order.long()]


def assert_right(y: Tensor, expected: Tensor, magnitudes: Tensor, label: str) -> None:
    """The numbers are finite and differ from the reference by rounding alone."""
    assert torch.isfinite(y).all(), f"{label}: {int((~torch.isfinite(y)).sum())} are not finite"
    errors = (y.double() - expected).abs() / (magnitudes.abs() + 1e-6)
    assert errors.max() <= 4 * torch.finfo(y.dtype).eps, f"{label}: {errors.max():.3g}"


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_new_memory_is_full_of_nan() -> None:
    for dtype in DTYPES:
        assert torch.empty(7, dtype=dtype).isnan().all()
        assert inputs(3, 4).to(dtype).new_empty(2, 3).isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_and_rank_is_right_with_and_without_gradients(
    name: str, dtype: torch.dtype
) -> None:
    for layer in layers_of(name):
        layer.to(dtype)
        for shape in INPUTS:
            x = inputs(*shape, SHAPES[name][0]).to(dtype)
            label = f"{name} {layer} {tuple(shape)}"
            expected = reference(layer, x), reference(layer, x, magnitudes=True)
            with torch.inference_mode():
                assert_right(layer(x), *expected, label)
            assert_right(layer(x), *expected, f"{label} with gradients")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["k_proj", "down_proj"])
def test_every_gradient_is_right(name: str, dtype: torch.dtype) -> None:
    for layer in layers_of(name):
        layer.to(dtype)
        for shape in INPUTS:
            x = inputs(*shape, SHAPES[name][0]).to(dtype).requires_grad_()
            used = [x, *(p for p in layer.parameters() if p.numel())]
            y, expected, magnitudes = (
                torch.autograd.grad(outputs.sum(), used, allow_unused=True)
                for outputs in (layer(x), reference(layer, x), reference(layer, x, magnitudes=True))
            )
            for number, gradients in enumerate(zip(y, expected, magnitudes, strict=True)):
                if gradients[0] is not None:  # Rank 0 does not read its input.
                    assert_right(*gradients, f"{layer} {shape} {number}")


class Concatenated(nn.Module):
    """The outputs of several layers on inputs of their widths, one after another."""

    def __init__(self, layers: list[FactorizedLinear]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, narrow: Tensor, wide: Tensor) -> list[Tensor]:
        return [
            layer(wide if layer.factor_in.in_features == FFN else narrow) for layer in self.layers
        ]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(("dtype", "half"), [(torch.float32, 0), (torch.bfloat16, 1)], ids=str)
def test_every_shape_and_rank_is_right_when_compiled(dtype: torch.dtype, half: int) -> None:
    # Compiling takes a third of a second a layer, so each dtype takes every other one.
    names = ("q_proj", "k_proj", "gate_proj", "down_proj")
    layers = [layer for name in names for layer in layers_of(name, [True])]
    module = Concatenated(layers[half::2]).to(dtype)
    compiled = torch.compile(module)
    for shape in ((1, 1), (2, 30)):
        narrow, wide = (inputs(*shape, width).to(dtype) for width in (WIDTH, FFN))
        with torch.no_grad():
            outputs = compiled(narrow, wide)
        for layer, y in zip(module.layers, outputs, strict=True):
            x = wide if layer.factor_in.in_features == FFN else narrow
            assert_right(y, reference(layer, x), reference(layer, x, True), f"{layer} {shape}")


def smollm2_shaped(storage: str) -> PreTrainedModel:
    """A random Llama with the widths of SmolLM2-135M and factors of all ranks."""
    model = tiny_llama(
        hidden_size=WIDTH,
        intermediate_size=FFN,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    paths = [path for path, _ in model.named_modules() if path.endswith("_proj")]
    chosen = {path: ranks(path.split(".")[-1])[i % 5] for i, path in enumerate(paths)}
    pivoted = [path for path, rank in chosen.items() if rank and storage == "pivoted"]
    factorize(model, chosen, paths[::2], pivoted)
    fill(model)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("storage", ["plain", "pivoted"])
def test_transformers_loads_an_export_in_its_own_dtype_with_the_numbers_in_memory(
    storage: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = smollm2_shaped(storage)
    place(model, None, dtype)
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "export")
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    assert loaded.dtype == dtype
    for ids in (tokens(1, 1), tokens(3, 20)):
        expected = logits(model, ids)
        assert torch.isfinite(expected).all()
        tolerance = 4 * torch.finfo(dtype).eps * float(expected.abs().max())
        torch.testing.assert_close(logits(loaded, ids), expected, rtol=0, atol=tolerance)
