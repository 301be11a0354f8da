"""genai_config.json beside an ONNX graph, with which onnxruntime-genai writes text."""

from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from sieve.exports.onnx_trace import PAST, PRESENT
from sieve.model.backbone import context_length
from sieve.runtime.artifacts import write_json_atomic

if TYPE_CHECKING:
    import onnx_ir

NAME = "genai_config.json"
KIND = "decoder"  # of onnxruntime-genai: any language model with such inputs
NO_LIMIT = 2**16  # tokens, where the model sets no limit: onnxruntime-genai needs one


def write_genai_config(
    model: PreTrainedModel, graph: "onnx_ir.Model", folder: Path, filename: str
) -> None:
    """Write the file if the format can describe the graph: all its attentions have one shape.

    filename: of the graph in the folder.
    """
    cached = [value for value in graph.graph.inputs if (value.name or "").startswith(PAST)]
    shapes = {tuple(value.shape or ())[1::2] for value in cached}
    if len(shapes) != 1:
        return
    [(heads, size)] = shapes
    text, writing = model.config.get_text_config(), model.generation_config
    length = context_length(model) or NO_LIMIT
    names = {value.name for value in graph.graph.inputs}
    inputs = [name for name in ("input_ids", "attention_mask", "position_ids") if name in names]
    decoder: dict[str, object] = {
        "session_options": {"provider_options": []},
        "filename": filename,
        "head_size": size,
        "hidden_size": getattr(text, "hidden_size", heads * size),
        "num_attention_heads": getattr(text, "num_attention_heads", heads),
        "num_hidden_layers": len(cached) // 2,  # the attentions that remain
        "num_key_value_heads": heads,
        "inputs": {name: name for name in inputs}
        | {f"past_{part}_names": f"{PAST}%d.{part}" for part in ("key", "value")},
        "outputs": {"logits": "logits"}
        | {f"present_{part}_names": f"{PRESENT}%d.{part}" for part in ("key", "value")},
    }
    ends = writing.eos_token_id if writing and writing.eos_token_id else text.eos_token_id
    first_end = ends[0] if isinstance(ends, list) else ends
    tokens = {
        "bos_token_id": text.bos_token_id,
        "eos_token_id": ends,
        "pad_token_id": first_end if text.pad_token_id is None else text.pad_token_id,
    }
    described = {
        **{name: token for name, token in tokens.items() if token is not None},
        "type": KIND,
        "context_length": length,
        "vocab_size": text.vocab_size,
        "decoder": decoder,
    }
    search = {"max_length": length, "past_present_share_buffer": False, "do_sample": False}
    write_json_atomic(folder / NAME, {"model": described, "search": search})
