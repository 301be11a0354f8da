"""The server in another process: many clients, a stop under load, a fuzzer, bad arguments."""

import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2 as httpx
import pytest
from served import offline, rows_of, serving

from sieve.serve.__main__ import main


@pytest.mark.slow
def test_sixteen_clients_get_the_offline_answers(exported: Path) -> None:
    rows = rows_of(400)
    expected = offline(exported, rows)
    with serving(exported) as (_, address), httpx.Client(base_url=address, timeout=60) as client:

        def ask(row: dict[str, str]) -> int:
            response = client.post("/predict", json=row)
            assert response.status_code == 200, response.text
            return int(response.json()["answers"][0]["index"])

        with ThreadPoolExecutor(16) as clients:
            assert list(clients.map(ask, rows)) == expected


@pytest.mark.slow
def test_a_stopping_server_answers_every_accepted_request(exported: Path) -> None:
    rows = rows_of(400)
    expected = offline(exported, rows)
    answered: dict[int, int] = {}
    refused: list[int] = []
    enough = threading.Event()
    # Each request opens a connection.
    limits = httpx.Limits(max_keepalive_connections=0)
    with (
        serving(exported) as (server, address),
        httpx.Client(base_url=address, timeout=60, limits=limits) as client,
    ):

        def ask(number: int) -> None:
            try:
                response = client.post("/predict", json=rows[number])
            except httpx.TransportError:
                refused.append(number)
                return
            assert response.status_code == 200, response.text
            answered[number] = int(response.json()["answers"][0]["index"])
            if len(answered) == 50:
                enough.set()

        with ThreadPoolExecutor(16) as clients:
            futures = [clients.submit(ask, number) for number in range(len(rows))]
            assert enough.wait(60)
            server.send_signal(signal.SIGTERM)
            for future in futures:
                future.result()
        server.wait(60)
        assert server.stderr
        stderr = server.stderr.read()
    assert "Traceback" not in stderr
    # Clients have an answer to each accepted row; the server accepted no others.
    assert f"stopped: {len(answered)} rows accepted, 0 left" in stderr
    assert answered == {number: expected[number] for number in answered}
    assert len(answered) + len(refused) == len(rows) and 50 <= len(answered) < len(rows)


@pytest.mark.slow
def test_schemathesis_finds_no_failure(exported: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "schemathesis.cli",
        "run",
        "--max-examples=40",
        "--seed=0",
        "--generation-database=none",
    ]
    with serving(exported) as (_, address):
        done = subprocess.run(
            [*command, f"{address}/openapi.json"], cwd=tmp_path, capture_output=True, text=True
        )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["nowhere", "--port", "0"], 1, "there is no nowhere, expected the folder of a run"),
        (["{folder}", "--device", "gpu9"], 1, "--device is 'gpu9', which torch cannot use here"),
        (
            ["{folder}", "--host", "no.such.host.invalid"],
            1,
            "cannot listen on no.such.host.invalid",
        ),
        (
            ["{folder}", "--max-queue", "9"],
            1,
            "expected at most --max-queue, which is 9",
        ),
        (["{folder}", "--port", "70000"], 2, "--port: got '70000', expected 0 to 65535"),
        (["{folder}", "--max-rows", "0"], 2, "--max-rows: got '0', expected a whole number"),
        ([], 2, "the following arguments are required: folder"),
    ],
)
def test_bad_arguments_get_one_sentence(
    arguments: list[str],
    status: int,
    sentence: str,
    exported: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([word.format(folder=exported) for word in arguments])
    assert ended.value.code == status
    stderr = capsys.readouterr().err + caplog.text
    assert sentence in stderr and "Traceback" not in stderr


def test_ctrl_c_ends_the_server_with_status_130(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("uvicorn.Server.run", stopped)
    with pytest.raises(SystemExit) as ended:
        main([str(exported), "--port", "0"])
    assert ended.value.code == 130


def test_a_used_port_gets_one_sentence(exported: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit) as ended:
        main([str(exported), "--port", str(taken.getsockname()[1])])
    assert ended.value.code == 1
    assert "Address already in use); choose another --host or --port." in caplog.text


def test_a_missing_package_gets_one_sentence(
    exported: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(SystemExit) as ended:
        main([str(exported)])
    assert ended.value.code == 1
    assert "serving needs uvicorn; run pip install 'sieve-llm[serve]'." in caplog.text
