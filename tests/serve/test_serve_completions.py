"""The server of transformers answers /v1/completions with a factorized export."""

import sys
from pathlib import Path

import httpx2 as httpx
import pytest
import torch
import uvicorn
from fastapi.testclient import TestClient

import sieve


@pytest.mark.slow
def test_completions_equal_generate(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai", reason="transformers serves with packages of its own")
    from sieve.serve.completions import main

    body = {"model": str(exported), "prompt": "a good movie", "max_tokens": 6}
    responses: list[httpx.Response] = []

    def run(server: uvicorn.Server) -> None:
        with TestClient(server.config.app) as client:
            responses.append(client.post("/v1/completions", json=body))

    monkeypatch.setattr("uvicorn.Server.run", run)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setenv("HF_HUB_DISABLE_UPDATE_CHECK", "1")
    with pytest.raises(SystemExit) as end:
        main([str(exported), "--trust-remote-code", "--device", "cpu", "--dtype", "float32"])
    assert end.value.code == 0
    [response] = responses
    assert response.status_code == 200, response.text
    model, tokenizer = sieve.load(exported)
    prompt = tokenizer("a good movie", return_tensors="pt")
    with torch.no_grad():
        ids = model.generate(**prompt, max_new_tokens=6, do_sample=False)
    expected = tokenizer.decode(ids[0, prompt.input_ids.shape[1] :], skip_special_tokens=True)
    [choice] = response.json()["choices"]
    assert choice["text"] == expected and expected
