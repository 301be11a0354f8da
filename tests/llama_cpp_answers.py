"""Run by a Python with llama-cpp-python: what llama.cpp writes and scores with each GGUF file.

    python llama_cpp_answers.py REQUEST.json FILE ...

REQUEST.json has `prompts`, lists of token ids, and `texts` for each file. The answer, JSON on
stdout, has for each file the tokens written after each prompt, the log-probabilities of the
prompts' tokens, and the tokens of the texts. Keys and values are cached in float32.
"""

import json
import sys
from pathlib import Path

import numpy as np
from llama_cpp import GGML_TYPE_F32, Llama

NEW_TOKENS = 16


def main(request: str, *files: str) -> None:
    """Print a list with the answer of each file."""
    asked = json.loads(Path(request).read_text())
    print(json.dumps([answer(file, asked["prompts"], asked["texts"]) for file in files]))


def answer(file: str, prompts: list[list[int]], texts: list[str]) -> dict[str, object]:
    """Greedy tokens, log-probabilities and tokens of texts."""
    model = Llama(
        file,
        n_ctx=128,
        n_threads=1,
        n_threads_batch=1,
        type_k=GGML_TYPE_F32,
        type_v=GGML_TYPE_F32,
        logits_all=True,
        verbose=False,
    )
    written, scores = [], []
    for prompt in prompts:
        model.reset()
        model.eval(prompt)
        scores.append(logprobs(model.scores[: len(prompt)], prompt))
        tokens = []
        for _ in range(NEW_TOKENS):
            tokens.append(int(model.scores[model.n_tokens - 1].argmax()))
            model.eval(tokens[-1:])
        written.append(tokens)
    encoded = [model.tokenize(text.encode(), add_bos=True, special=True) for text in texts]
    return {"tokens": written, "logprobs": scores, "texts": encoded}


def logprobs(logits: np.ndarray, prompt: list[int]) -> list[float]:
    """Log-probabilities of all tokens of a prompt but the first."""
    logits = logits.astype(np.float64)
    logits -= logits.max(1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(1, keepdims=True))
    return [float(row[token]) for row, token in zip(logits[:-1], prompt[1:], strict=True)]


if __name__ == "__main__":
    main(*sys.argv[1:])
