"""ONNX: a pruned model as one graph for onnxruntime, in float32 or with weights in 8 bits.

transformers' own exporter traces it. The graph scores: token ids, mask and positions in, logits
out; it holds no key-value cache, so generation with it computes every prompt anew. Before tracing,
each matrix gets the form that computes quickest: a product of two matrices, one where that is
smaller, or a bias alone.
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from sieve.bank.switch import merged
from sieve.factorized.modeling_layers import FactorizedLinear
from sieve.model.backbone import input_names, place

NAME = "model.onnx"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
GRAPH_LIMIT = 2**31 - 2**24  # bytes of weights that a graph can hold: protobuf ends at 2 GiB
SAMPLE = (2, 8)  # rows and tokens of the batch that is traced
KEEP = "logits_to_keep"


def check_packages() -> None:
    """ValueError in one sentence where a package is missing."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if find_spec("transformers.exporters") is None:
        missing.append("a newer transformers")
    if missing:
        raise ValueError(
            f"export=onnx needs {missing[0]}; pip install 'sieve-llm[onnx]', or choose "
            "export=factorized."
        )


def write_onnx(model: PreTrainedModel, folder: Path, int8: bool = False) -> None:
    """Write `model.onnx` into a folder; from 2 GiB its weights stand beside it, else inside.

    The model is traced in float32 on a CPU and left as it was. Raises ValueError in one sentence
    where its architecture cannot be traced.
    """
    check_packages()
    import onnx_ir

    folder.mkdir(exist_ok=True)
    path = folder / NAME
    with _quickest(model), _on_cpu(model):
        program = _traced(model)
        weights = (value.const_value for value in program.graph.initializers.values())
        beside = sum(weight.nbytes for weight in weights) > GRAPH_LIMIT
        onnx_ir.save(program, path, external_data=f"{NAME}.data" if beside else None)
    if int8:
        _quantize(path, beside)


def graph_bytes(folder: Path) -> int:
    """Bytes of an ONNX export's graph and weights."""
    return sum(file.stat().st_size for file in folder.glob(f"{NAME}*"))


def load_onnx(folder: str | Path) -> tuple["OnnxModel", PreTrainedTokenizerBase]:
    """Model and tokenizer of an ONNX export.

    Raises ValueError in one sentence where onnxruntime or a file is missing, or one is damaged.
    """
    check_packages()
    folder = Path(folder).expanduser()
    try:
        config, tokenizer = (
            AutoConfig.from_pretrained(folder),
            AutoTokenizer.from_pretrained(folder),
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the files beside {folder / NAME} could not be read ({_first_line(error)}); export "
            "the model again."
        ) from error
    return OnnxModel(folder / NAME, config), tokenizer


class OnnxModel(nn.Module):
    """A graph under onnxruntime, called as the model that it was; without gradients or a cache."""

    def __init__(self, path: Path, config: Any) -> None:
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self.session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # Its errors have no class of their own in common.
            raise ValueError(
                f"{path} is damaged or not all there ({_first_line(error)}); export the model "
                "again."
            ) from error
        self.config, self.device, self.dtype = config, torch.device("cpu"), torch.float32
        self.names = [value.name for value in self.session.get_inputs()]
        _check_belongs(path, self.session, config.get_text_config().vocab_size)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        logits_to_keep: int = 0,
        use_cache: bool | None = None,
    ) -> CausalLMOutput:
        """Logits (B, keep, V) float32 of the last `logits_to_keep` positions, of all for 0."""
        length = input_ids.shape[1]
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if position_ids is None:
            position_ids = (mask.cumsum(1) - 1).clamp(min=0)
        start = length - min(logits_to_keep or length, length)
        given = {
            "input_ids": input_ids, "attention_mask": mask, "position_ids": position_ids,
            KEEP: torch.arange(start, length),
        }  # fmt: skip
        feed = {name: given[name].cpu().numpy() for name in self.names}
        logits = torch.from_numpy(self.session.run(None, feed)[0])
        return CausalLMOutput(logits=logits if KEEP in self.names else logits[:, start:])


