"""vLLM writes and scores with an export what transformers does; `make test-vllm` runs this."""

import json
import os
import socket
import subprocess
import time
from functools import partial
from pathlib import Path

import httpx2 as httpx
import pytest
import torch
from exporting import check_answers, likeliest, pruned
from models import tiny_llama, tiny_mixtral, tiny_phi3, tiny_qwen3, tiny_tokenizer
from sieved import banked, mixed, tokens
from test_merged_head import pruned_with_ends
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import sieve
from sieve.config import QuantizationConfig
from sieve.quantization import quantize

pytestmark = pytest.mark.vllm
PROMPTS = 32
IN_8_BITS, PRUNED_HEAD = "llama, 8 bits", "llama, pruned head"
ROOMY = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}  # heads of 32
ROOMY |= {"head_dim": 32, "dtype": torch.float32}
WITHOUT_ATTENTION = (0.0,) * 4 + (0.6,) * 10  # in the first of two blocks
FIRST_DENSE, LAST_DENSE = (1.0,) * 7 + (0.5,) * 7, (0.5,) * 7 + (1.0,) * 7


def in_8_bits() -> PreTrainedModel:
    """A pruned model, all but the last three matrices in 8 bits."""
    model = tiny_llama(**ROOMY)
    bank = banked(model, storage="pivoted")
    sieve.apply(model, bank, mixed(bank))
    quantize(model, bank.names[:-3], QuantizationConfig("int8"), torch.float32)
    return model


MODELS = {
    # First, because vLLM remembers what it fuses in the modules of a class.
    "llama, first block dense": lambda: pruned(tiny_llama(**ROOMY), levels=FIRST_DENSE),
    "llama, pivoted": lambda: pruned(tiny_llama(**ROOMY), storage="pivoted"),
    "qwen3, plain": lambda: pruned(tiny_qwen3(**ROOMY)),
    "llama, last block dense": lambda: pruned(tiny_llama(**ROOMY), levels=LAST_DENSE),
    "mixtral": lambda: pruned(tiny_mixtral(**ROOMY), storage="pivoted"),
    IN_8_BITS: in_8_bits,
    PRUNED_HEAD: lambda: pruned_with_ends(partial(tiny_llama, **ROOMY), "both"),
    "phi3, whitened": lambda: pruned(tiny_phi3(**ROOMY), "whitened", storage="pivoted"),
}


@pytest.fixture(scope="module")
def python() -> str:
    """The Python of an environment with vLLM."""
    python = os.environ.get("SIEVE_VLLM")
    if not python:
        pytest.skip("SIEVE_VLLM does not name a Python with vLLM; make test-vllm sets one up")
    return python


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("exports")
    return {
        name: sieve.export(build(), tiny_tokenizer(), root / str(index), merge_head=True)
        for index, (name, build) in enumerate(MODELS.items())
    }


@pytest.fixture(scope="module")
def answers(python: str, folders: dict[str, Path]) -> dict[str, dict]:
    """What vLLM writes, by export."""
    found = subprocess.run([python, "-c", "import torchao"], capture_output=True)
    loadable = [name for name in folders if name != IN_8_BITS or not found.returncode]
    given = answers_of(python, [folders[name] for name in loadable])
    return dict(zip(loadable, given, strict=True))


def answers_of(python: str, folders: list[Path], devices: int = 1) -> list[dict]:
    """What vLLM writes with each folder, each on a number of devices."""
    prompts = folders[0].parent / "prompts.json"
    prompts.write_text(json.dumps(tokens(PROMPTS, 12).tolist()))
    script = Path(__file__).parents[1] / "vllm_answers.py"
    done = subprocess.run(
        [python, script, str(devices), prompts, *folders],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    [line] = [line for line in done.stdout.splitlines() if line.startswith("[{")]
    return json.loads(line)


def environment() -> dict[str, str]:
    """Of a process with vLLM on the CPU, in which Sieve cannot be imported from here."""
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    settings |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
    settings |= {"HF_HUB_OFFLINE": "1", "VLLM_ALLOW_INSECURE_SERIALIZATION": "1"}
    return {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | settings


@pytest.mark.parametrize("name", MODELS)
def test_vllm_writes_and_scores_what_transformers_does(
    folders: dict[str, Path], answers: dict[str, dict], name: str
) -> None:
    if name not in answers:
        pytest.skip("the environment of SIEVE_VLLM has no torchao")
    model = AutoModelForCausalLM.from_pretrained(folders[name], dtype=torch.float32).eval()
    check_answers(model, tokens(PROMPTS, 12), answers[name])


@pytest.mark.parametrize("name", MODELS)
def test_weights_take_no_more_memory_than_on_disk(
    folders: dict[str, Path], answers: dict[str, dict], name: str
) -> None:
    if name not in answers:
        pytest.skip("the environment of SIEVE_VLLM has no torchao")
    size = (folders[name] / "model.safetensors").stat().st_size
    assert answers[name]["bytes"] <= 1.1 * size


def test_two_devices_write_what_one_does(python: str, tmp_path: Path) -> None:
    model = tiny_llama(**ROOMY | {"num_key_value_heads": 2})
    bank = banked(model, storage="pivoted")
    sieve.apply(model, bank, mixed(bank, WITHOUT_ATTENTION))
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "export", storage="plain")
    assert AutoConfig.from_pretrained(folder).sieve["skipped"]
    [answer] = answers_of(python, [folder], devices=2)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    check_answers(model, tokens(PROMPTS, 12), answer)


def test_vllm_serves_an_export(python: str, folders: dict[str, Path]) -> None:
    folder, port = folders["llama, pivoted"], free_port()
    command = [
        python,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        folder,
        "--port",
        port,
    ]
    command += ["--trust-remote-code", "--model-impl", "transformers", "--enforce-eager"]
    command += ["--dtype", "float32", "--max-model-len", "64", "--served-model-name", "small"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompt = "the film is good"
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    expected = likeliest(model, ids, 8)[0, ids.shape[1] :]
    ask = {"model": "small", "prompt": prompt, "max_tokens": 8, "temperature": 0}
    ask |= {"ignore_eos": True, "return_token_ids": True}
    settings = environment()
    settings.pop("VLLM_ENABLE_V1_MULTIPROCESSING")
    with subprocess.Popen([*map(str, command)], env=settings) as server:
        try:
            answer = asked(f"http://localhost:{port}", ask, server)
        finally:
            server.terminate()
    assert answer["choices"][0]["token_ids"] == expected.tolist()


def asked(url: str, ask: dict[str, object], server: subprocess.Popen) -> dict:
    """The answer of a server that may still be starting."""
    for _ in range(300):
        assert server.poll() is None, "the server has ended"
        try:
            answer = httpx.post(f"{url}/v1/completions", json=ask, timeout=60)
            return answer.raise_for_status().json()
        except httpx.ConnectError:
            time.sleep(1)
    raise TimeoutError("the server did not start within five minutes")


def free_port() -> int:
    """A port that no process uses now."""
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]
