"""Tiny random models of the supported architectures beside the ones in `models.FAMILIES`."""

from collections.abc import Callable
from functools import partial

from models import _DECODER, _GROUPED, FAMILIES, build
from transformers import PreTrainedModel

_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
_EXPERTS = _GROUPED | {"num_experts_per_tok": 2, "num_experts": 4}
_LOCAL = _GROUPED | {"num_experts_per_tok": 2, "num_local_experts": 4}
_SMALL_EXPERTS = _EXPERTS | {"moe_intermediate_size": 24}

# Prefix of the class, settings of its config, and the kinds of matrices in one block.
DENSE: dict[str, tuple[str, dict[str, object], str]] = {
    "phi": ("Phi", _DECODER | {"partial_rotary_factor": 0.5}, "q k v o up down"),
    "gemma": ("Gemma", _GROUPED | {"head_dim": 8}, "q k v o gate up down"),
    "olmo2": ("Olmo2", _GROUPED, "q k v o gate up down"),
    "falcon": (
        "Falcon",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
        "qkv o up down",
    ),
    "gptj": ("GPTJ", _GPT | {"rotary_dim": 4}, "q k v o up down"),
    "gpt_neo": (
        "GPTNeo",
        {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "window_size": 8,
            "attention_types": [[["global", "local"], 1]],
            "max_position_embeddings": 128,
        },
        "q k v o up down",
    ),
    "bloom": ("Bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}, "qkv o up down"),
    "stablelm": ("StableLm", _GROUPED | {"partial_rotary_factor": 0.5}, "q k v o gate up down"),
    "granite": ("Granite", _GROUPED | {"logits_scaling": 4.0}, "q k v o gate up down"),
    "cohere": ("Cohere", _GROUPED, "q k v o gate up down"),
    "cohere2": ("Cohere2", _GROUPED | {"sliding_window": 8}, "q k v o gate up down"),
    "mpt": ("Mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2}, "qkv o up down"),
    # Architectures that no code or name list was written for.
    "starcoder2": ("Starcoder2", _GROUPED, "q k v o up down"),
    "nemotron": ("Nemotron", _GROUPED, "q k v o up down"),
    "glm": ("Glm", _GROUPED | {"head_dim": 8}, "q k v o gate_up down"),
}
_FOUR = " ".join(["expert_gate_up expert_down"] * 4)
MIXTURES: dict[str, tuple[str, dict[str, object], str]] = {
    "mixtral": ("Mixtral", _LOCAL, f"q k v o {_FOUR}"),
    "qwen2_moe": (
        "Qwen2Moe",
        _SMALL_EXPERTS | {"shared_expert_intermediate_size": 24, "decoder_sparse_step": 1},
        f"q k v o gate up down {_FOUR}",
    ),
    "qwen3_moe": ("Qwen3Moe", _SMALL_EXPERTS | {"head_dim": 8}, f"q k v o {_FOUR}"),
    "olmoe": ("Olmoe", _EXPERTS, f"q k v o {_FOUR}"),
    "gpt_oss": ("GptOss", _LOCAL | {"head_dim": 8}, f"q k v o {_FOUR}"),  # Biases, transposed.
    "granite_moe": ("GraniteMoe", _LOCAL, f"q k v o {_FOUR}"),
}

MORE: dict[str, Callable[..., PreTrainedModel]] = {
    name: partial(build, prefix, **config)
    for name, (prefix, config, _) in (DENSE | MIXTURES).items()
}
EVERY = FAMILIES | MORE

# Kinds of the matrices in one block of every family.
KINDS = {
    "llama": "q k v o gate up down",
    "llama_tied": "q k v o gate up down",
    "mistral": "q k v o gate up down",
    "qwen2": "q k v o gate up down",
    "qwen3": "q k v o gate up down",
    "gemma2": "q k v o gate up down",
    "gemma3": "q k v o gate up down",
    "phi3": "qkv o gate_up down",
    "gpt2": "qkv o up down",
    "gpt_neox": "qkv o up down",
    "opt": "q k v o up down",
} | {name: kinds for name, (_, _, kinds) in (DENSE | MIXTURES).items()}
