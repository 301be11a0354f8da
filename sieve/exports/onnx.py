"""ONNX: a pruned model as one graph for onnxruntime, in float32 or with 8-bit weights.

The exporter of transformers traces the model. The graph maps token ids, mask, positions and the
keys and values of earlier tokens to logits and all keys and values, under the names that optimum
and onnxruntime-genai use. It scores texts, with no earlier tokens, and writes them. Before tracing,
each matrix gets the form that computes fastest: a product of two matrices, one matrix if that is
smaller, or only a bias. `sieve.exports.onnx_model` runs a graph.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor, nn
from transformers import PreTrainedModel

from sieve.bank.merging import merged
from sieve.exports.genai import write_genai_config
from sieve.exports.onnx_trace import on_cpu, quiet, traced
from sieve.factorized.modeling_layers import FactorizedEmbedding, FactorizedLinear
from sieve.model.matrices import dense_like

NAME = "model.onnx"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
GRAPH_LIMIT = 2**31 - 2**24  # bytes of weights inside a graph; protobuf ends at 2 GiB


def check_packages() -> None:
    """Raise ValueError if a package that ONNX needs is missing."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if find_spec("transformers.exporters") is None:
        missing.append("a newer transformers")
    if missing:
        raise ValueError(
            f"export=onnx needs {missing[0]}; run pip install 'sieve-llm[onnx]', or choose "
            "export=factorized."
        )


def write_onnx(model: PreTrainedModel, folder: Path, int8: bool = False) -> None:
    """Write `model.onnx` into a folder; weights over 2 GiB go to `model.onnx.data` beside it.

    Where its format allows, `genai_config.json` tells onnxruntime-genai how to run the graph.

    The model is traced in float32 on the CPU, and is unchanged afterwards. Raises ValueError if its
    architecture cannot be traced.
    """
    check_packages()
    import onnx_ir

    folder.mkdir(exist_ok=True)
    path = folder / NAME
    with replaced_layers(model) as layers, on_cpu(model):
        for name, layer in layers.items():
            model.set_submodule(name, _fastest_form(layer))
        graph = traced(model)
        weights = (value.const_value for value in graph.graph.initializers.values())
        external = sum(weight.nbytes for weight in weights if weight is not None) > GRAPH_LIMIT
        onnx_ir.save(graph, path, external_data=f"{NAME}.data" if external else None)
        write_genai_config(model, graph, folder, NAME)
    if int8:
        _quantize(path, external)


def graph_bytes(folder: Path) -> int:
    """Bytes of the graph and the weights of an ONNX export."""
    return sum(file.stat().st_size for file in folder.glob(f"{NAME}*"))


class _Constant(nn.Module):
    """A matrix of rank 0: its bias, or zeros, for every token."""

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.bias.expand(*x.shape[:-1], -1)


@contextmanager
def replaced_layers(model: PreTrainedModel) -> Iterator[dict[str, FactorizedLinear]]:
    """Yield the factorized layers by name; put them back when the block ends."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, FactorizedLinear)}
    try:
        yield layers
    finally:
        for name, layer in layers.items():
            model.set_submodule(name, layer)


def _fastest_form(layer: FactorizedLinear) -> nn.Module:
    """Two Linears, one, or a bias: the fewest weights without a permutation."""
    if isinstance(layer, FactorizedEmbedding):
        return layer
    weight, bias = merged(layer)
    d_out, d_in = weight.shape
    inner, outer = layer.factor_in, layer.factor_out
    rank = inner.out_features
    if rank == 0:
        return _Constant(weight.new_zeros(d_out) if bias is None else bias.detach())
    if rank * (d_out + d_in) >= d_out * d_in:
        return dense_like(inner, weight, bias)
    mixing, bias = (outer.weight, outer.bias) if layer.order is None else layer.unfolded()
    return nn.Sequential(
        dense_like(inner, inner.weight, inner.bias), dense_like(outer, mixing, bias)
    )


def _quantize(path: Path, external: bool) -> None:
    """Round weights to 8 bits with a scale per output; activations are quantized as they run.

    The 8 bits have no sign: a processor with AVX2 and without VNNI adds products with signed
    weights in 16 bits, which saturate.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with TemporaryDirectory(dir=path.parent) as folder, quiet():
        small = Path(folder) / NAME
        quantize_dynamic(
            path,
            small,
            weight_type=QuantType.QUInt8,
            per_channel=True,
            use_external_data_format=external,
        )
        for file in small.parent.iterdir():
            file.replace(path.with_name(file.name))
