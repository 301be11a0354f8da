"""llama.cpp writes and scores with a GGUF export what transformers does; `make test-llama-cpp`."""

import json
import os
import subprocess
from pathlib import Path
from unicodedata import normalize

import pytest
import torch
from exporting import check_answers
from gguf_samples import FIVE, MODELS, PARTS, TOKENIZERS, without, words
from models import tiny_llama, tiny_llama_tied, tiny_tokenizer
from sieved import tokens
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from vocabulary_tokenizers import OTHER, SCRIPTS, TASK

import sieve
from sieve.conversion import ASSETS
from sieve.exports.gguf_size import GgufSettings
from sieve.vocabulary.tokenizer import cut_tokenizer

pytestmark = pytest.mark.llama_cpp
PROMPTS = 16
TEXTS = [*TASK, *OTHER, *SCRIPTS, "<s>Sentiment: 12345 Sentiment</s>", "It's 1 o'CLOCK; we'LL see"]
ANY_SIZE = GgufSettings(allow_larger=True)
EMBEDDED = "embedded, without parts"


@pytest.fixture(scope="module")
def python() -> str:
    """The Python of an environment with llama-cpp-python."""
    python = os.environ.get("SIEVE_LLAMA_CPP")
    if not python:
        pytest.skip("SIEVE_LLAMA_CPP names no Python with llama-cpp-python; make test-llama-cpp")
    return python


def answers(python: str, folder: Path, prompts: list, texts: list, files: list[Path]) -> list[dict]:
    """What llama.cpp writes for each prompt, and its tokens of each text, by file."""
    request = folder / "request.json"
    request.write_text(json.dumps({"prompts": prompts, "texts": texts}))
    script = Path(__file__).parents[1] / "llama_cpp_answers.py"
    done = subprocess.run([python, script, request, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def models() -> dict[str, PreTrainedModel]:
    embedded = AutoModelForCausalLM.from_pretrained(ASSETS / "embedded", dtype=torch.float32)
    removed = (("o", 1), ("down", 2), ("o", 4), ("down", 4))
    pruned = {name: build() for name, build in MODELS.items()}
    return pruned | {EMBEDDED: without(embedded.eval().requires_grad_(False), removed)}


@pytest.fixture(scope="module")
def answered(python: str, models, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    root = tmp_path_factory.mktemp("gguf")
    tokenizers = {EMBEDDED: AutoTokenizer.from_pretrained(ASSETS / "embedded")}
    files = [
        sieve.export(
            model, tokenizers.get(name, tiny_tokenizer()), root / str(index), "gguf", gguf=ANY_SIZE
        )
        / "model.gguf"
        for index, (name, model) in enumerate(models.items())
    ]
    made = answers(python, root, tokens(PROMPTS, 12).tolist(), [], files)
    return dict(zip(models, made, strict=True))


@pytest.mark.parametrize("name", [*MODELS, EMBEDDED])
def test_llama_cpp_writes_and_scores_what_the_model_does(models, answered, name) -> None:
    check_answers(models[name], tokens(PROMPTS, 12), answered[name])


def test_16_bits_and_8_bits_are_close(python: str, tmp_path: Path) -> None:
    model, prompts = without(tiny_llama_tied(**FIVE), PARTS), tokens(PROMPTS, 12)
    dtypes = {"float16": 0.05, "bfloat16": 0.3, "q8_0": 0.3}  # nats
    files = [
        sieve.export(
            model, tiny_tokenizer(), tmp_path / dtype, "gguf", gguf=GgufSettings(dtype=dtype)
        )
        / "model.gguf"
        for dtype in dtypes
    ]
    logprobs = model(prompts).logits.log_softmax(-1)[:, :-1]
    expected = logprobs.gather(2, prompts[:, 1:, None])[..., 0]
    made = answers(python, tmp_path, prompts.tolist(), [], files)
    for answer, largest in zip(made, dtypes.values(), strict=True):
        assert (torch.tensor(answer["logprobs"]) - expected).abs().max() < largest


def test_llama_cpp_gives_texts_the_tokens_of_transformers(python: str, tmp_path: Path) -> None:
    tokenizers = {kind: words(kind) for kind in TOKENIZERS}
    for kind in TOKENIZERS:
        used = {index for text in TASK for index in tokenizers[kind](text).input_ids}
        tokenizers[f"{kind}, cut"], _ = cut_tokenizer(tokenizers[kind], used)
    tokenizers["embedded"] = AutoTokenizer.from_pretrained(ASSETS / "embedded")
    files = [
        sieve.export(
            tiny_llama(vocab_size=len(tokenizer)), tokenizer, tmp_path / name, "gguf", gguf=ANY_SIZE
        )
        / "model.gguf"
        for name, tokenizer in tokenizers.items()
    ]
    made = answers(python, tmp_path, [], TEXTS, files)
    wrong = [
        (name, text, tokenizer(text).input_ids, ids)
        for (name, tokenizer), answer in zip(tokenizers.items(), made, strict=True)
        for text, ids in zip(TEXTS, answer["texts"], strict=True)
        if tokenizer(text).input_ids != ids
        # llama.cpp does not compose characters, which the tokenizer of Qwen does.
        and not (name.startswith("qwen2") and text != normalize("NFC", text))
    ]
    assert not wrong
