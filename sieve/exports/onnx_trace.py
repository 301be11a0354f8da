"""The graph of a model: traced by the exporter of transformers, with the names of other tools.

    input_ids, attention_mask, position_ids     (B, T), (B, P + T), (B, T)
    past_key_values.0.key, .value, ...          (B, heads, P, d), of the P tokens before
    num_logits_to_keep                          (1,), optional: logits of the last tokens alone
    logits, present.0.key, .value, ...          (B, T, V), (B, heads, P + T, d)

Numbers count the attentions that remain. Models without such a cache have a graph without one. A
classifier maps input_ids and attention_mask to logits (B, classes).
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

from sieve.data.prefix import PLAIN_LAYERS
from sieve.model.backbone import cache_name, forward, input_names, is_classifier, place

if TYPE_CHECKING:
    import onnx_ir

SAMPLE = (2, 4, 8)  # rows, cached tokens and further tokens of the batch that is traced
KEEP = "num_logits_to_keep"
INDEXES = "logits_to_keep"  # what transformers has for it: the positions to keep
TO_END = 2**63 - 1  # ends a slice
KEY_OR_VALUE = ("key", "value")
PAST, PRESENT = "past_key_values.", "present."  # begin the names of inputs and outputs


@torch.no_grad()
def traced(model: PreTrainedModel) -> "onnx_ir.Model":
    """The graph of a model, without records of the machine that traced it.

    The graph reads the weights of the model, so save it before they move. Raises ValueError if the
    architecture cannot be traced.
    """
    cache = _sample_cache(model)
    inputs: dict[str, Tensor | Cache] = {**_sample(model, 0 if cache is None else SAMPLE[1])}
    if cache is not None:
        inputs[cache_name(model)] = cache
    with _using_cache(model, cache is not None):
        graph = _exported(model, inputs)
    if cache is not None:
        _name_cache(graph, [_has_states(layer) for layer in cache.layers])
    _count_logits(graph)
    _forget_machine(graph)
    return graph


def _exported(model: PreTrainedModel, inputs: dict[str, Tensor | Cache]) -> "onnx_ir.Model":
    from transformers.exporters import OnnxConfig, OnnxExporter

    shapes = {name: _open_sizes(value) for name, value in inputs.items()}
    try:
        with quiet(), contextlib.redirect_stdout(None):
            config = OnnxConfig(dynamic_shapes=shapes)
            graph: onnx_ir.Model = OnnxExporter().export(model, inputs, config).program
    except Exception as error:  # Tracing runs the code of the model, which may raise anything.
        raise ValueError(
            f"{type(model).__name__} cannot be exported to ONNX ({first_line(error)}); choose "
            "export=factorized or export=dense."
        ) from error
    return graph


def _open_sizes(value: Tensor | Cache) -> Any:
    """Which sizes of an input may change: all but the heads and their width in a cache."""
    auto = torch.export.Dim.AUTO
    if isinstance(value, Cache):
        return [{0: auto, 2: auto} for layer in value.layers for _ in KEY_OR_VALUE]
    return dict.fromkeys(range(value.ndim), auto)


def _sample(model: PreTrainedModel, cached: int) -> dict[str, Tensor]:
    """The inputs to trace with, after `cached` tokens: those that the model accepts."""
    rows, _, length = SAMPLE
    ids = _token_ids(model, length)
    inputs = {
        "input_ids": ids,
        "attention_mask": ids.new_ones(rows, cached + length),
        "position_ids": torch.arange(cached, cached + length).expand(rows, -1).contiguous(),
        INDEXES: torch.arange(length // 2, length),
    }
    names = {"input_ids", "attention_mask"} if is_classifier(model) else input_names(model)
    return {name: value for name, value in inputs.items() if name in names}


def _token_ids(model: PreTrainedModel, length: int) -> Tensor:
    vocabulary = model.config.get_text_config().vocab_size
    return torch.arange(SAMPLE[0] * length).reshape(SAMPLE[0], length) % vocabulary


def _sample_cache(model: PreTrainedModel) -> Cache | None:
    """Keys and values of a few tokens; None if the model caches nothing or something else.

    Layers with a window keep all tokens here: the graph's mask hides those outside of it.
    """
    if not model.can_generate() or not cache_name(model):
        return None
    ids, computed = _token_ids(model, SAMPLE[1]), DynamicCache(config=model.config)
    forward(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, 1, computed)
    cache = DynamicCache()
    for index, layer in enumerate(computed.layers):
        if not isinstance(layer, PLAIN_LAYERS) or type(layer) not in PLAIN_LAYERS:
            return None
        assert layer.keys is not None and layer.values is not None
        cache.update(layer.keys, layer.values, index)
    return cache


def _has_states(layer: Any) -> bool:
    """Whether a layer of a cache has keys and values; a removed attention only counts tokens."""
    return tuple(layer.keys.shape[1::2]) != (1, 1)


@contextmanager
def on_cpu(model: PreTrainedModel) -> Iterator[None]:
    """Put the model on the CPU in float32 for the duration of the block."""
    device, dtype = model.device, model.dtype
    place(model, torch.device("cpu"), torch.float32)
    try:
        yield
    finally:
        place(model, device, dtype)


@contextmanager
def _using_cache(model: PreTrainedModel, caches: bool) -> Iterator[None]:
    """Let the model return its cache, or not, for the duration of the block."""
    config = model.config.get_text_config()
    before = getattr(config, "use_cache", None)
    if before is not None:
        config.use_cache = caches
    try:
        yield
    finally:
        if before is not None:
            config.use_cache = before


def _name_cache(graph: "onnx_ir.Model", has_states: list[bool]) -> None:
    """Name the keys and values; take out what a removed attention has, which only counts tokens.

    has_states: of each layer of the cache, in order.
    """
    inputs = [value for value in graph.graph.inputs if ".layers." in (value.name or "")]
    outputs = [value for value in graph.graph.outputs if ".layers." in (value.name or "")]
    pairs = list(zip(inputs, outputs, strict=True))
    if not any(has_states):
        has_states = [True] * len(has_states)
    real = [pairs[2 * n : 2 * n + 2] for n, states in enumerate(has_states) if states]
    counters = [pairs[2 * n : 2 * n + 2] for n, states in enumerate(has_states) if not states]
    for index, layer in enumerate(real):
        for (past, present), part in zip(layer, KEY_OR_VALUE, strict=True):
            past.name, present.name = f"{PAST}{index}.{part}", f"{PRESENT}{index}.{part}"
    if counters:
        _drop_counters(graph, [pair for layer in counters for pair in layer], real[0][0][0])


def _drop_counters(graph: "onnx_ir.Model", pairs: list[Any], key: "onnx_ir.Value") -> None:
    """Count the cached tokens in `key`, of another attention, (B, heads, P, d)."""
    import onnx_ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    bounds = [
        _constant(graph, f"counter_{name}", [*values])
        for name, values in (("starts", (0, 0)), ("ends", (1, 1)), ("axes", (1, 3)))
    ]
    counter = onnx_ir.node("Slice", [key, *bounds])
    for past, present in pairs:
        graph.graph.outputs.remove(present)
        past.replace_all_uses_with(counter.outputs[0])
        graph.graph.inputs.remove(past)
    graph.graph.insert_before(graph.graph[0], counter)
    RemoveUnusedNodesPass()(graph)


def _count_logits(graph: "onnx_ir.Model") -> None:
    """Take the number of positions to keep instead of their indexes; 0 keeps all."""
    import onnx_ir

    ids, indexes = (
        next((value for value in graph.graph.inputs if value.name == name), None)
        for name in ("input_ids", INDEXES)
    )
    if ids is None or indexes is None:
        return
    count = _constant(graph, KEEP, [0])
    zero, one, axis, end = (
        _constant(graph, f"{KEEP}_{name}", value)
        for name, value in (("zero", 0), ("one", 1), ("axis", [0]), ("end", [TO_END]))
    )
    length = onnx_ir.node("Shape", [ids], attributes={"start": 1, "end": 2})
    size = onnx_ir.node("Squeeze", length.outputs)
    positions = onnx_ir.node("Range", [zero, size.outputs[0], one])
    start = onnx_ir.node("Neg", [count])
    last = onnx_ir.node("Slice", [positions.outputs[0], start.outputs[0], end, axis])
    indexes.replace_all_uses_with(last.outputs[0])
    graph.graph.inputs.remove(indexes)
    graph.graph.inputs.append(count)  # With a value of its own, an input is optional.
    graph.graph.insert_before(graph.graph[0], [length, size, positions, start, last])


def _constant(graph: "onnx_ir.Model", name: str, value: int | list[int]) -> "onnx_ir.Value":
    """A constant of whole numbers in a graph."""
    import onnx_ir

    tensor = onnx_ir.tensor(value, dtype=onnx_ir.DataType.INT64, name=name)
    kind, shape = onnx_ir.TensorType(tensor.dtype), onnx_ir.Shape(tensor.numpy().shape)
    constant = onnx_ir.Value(name=name, const_value=tensor, shape=shape, type=kind)
    graph.graph.register_initializer(constant)
    return constant


def _forget_machine(graph: "onnx_ir.Model") -> None:
    """Drop what tracing notes of the code that it ran, with paths of this machine."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    ClearMetadataAndDocStringPass()(graph)
    values = (*graph.graph.inputs, *graph.graph.outputs, *graph.graph.initializers.values())
    for value in values:
        value.metadata_props.clear()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings for the block, of which users can act on none."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def first_line(error: Exception) -> str:
    """The first line of what an error says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
