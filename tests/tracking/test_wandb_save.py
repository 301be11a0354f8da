"""`python -m sieve.tracking.dashboards` sends nothing without --save, and says what went wrong."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sieve.tracking import dashboards


def test_without_save_the_network_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network is asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("wandb.login", refuse)
    assert dashboards.main(["--entity", "me", "--project", "pans", "--out", str(tmp_path)]) == 0
    written = sorted(path.stem for path in tmp_path.iterdir())
    assert written == sorted(dashboards.build("me", "pans"))
    assert len(capsys.readouterr().out.splitlines()) == len(written)
    body = json.loads((tmp_path / "report-recovery.json").read_text())
    assert body["project"] == {"name": "pans", "entityName": "me"}
    assert dashboards.main(["--entity", "me"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == set(written)


def test_a_failed_upload_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("wandb.login", lambda prompt: False)
    assert dashboards.main(["--entity", "me", "--save"]) == 1
    assert capsys.readouterr().err == (
        "The dashboards could not be uploaded: no key; run `wandb login`, or set WANDB_API_KEY.\n"
    )
    monkeypatch.setattr("wandb.login", lambda prompt: True)

    def refuse(*_: Any) -> None:
        raise ValueError("permission denied.\nand a page of details")

    monkeypatch.setattr("wandb_workspaces.workspaces.Workspace.save", refuse)
    assert dashboards.main(["--entity", "me", "--save"]) == 1
    said = capsys.readouterr()
    assert said.err == "The dashboards could not be uploaded: permission denied.\n"
    assert said.out == ""


def test_save_uploads_all_dashboards_and_prints_their_addresses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept: list[str] = []
    monkeypatch.setattr("wandb.login", lambda prompt: True)
    for kind in (dashboards.ws.Workspace, dashboards.wr.Report):
        monkeypatch.setattr(kind, "save", lambda self: kept.append(type(self).__name__))
        monkeypatch.setattr(kind, "url", property(lambda self: f"https://{len(kept)}"))
    assert dashboards.main(["--entity", "me", "--save"]) == 0
    assert kept == ["Workspace"] * len(dashboards.CONTENT["views"]) + ["Report"] * len(
        dashboards.CONTENT["reports"]
    )
    assert capsys.readouterr().out.split() == [f"https://{i + 1}" for i in range(len(kept))]


def test_without_the_package_one_sentence_says_what_to_install() -> None:
    program = """if True:
        import runpy, sys
        sys.modules["wandb_workspaces"] = None
        runpy.run_module("sieve.tracking.dashboards", run_name="__main__")
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        1,
        "dashboards need wandb-workspaces; run pip install 'sieve-llm[dashboard]'.\n",
    )