def _check_belongs(path: Path, session: Any, vocab_size: int) -> None:
    """ValueError unless a graph makes logits over the vocabulary of the configuration beside it."""
    logits = next((v for v in session.get_outputs() if v.name == "logits"), None)
    if logits is None or "input_ids" not in {value.name for value in session.get_inputs()}:
        raise ValueError(
            f"{path} does not map input_ids to logits, expected a graph that export=onnx wrote; "
            "export the model again."
        )
    if logits.shape[-1] != vocab_size:
        raise ValueError(
            f"{path} makes logits of {logits.shape[-1]} tokens where config.json beside it says "
            f"{vocab_size}: they are of two models; export the model again."
        )


class _Constant(nn.Module):
    """A matrix that is gone: its bias, or zeros, for every token."""

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.bias.expand(*x.shape[:-1], -1)


@contextmanager
def _quickest(model: PreTrainedModel) -> Iterator[None]:
    """Give every matrix its quickest form for the duration of the block."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, FactorizedLinear)}
    try:
        for name, layer in layers.items():
            model.set_submodule(name, _form(layer))
        yield
    finally:
        for name, layer in layers.items():
            model.set_submodule(name, layer)


def _form(layer: FactorizedLinear) -> nn.Module:
    """Two Linears, one, or a bias: whichever has the fewest weights without a permutation."""
    weight, bias = merged(layer)
    d_out, d_in = weight.shape
    rank = layer.factor_in.out_features
    if rank == 0:
        return _Constant(weight.new_zeros(d_out) if bias is None else bias.detach())
    if rank * (d_out + d_in) >= d_out * d_in:
        return _linear(weight, bias)
    inner = _linear(layer.factor_in.weight, layer.factor_in.bias)
    if layer.order is None:
        return nn.Sequential(inner, _linear(layer.factor_out.weight, layer.factor_out.bias))
    return nn.Sequential(inner, _linear(*layer.unfolded()))


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight = nn.Parameter(weight.detach().contiguous(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return linear


@contextmanager
def _on_cpu(model: PreTrainedModel) -> Iterator[None]:
    """The model in float32 on the CPU, and without a cache, for the duration of the block."""
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


def _traced(model: PreTrainedModel) -> Any:
    from transformers.exporters import OnnxConfig, OnnxExporter

    inputs, shapes = _sample(model)
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(None):
            warnings.simplefilter("ignore")
            config = OnnxConfig(dynamic_shapes=shapes)
            program = OnnxExporter().export(model, inputs, config).program
            _strip(program)
            return program
    except Exception as error:  # Tracing runs the model's own code, and may raise anything.
        raise ValueError(
            f"{type(model).__name__} cannot be exported to ONNX ({_first_line(error)}); choose "
            "export=factorized or export=dense."
        ) from error
    finally:
        logging.disable(before)


def _strip(program: Any) -> None:
    """Take out what tracing noted of its code, paths of this machine among it."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    ClearMetadataAndDocStringPass()(program)
    graph = program.graph
    for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
        value.metadata_props.clear()


def _sample(model: PreTrainedModel) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs to trace with, and which of their axes may change."""
    auto = torch.export.Dim.AUTO
    rows, length = SAMPLE
    ids = (
        torch.arange(rows * length).reshape(rows, length)
        % model.config.get_text_config().vocab_size
    )
    positions = torch.arange(length).expand(rows, -1).contiguous()
    inputs = {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": positions,
        KEEP: torch.arange(length // 2, length),
    }  # fmt: skip
    known = input_names(model)
    inputs = {name: value for name, value in inputs.items() if name in known}
    shapes = {name: dict.fromkeys(range(value.ndim), auto) for name, value in inputs.items()}
    return inputs, shapes


def _quantize(path: Path, beside: bool) -> None:
    """Weights in 8 bits, a scale per output; activations are quantized as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # It speaks of a preparation that tracing has done.
    with TemporaryDirectory(dir=path.parent) as held:
        small = Path(held) / NAME
        try:
            quantize_dynamic(
                path, small, weight_type=QuantType.QInt8, per_channel=True,
                use_external_data_format=beside,
            )  # fmt: skip
        finally:
            logging.disable(before)
        for file in small.parent.iterdir():
            file.replace(path.with_name(file.name))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
