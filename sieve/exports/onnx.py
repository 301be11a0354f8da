"""ONNX: a pruned model as one graph for onnxruntime, in float32 or with 8-bit weights.

The exporter of transformers traces the model. The graph maps token ids, mask and positions to
logits. It has no key-value cache, so generation computes the whole text again for every token.
Before tracing, each matrix gets the form that computes fastest: a product of two matrices, one
matrix if that is smaller, or only a bias.
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from sieve.bank.switch import merged
from sieve.factorized.modeling_layers import FactorizedEmbedding, FactorizedLinear
from sieve.model.backbone import input_names, place
from sieve.model.matrices import dense_like

if TYPE_CHECKING:
    import onnx_ir
    import onnxruntime

NAME = "model.onnx"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
GRAPH_LIMIT = 2**31 - 2**24  # bytes of weights inside a graph; protobuf ends at 2 GiB
SAMPLE = (2, 8)  # rows and tokens of the batch that is traced
KEEP = "logits_to_keep"


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

    The model is traced in float32 on the CPU, and is unchanged afterwards. Raises ValueError if its
    architecture cannot be traced.
    """
    check_packages()
    import onnx_ir

    folder.mkdir(exist_ok=True)
    path = folder / NAME
    with replaced_layers(model) as layers, _on_cpu(model):
        for name, layer in layers.items():
            model.set_submodule(name, _fastest_form(layer))
        graph = _traced(model)
        weights = (value.const_value for value in graph.graph.initializers.values())
        external = sum(weight.nbytes for weight in weights if weight is not None) > GRAPH_LIMIT
        onnx_ir.save(graph, path, external_data=f"{NAME}.data" if external else None)
    if int8:
        _quantize(path, external)


def graph_bytes(folder: Path) -> int:
    """Bytes of the graph and the weights of an ONNX export."""
    return sum(file.stat().st_size for file in folder.glob(f"{NAME}*"))


def load_onnx(folder: str | Path) -> tuple["OnnxModel", PreTrainedTokenizerBase]:
    """Load the model and the tokenizer of an ONNX export.

    Raises ValueError if onnxruntime or a file is missing, or a file is damaged.
    """
    check_packages()
    folder = Path(folder).expanduser()
    try:
        config = AutoConfig.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the files beside {folder / NAME} could not be read ({_first_line(error)}); export "
            "the model again."
        ) from error
    return OnnxModel(folder / NAME, config), tokenizer


class OnnxModel(nn.Module):
    """A graph in onnxruntime, called like the model it was traced from; no gradients, no cache."""

    def __init__(self, path: Path, config: PreTrainedConfig) -> None:
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self.session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # The errors of onnxruntime have no common base class.
            raise ValueError(
                f"{path} is damaged or incomplete ({_first_line(error)}); export the model again."
            ) from error
        self.config, self.device, self.dtype = config, torch.device("cpu"), torch.float32
        self.names = [value.name for value in self.session.get_inputs()]
        _check_graph(path, self.session, config.get_text_config().vocab_size)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        logits_to_keep: int = 0,
        use_cache: bool | None = None,
    ) -> CausalLMOutput:
        """Logits (B, keep, V) float32 of the last `logits_to_keep` positions; 0 means all."""
        length = input_ids.shape[1]
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if position_ids is None:
            position_ids = (mask.cumsum(1) - 1).clamp(min=0)
        start = length - min(logits_to_keep or length, length)
        inputs = {
            "input_ids": input_ids,
            "attention_mask": mask,
            "position_ids": position_ids,
            KEEP: torch.arange(start, length),
        }
        feed = {name: inputs[name].cpu().numpy() for name in self.names}
        logits = torch.from_numpy(self.session.run(None, feed)[0])
        return CausalLMOutput(logits=logits if KEEP in self.names else logits[:, start:])


def _check_graph(path: Path, session: "onnxruntime.InferenceSession", vocab_size: int) -> None:
    """Raise ValueError unless a graph computes logits over a vocabulary of this size."""
    inputs = {value.name for value in session.get_inputs()}
    sizes = [value.shape[-1] for value in session.get_outputs() if value.name == "logits"]
    if "input_ids" not in inputs or sizes != [vocab_size]:
        raise ValueError(
            f"{path} does not map input_ids to logits of the {vocab_size:,} tokens of config.json "
            "beside it, so they belong to different models; export the model again."
        )


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


@contextmanager
def _on_cpu(model: PreTrainedModel) -> Iterator[None]:
    """Put the model on the CPU in float32, without a cache, for the duration of the block."""
    device, dtype = model.device, model.dtype
    caches = getattr(model.config, "use_cache", False)
    place(model, torch.device("cpu"), torch.float32)
    if caches:
        model.config.use_cache = False
    try:
        yield
    finally:
        if caches:
            model.config.use_cache = True
        place(model, device, dtype)


def _traced(model: PreTrainedModel) -> "onnx_ir.Model":
    """The graph of a model, without records of the machine that traced it.

    Tracing notes the code that it ran, with paths of this machine.
    """
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass
    from transformers.exporters import OnnxConfig, OnnxExporter

    inputs = _sample(model)
    dynamic = torch.export.Dim.AUTO
    shapes = {name: dict.fromkeys(range(x.ndim), dynamic) for name, x in inputs.items()}
    try:
        with _quiet(), contextlib.redirect_stdout(None):
            config = OnnxConfig(dynamic_shapes=shapes)
            graph: onnx_ir.Model = OnnxExporter().export(model, {**inputs}, config).program
    except Exception as error:  # Tracing runs the code of the model, which may raise anything.
        raise ValueError(
            f"{type(model).__name__} cannot be exported to ONNX ({_first_line(error)}); choose "
            "export=factorized or export=dense."
        ) from error
    ClearMetadataAndDocStringPass()(graph)
    values = (*graph.graph.inputs, *graph.graph.outputs, *graph.graph.initializers.values())
    for value in values:
        value.metadata_props.clear()
    return graph


def _sample(model: PreTrainedModel) -> dict[str, Tensor]:
    """The inputs to trace with: the possible inputs that the model accepts."""
    rows, length = SAMPLE
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.arange(rows * length).reshape(rows, length) % vocabulary
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "position_ids": torch.arange(length).expand(rows, -1).contiguous(),
        KEEP: torch.arange(length // 2, length),
    }
    names = input_names(model)
    return {name: value for name, value in inputs.items() if name in names}


def _quantize(path: Path, external: bool) -> None:
    """Round weights to 8 bits with a scale per output; activations are quantized as they run."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with TemporaryDirectory(dir=path.parent) as folder, _quiet():
        small = Path(folder) / NAME
        quantize_dynamic(
            path,
            small,
            weight_type=QuantType.QInt8,
            per_channel=True,
            use_external_data_format=external,
        )
        for file in small.parent.iterdir():
            file.replace(path.with_name(file.name))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings for the block, of which users can act on none."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
