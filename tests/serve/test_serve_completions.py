"""transformers' own server answers /v1/completions with a factorized export."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2 as httpx
import pytest
import torch

import sieve


@pytest.mark.slow
def test_completions_are_those_of_generate(exported: Path) -> None:
    pytest.importorskip("openai", reason="transformers serves with packages of its own")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [
            sys.executable, "-m", "sieve.serve.completions", str(exported), "--trust-remote-code",
            "--device", "cpu", "--dtype", "float32", "--host", "127.0.0.1", "--port", str(port),
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    try:
        for _ in range(600):
            try:
                if httpx.get(f"{address}/health").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.1)
        body = {"model": str(exported), "prompt": "a good movie", "max_tokens": 6}
        response = httpx.post(f"{address}/v1/completions", json=body, timeout=120)
    finally:
        server.kill()
        server.wait()
    assert response.status_code == 200, response.text
    model, tokenizer = sieve.load(exported)
    given = tokenizer("a good movie", return_tensors="pt")
    with torch.no_grad():
        ids = model.generate(**given, max_new_tokens=6, do_sample=False)
    wanted = tokenizer.decode(ids[0, given.input_ids.shape[1] :], skip_special_tokens=True)
    [choice] = response.json()["choices"]
    assert choice["text"] == wanted and wanted
