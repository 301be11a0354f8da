"""Tokens per second of model folders in vLLM, in turns within one process, on the CPU.

    make test-vllm ARGS=--co      # once: sets .venv-vllm up
    VLLM_CPU_KVCACHE_SPACE=1 .venv-vllm/bin/python -m experiments.vllm_speed dense_model export

Each model gets the same number of prompts of random tokens at once, and writes tokens after them.
The seconds are the median of `--repeats` rounds; the first round of each model is not counted.
Prints one JSON line per model; `ratio` is over the first model. Needs vLLM only, not Sieve.
"""

import argparse
import json
import os
import random
import statistics
import time

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

PROMPT_TOKENS = 128


def main() -> None:
    """Measure the folders of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--batch", type=int, default=16, help="prompts at once")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--impl", default="transformers", help="vLLM's model_impl")
    options = parser.parse_args()
    models = [loaded(folder, options) for folder in options.folders]
    rounds = [[seconds(model, options) for model in models] for _ in range(options.repeats + 1)]
    medians = [statistics.median(times[1:]) for times in zip(*rounds, strict=True)]
    tokens = options.batch * (PROMPT_TOKENS + options.new_tokens)
    for folder, took in zip(options.folders, medians, strict=True):
        rate, ratio = tokens / took, medians[0] / took
        print(json.dumps({"model": folder, "tokens_per_second": rate, "ratio": ratio}))


def loaded(folder: str, options: argparse.Namespace):  # noqa: ANN201 - vLLM's, not installed here
    """The model in vLLM."""
    from vllm import LLM

    return LLM(
        folder,
        trust_remote_code=True,
        model_impl=options.impl,
        dtype=options.dtype,
        enforce_eager=True,
        max_model_len=PROMPT_TOKENS + options.new_tokens,
        max_num_seqs=options.batch,
        enable_prefix_caching=False,
        skip_tokenizer_init=True,
    )


def seconds(model, options: argparse.Namespace) -> float:  # noqa: ANN001
    """The time of one round, in process time: other processes may use the machine."""
    from vllm import SamplingParams, TokensPrompt

    draw = random.Random(0)
    prompts = [
        TokensPrompt(prompt_token_ids=[draw.randrange(5, 1000) for _ in range(PROMPT_TOKENS)])
        for _ in range(options.batch)
    ]
    settings = SamplingParams(
        temperature=0, max_tokens=options.new_tokens, ignore_eos=True, detokenize=False
    )
    start = time.process_time()
    model.generate(prompts, settings, use_tqdm=False)
    return time.process_time() - start


if __name__ == "__main__":
    main()
