"""Load a GGUF export into transformers, with what llama.cpp leaves out left out too.

It shows without llama.cpp whether a file holds the finished model. The classes of transformers
compute; the file gives shapes, biases and missing parts.
"""

from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils import GENERATION_CONFIG_NAME

from sieve.exports.gguf_architecture import NAMES, PAIRED
from sieve.exports.gguf_layers import ATTENTION, MLP
from sieve.exports.gguf_writing import FILE_TYPES, FORMAT_KEY, NAME
from sieve.factorized.modeling_layers import FactorizedLinear, skip
from sieve.model.backbone import place
from sieve.model.gguf_files import check_installed

# What damaged files raise.
DAMAGE = (OSError, ValueError, KeyError, IndexError, RuntimeError, AttributeError, TypeError)
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "Q8_0": torch.float32}
RESULTS = 2  # of an attention of transformers: outputs and weights
NORMS = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
}


def is_gguf_export(folder: Path) -> bool:
    """Whether a folder has a GGUF file that Sieve wrote, with the files beside it.

    Raises ValueError if the file is damaged, and RuntimeError if the package gguf is missing.
    """
    if not (folder / NAME).is_file() or not (folder / "config.json").is_file():
        return False
    check_installed("gguf")
    from gguf import GGUFReader

    try:
        return FORMAT_KEY in GGUFReader(folder / NAME).fields
    except DAMAGE as error:
        raise _damaged(folder, error) from error


def load_gguf(
    folder: Path, dtype: torch.dtype | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model of a GGUF export, in evaluation mode on the CPU, and its tokenizer.

    dtype: None is that of the file's matrices; those in 8 bits are dequantized to float32.

    Raises ValueError if a file is missing or damaged, and RuntimeError if the package gguf is
    missing.
    """
    check_installed("gguf")
    try:
        config = AutoConfig.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = _File(folder / NAME).model(config, dtype)
        if (folder / GENERATION_CONFIG_NAME).is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
        return model, tokenizer
    except DAMAGE as error:
        raise _damaged(folder, error) from error


def _damaged(folder: Path, error: Exception) -> ValueError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ValueError(
        f"{folder / NAME} or a file beside it is damaged ({reason}); export the model again."
    )


class _File:
    """A file that gives a model of transformers its numbers."""

    def __init__(self, path: Path) -> None:
        from gguf import GGUFReader

        self.reader: GGUFReader = GGUFReader(path)
        self.tensors = {tensor.name: tensor for tensor in self.reader.tensors}
        self.architecture = str(self._value("general.architecture"))

    def model(self, config: PreTrainedConfig, dtype: torch.dtype | None) -> PreTrainedModel:
        """The model; `config` names its class and what a file does not say."""
        self._configure(config)
        [architecture] = config.architectures or []
        model_class: Any = getattr(transformers, architecture)
        with torch.device("meta"):
            model = model_class(config)
        blocks = model.get_decoder()
        blocks.rotary_emb = type(blocks.rotary_emb)(config)  # Its numbers are not in a checkpoint.
        if "rope_freqs.weight" in self.tensors:
            size = self._setting("rope.dimension_count")
            plain = config.rope_parameters["rope_theta"] ** -(torch.arange(0, size, 2) / size)
            blocks.rotary_emb.inv_freq = plain / self._tensor("rope_freqs.weight")
        blocks.embed_tokens.weight = self._parameter("token_embd.weight")
        blocks.norm.weight = self._parameter("output_norm.weight")
        for index, block in enumerate(blocks.layers):
            self._fill(block, index)
        tied = "output.weight" not in self.tensors
        name = "token_embd.weight" if tied else "output.weight"
        model.lm_head.weight = blocks.embed_tokens.weight if tied else self._parameter(name)
        kinds = {number: kind for kind, number in FILE_TYPES.items()}
        place(model, None, dtype or DTYPES[kinds[self._value("general.file_type")]])
        return cast(PreTrainedModel, model.eval())

    def _configure(self, config: Any) -> None:
        layers = self._setting("block_count")
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:layers]
        config.rms_norm_eps = self._setting("attention.layer_norm_rms_epsilon")
        config.rope_parameters["rope_theta"] = self._setting("rope.freq_base")
        config.head_dim = self._setting("attention.key_length")
        config.hidden_size = self._setting("embedding_length")
        config.vocab_size = self._setting("vocab_size")

    def _fill(self, block: Any, index: int) -> None:
        """Give a decoder block the numbers of a layer."""
        prefix, attention = f"blk.{index}.", block.self_attn
        heads = self._of_layer("attention.head_count", index)
        kv_heads = self._of_layer("attention.head_count_kv", index)
        for name, path in NORMS.items():
            if f"{prefix}{name}.weight" in self.tensors:
                weight = self._parameter(f"{prefix}{name}.weight")
                block.get_submodule(path).weight = weight
        for part, name in MLP.items():
            setattr(block.mlp, name, self._linear(prefix + NAMES[part], 0))
        if not heads:
            block.input_layernorm = nn.Identity()
            _remove(attention, block.mlp.down_proj.out_features)
            return
        attention.num_key_value_groups = heads // kv_heads
        counts = {"q": heads, "k": kv_heads} if self.architecture in PAIRED else {}
        for part, name in ATTENTION.items():
            setattr(attention, name, self._linear(prefix + NAMES[part], counts.get(part, 0)))

    def _linear(self, name: str, heads: int) -> nn.Linear:
        """A layer; the rows of each of its heads are pairs in the file, and halves in the model."""

        def halved(tensor: Tensor) -> Tensor:
            if not heads:
                return tensor
            pairs = tensor.reshape(heads, tensor.shape[0] // heads // 2, 2, *tensor.shape[1:])
            return pairs.swapaxes(1, 2).reshape(tensor.shape)

        weight = halved(self._tensor(f"{name}.weight"))
        biased = f"{name}.bias" in self.tensors
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=biased, device="meta")
        layer.weight = nn.Parameter(weight, requires_grad=False)
        if biased:
            bias = halved(self._tensor(f"{name}.bias"))
            layer.bias = nn.Parameter(bias, requires_grad=False)
        return layer

    def _parameter(self, name: str) -> nn.Parameter:
        return nn.Parameter(self._tensor(name), requires_grad=False)

    def _tensor(self, name: str) -> Tensor:
        """The numbers of a tensor, float32."""
        from gguf.quants import dequantize

        tensor = self.tensors[name]
        return torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())

    def _value(self, key: str) -> Any:
        return self.reader.fields[key].contents()

    def _setting(self, name: str) -> Any:
        return self._value(f"{self.architecture}.{name}")

    def _of_layer(self, name: str, index: int) -> int:
        value = self._setting(name)
        return int(value[index] if isinstance(value, list) else value)


def _remove(attention: Any, width: int) -> None:
    """Let an attention return zeros."""
    for name in ATTENTION.values():
        setattr(attention, name, nn.Identity())
    attention.o_proj = FactorizedLinear(width, width, 0, bias=False)
    skip(attention, "o_proj", RESULTS)
