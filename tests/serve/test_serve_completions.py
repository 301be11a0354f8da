"""The server of transformers answers /v1/completions with a factorized export."""

import sys
from pathlib import Path

import httpx2 as httpx
import pytest
import torch
import uvicorn
from fastapi.testclient import TestClient

import sieve
from sieve.serve import completions


@pytest.mark.slow
def test_a_folder_of_a_run_stands_for_its_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    exported = run / "export"
    for folder in (run, other):
        (folder / "export").mkdir(parents=True)
        (folder / "export" / "task.json").write_text("{}")
    commands: list[list[str]] = []
    monkeypatch.setattr("transformers.cli.transformers.main", lambda: commands.append(sys.argv))
    monkeypatch.setattr(sys, "argv", sys.argv)
    for folder in (run, exported):
        completions.main([str(folder), "--port", "1", "gpt2"])
    assert commands == [["transformers", "serve", str(exported), "--port", "1", "gpt2"]] * 2
    with pytest.raises(SystemExit) as end:
        completions.main([str(tmp_path)])
    assert end.value.code == 1 and "has the exports of 2 runs" in caplog.text


def test_a_model_that_is_not_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing() -> None:
        raise OSError("Repo id must be a name: '/nowhere'\nmore")

    monkeypatch.setattr("transformers.cli.transformers.main", missing)
    monkeypatch.setattr(sys, "argv", sys.argv)
    with pytest.raises(SystemExit):
        completions.main(["/nowhere"])
    assert caplog.messages == ["Repo id must be a name: '/nowhere'"]


@pytest.mark.slow
def test_completions_equal_generate(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai", reason="transformers serves with packages of its own")
    body = {"model": str(exported), "prompt": "a good movie", "max_tokens": 6}
    responses: list[httpx.Response] = []

    def run(server: uvicorn.Server) -> None:
        with TestClient(server.config.app) as client:
            responses.append(client.post("/v1/completions", json=body))

    monkeypatch.setattr("uvicorn.Server.run", run)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setenv("HF_HUB_DISABLE_UPDATE_CHECK", "1")
    with pytest.raises(SystemExit) as end:
        completions.main(
            [str(exported), "--trust-remote-code", "--device", "cpu", "--dtype", "float32"]
        )
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
