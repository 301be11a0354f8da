"""Run by vLLM's Python: what vLLM writes and scores with each model folder, as JSON on stdout.

    python vllm_answers.py DEVICES PROMPTS.json FOLDER ...

DEVICES is a number; each device loads its part of the matrices. PROMPTS.json has lists of token
ids. The answer of a folder has the tokens written after each prompt, the log-probabilities of the
prompt's tokens and the bytes of the weights.
"""

import json
import sys
from pathlib import Path

import torch
from vllm import LLM, SamplingParams, TokensPrompt

NEW_TOKENS = 16


def main(devices: str, prompts: str, *folders: str) -> None:
    """Print a list with the answer of each folder."""
    ids = json.loads(Path(prompts).read_text())
    print(json.dumps([answer(folder, ids, int(devices)) for folder in folders]), flush=True)


def answer(folder: str, ids: list[list[int]], devices: int) -> dict[str, object]:
    """Greedy tokens and log-probabilities of one model."""
    model = LLM(
        folder,
        trust_remote_code=True,
        model_impl="transformers",
        dtype="float32",
        enforce_eager=True,
        max_model_len=64,
        max_num_seqs=len(ids),
        skip_tokenizer_init=True,
        tensor_parallel_size=devices,
    )
    settings = SamplingParams(
        temperature=0, max_tokens=NEW_TOKENS, prompt_logprobs=0, ignore_eos=True, detokenize=False
    )
    done = model.generate([TokensPrompt(prompt_token_ids=prompt) for prompt in ids], settings)
    size = sum(model.apply_model(weight_bytes))
    return {
        "tokens": [list(one.outputs[0].token_ids) for one in done],
        "logprobs": [[_only(at) for at in one.prompt_logprobs[1:]] for one in done],
        "bytes": size,
    }


def weight_bytes(model: object) -> int:
    """Bytes of a model's parameters and buffers, each counted once, quantized ones in parts."""
    every = [part for t in [*model.parameters(), *model.buffers()] for part in _parts(t)]
    tensors = {tensor.data_ptr(): tensor for tensor in every if tensor.numel()}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    names = getattr(tensor, "tensor_data_names", ())
    return [getattr(tensor, name) for name in names] or [tensor]


def _only(found: dict) -> float:
    [value] = found.values()
    return value.logprob


if __name__ == "__main__":
    main(*sys.argv[1:])
