"""Tiny random causal language models of many architectures, and a tokenizer, all in memory.

Weights are large enough that every layer matters, biases are not 0 and norms are not 1, and every
number is exact in float16 and bfloat16, so that storing it in either loses nothing.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_outputs import CausalLMOutput

from sieve.conversion import ASSETS

VOCAB_SIZE = 384
SPECIALS = ("<pad>", "<bos>", "<eos>")
# Words that are one token together with the space before them.
WORDS = (
    "positive negative good bad yes no true false movie film question answer review the A B C D E"
).split()


def tiny_tokenizer(**overrides: object) -> PreTrainedTokenizerFast:
    """Byte-level BPE of fewer than `VOCAB_SIZE` tokens: every text survives encode and decode."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS:
        text = f"Ġ{word}"
        merges |= {(text[:end], text[end]): None for end in range(1, len(text))}
    tokens = [*SPECIALS, *alphabet, *("".join(pair) for pair in merges)]
    assert len(tokens) <= VOCAB_SIZE
    bpe = models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=list(merges))
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    options = {
        "pad_token": "<pad>",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "model_max_length": 128,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
    }
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **(options | overrides))


def build(name: str, seed: int = 0, **config: object) -> PreTrainedModel:
    """A random model of the class `<name>ForCausalLM` in evaluation mode, float32."""
    model_class = getattr(transformers, f"{name}ForCausalLM", None) or getattr(
        transformers, f"{name}LMHeadModel"
    )
    tokens = {"vocab_size": VOCAB_SIZE, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return randomized(model_class, model_class.config_class(**(tokens | config)), seed)


def randomized(
    model_class: type[PreTrainedModel], config: PreTrainedConfig, seed: int = 0
) -> PreTrainedModel:
    """A model with random parameters, in evaluation mode, without gradients."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config).eval().requires_grad_(False)
        for name, parameter in model.named_parameters():
            parameter.copy_(_draw(name, parameter))
    model.tie_weights()
    if model.can_generate():
        # Without an end token, generation always writes all tokens that a test compares.
        model.generation_config.eos_token_id = None
    return model


def _draw(name: str, parameter: Tensor) -> Tensor:
    """Numbers on a grid of 2⁻⁷ below 1: eight bits, exact in bfloat16 and float16."""
    if parameter.ndim > 1:
        fan_in = 16 if "emb" in name or "wte" in name or "wpe" in name else parameter.shape[-1]
        spread = fan_in**-0.5
    else:
        spread = 0.1
    values = (torch.randn(parameter.shape) * spread).clamp(-0.99, 0.99)
    rounded = (values * 128).round() / 128
    is_norm = parameter.ndim == 1 and name.endswith("weight")
    return (rounded.clamp(-0.5, 0.5) + 1).to(torch.bfloat16).float() if is_norm else rounded


_DECODER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
_GROUPED = _DECODER | {"num_key_value_heads": 2}


def tiny_llama(**overrides: object) -> PreTrainedModel:
    """Grouped-query attention, no biases, untied."""
    return build("Llama", **(_GROUPED | {"tie_word_embeddings": False} | overrides))


def tiny_llama_tied(**overrides: object) -> PreTrainedModel:
    """Llama whose output head is the embedding."""
    return tiny_llama(**({"tie_word_embeddings": True} | overrides))


def tiny_mistral(**overrides: object) -> PreTrainedModel:
    """Sliding-window attention."""
    return build("Mistral", **(_GROUPED | {"sliding_window": 8} | overrides))


def tiny_qwen2(**overrides: object) -> PreTrainedModel:
    """Biases in q, k and v alone; tied."""
    return build("Qwen2", **(_GROUPED | {"tie_word_embeddings": True} | overrides))


def tiny_qwen3(**overrides: object) -> PreTrainedModel:
    """Normalized queries and keys; a head size that the width does not give."""
    return build("Qwen3", **(_GROUPED | {"head_dim": 16} | overrides))


def tiny_gemma2(**overrides: object) -> PreTrainedModel:
    """Alternating kinds of attention, soft-capped logits, tied."""
    options = {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8}
    return build("Gemma2", **(_GROUPED | options | overrides))


def tiny_gemma3(**overrides: object) -> PreTrainedModel:
    """The text model of Gemma 3, tied."""
    options = {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8}
    return build("Gemma3", **(_GROUPED | options | overrides))


def tiny_phi3(**overrides: object) -> PreTrainedModel:
    """Fused qkv_proj and gate_up_proj."""
    return build("Phi3", **(_GROUPED | overrides))


def tiny_gpt2(**overrides: object) -> PreTrainedModel:
    """Conv1D layers with biases, fused c_attn, learned positions, tied."""
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
    return build("GPT2", **(shape | overrides))


def tiny_gpt_neox(**overrides: object) -> PreTrainedModel:
    """Parallel residual, biases everywhere, fused query_key_value."""
    return build("GPTNeoX", **(_DECODER | overrides))


def tiny_opt(**overrides: object) -> PreTrainedModel:
    """Biases everywhere, learned positions, tied."""
    shape = {"ffn_dim": 48, "word_embed_proj_dim": 32}
    options = {key: value for key, value in _DECODER.items() if key != "intermediate_size"}
    return build("OPT", **(options | shape | overrides))


def tiny_mixtral(**overrides: object) -> PreTrainedModel:
    """Mixture of experts: a router and stacked expert weights beside plain attention."""
    options = {"num_local_experts": 4, "num_experts_per_tok": 2}
    return build("Mixtral", **(_GROUPED | options | overrides))


class OddConfig(PreTrainedConfig):
    """Configuration of an architecture that transformers does not have."""

    model_type = "odd_for_tests"
    vocab_size: int = VOCAB_SIZE
    width: int = 32
    depth: int = 2


class OddBlock(nn.Module):
    """Mean attention and a two-layer network, under names that `KINDS` does not list."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.alpha = nn.Linear(width, width)
        self.beta = nn.Linear(width, width, bias=False)
        self.squash = nn.Linear(width, 2 * width)
        self.stretch = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.arange(1, x.shape[1] + 1, device=x.device, dtype=x.dtype)
        x = x + torch.tanh(self.alpha(x)) * (self.beta(x).cumsum(1) / steps[:, None])
        return x + self.stretch(torch.tanh(self.squash(x)))


class OwnExperts(nn.Module):
    """Experts stacked in a form that transformers does not describe."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stack = nn.Parameter(torch.randn(3, width, width) / width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("btd,edf->btf", x, self.stack)


class WithOwnExperts(OddBlock):
    """A block with a part that cannot be factorized."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.own = OwnExperts(width)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.own(x)


class OddForCausalLM(PreTrainedModel):
    """A decoder of an architecture that transformers does not have."""

    config_class = OddConfig
    _tied_weights_keys = {"read.weight": "table.weight"}

    def __init__(self, config: OddConfig) -> None:
        super().__init__(config)
        self.table = nn.Embedding(config.vocab_size, config.width)
        self.rungs = nn.ModuleList(OddBlock(config.width) for _ in range(config.depth))
        self.read = nn.Linear(config.width, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.table

    def get_output_embeddings(self) -> nn.Module:
        return self.read

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: object
    ) -> CausalLMOutput:
        x = self.table(input_ids)
        for rung in self.rungs:
            x = rung(x)
        return CausalLMOutput(logits=self.read(x))


def tiny_odd(tied: bool = False) -> PreTrainedModel:
    """A model of an architecture that transformers does not have."""
    return randomized(OddForCausalLM, OddConfig(tie_word_embeddings=tied))


def first_layers(layers: int) -> PreTrainedModel:
    """The first layers of the embedded model in float32; two or three do its tasks alone."""
    options = {"num_hidden_layers": layers, "dtype": "float32"}
    model = transformers.AutoModelForCausalLM.from_pretrained(ASSETS / "embedded", **options)
    return model.eval()


def save_first_layers(folder: Path, layers: int) -> None:
    """Save the first layers of the embedded model with its tokenizer."""
    first_layers(layers).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(ASSETS / "embedded").save_pretrained(folder)


FAMILIES: dict[str, Callable[..., PreTrainedModel]] = {
    "llama": tiny_llama,
    "llama_tied": tiny_llama_tied,
    "mistral": tiny_mistral,
    "qwen2": tiny_qwen2,
    "qwen3": tiny_qwen3,
    "gemma2": tiny_gemma2,
    "gemma3": tiny_gemma3,
    "phi3": tiny_phi3,
    "gpt2": tiny_gpt2,
    "gpt_neox": tiny_gpt_neox,
    "opt": tiny_opt,
}
