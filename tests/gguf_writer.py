"""Writes a tiny Llama and its tokenizer as a GGUF file, as llama.cpp's converter does."""

import json
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType
from gguf.quants import dequantize, quantize
from models import tiny_llama, tiny_tokenizer
from torch import Tensor
from transformers import PreTrainedModel

NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
CHAT = "{% for m in messages %}Q: {{ m['content'] }}\nA:{% endfor %}"


def write_gguf(
    path: Path,
    model: PreTrainedModel | None = None,
    kind: str = "F32",
    architecture: str = "llama",
    extra: dict[str, np.ndarray] | None = None,
) -> PreTrainedModel:
    """Write a Llama; returns it with the weights that the file holds.

    kind: how matrices are stored, a name of GGMLQuantizationType; vectors are in float32.
    """
    model = tiny_llama(intermediate_size=64) if model is None else model
    stored = GGMLQuantizationType[kind]
    writer = GGUFWriter(path, architecture)
    _write_settings(writer, model)
    _write_tokenizer(writer)
    for name, weight in model.named_parameters():  # tied ones once
        layer, _, short = name.removeprefix("model.layers.").partition(".")
        target = f"blk.{layer}.{NAMES[short]}" if layer.isdigit() else NAMES[name]
        values = _permuted(weight, name, model).float().numpy()
        if values.ndim == 1:
            writer.add_tensor(target, values)
            continue
        blocks = quantize(values, stored)
        writer.add_tensor(target, blocks, raw_dtype=stored)
        rounded = weight.new_tensor(dequantize(blocks, stored))
        weight.copy_(_restored(rounded, name, model))
    for target, values in (extra or {}).items():
        writer.add_tensor(target, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _write_settings(writer: GGUFWriter, model: PreTrainedModel) -> None:
    config = model.config
    writer.add_file_type(LlamaFileType.ALL_F32)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)


def _write_tokenizer(writer: GGUFWriter) -> None:
    tokenizer = tiny_tokenizer()
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    special = set(tokenizer.all_special_tokens)
    kinds = [TokenType.CONTROL if token in special else TokenType.NORMAL for token in tokens]
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT)


def _heads(name: str, model: PreTrainedModel) -> int:
    """The heads of a matrix whose rows GGUF orders differently; 0 for other matrices."""
    config = model.config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    return next((count for part, count in heads.items() if part in name), 0)


def _permuted(weight: Tensor, name: str, model: PreTrainedModel) -> Tensor:
    """Rotary halves (2, d/2) of each head as pairs (d/2, 2)."""
    heads = _heads(name, model)
    if not heads:
        return weight
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1])
    return halves.swapaxes(1, 2).reshape(weight.shape).contiguous()


def _restored(weight: Tensor, name: str, model: PreTrainedModel) -> Tensor:
    """The inverse of `_permuted`."""
    heads = _heads(name, model)
    if not heads:
        return weight
    pairs = weight.reshape(heads, weight.shape[0] // heads // 2, 2, weight.shape[1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)
