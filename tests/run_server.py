"""Runs `sieve.run` in forks of one process that has everything imported: a run takes a second.

One JSON request per line on stdin, `{"arguments", "folder", "kill", "kill_after", "file_size",
"ranks"}`; the answer on stdout is `{"status", "stdout", "stderr"}`. `kill` is `stage:moment`; the
moments of a stage are `begin`, `rename` (a file is written under its temporary name; `rename2`: the
second one) and `end` (all files are written). `calibrate:terminate` is SIGTERM amid the passes.
`kill` is also `name.jsonl:lines`, for a file that has that many lines. `kill_after` are seconds,
after which the run is killed wherever it is. `ranks` is the number of processes of a distributed
run.
"""

import json
import os
import resource
import signal
import socket
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

from hydra import compose, initialize_config_dir
from lightning.pytorch.utilities import rank_zero_only

import sieve.run
import sieve.runtime.artifacts
import sieve.stages  # so that the forks need not
from sieve.calibration.calibration import CalibrationModule
from sieve.conversion import CONF, register_resolvers
from sieve.stages import Run


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def killing_after(seconds: float | None, processes: list[int]) -> Iterator[None]:
    """Kill processes if the block takes longer."""

    def kill() -> None:
        for process in processes:
            with suppress(ProcessLookupError):  # Some may have ended.
                os.kill(process, signal.SIGKILL)

    if seconds is None:
        yield
        return
    timer = threading.Timer(seconds, kill)
    timer.start()
    yield
    timer.cancel()
    timer.join()  # A fork must not copy a thread.


def arm_at_line(name: str, lines: int) -> None:
    """Kill this process once a file of that name has that many lines on the disk."""
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        fsync(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}").resolve()
        if path.name == name and path.read_bytes().count(b"\n") == lines:
            die()

    patch("os.fsync", watched).start()


def die_at_rename(number: int) -> None:
    """Kill this process before its next renames, at the one with this number."""
    replace, calls = os.replace, count(1)

    def counted(*args: Any) -> None:
        if next(calls) == number:
            die()
        replace(*args)

    patch("sieve.runtime.artifacts.os.replace", counted).start()


def arm(stage: str, moment: str) -> None:
    """Kill this process at a moment of a stage."""
    if stage.endswith(".jsonl"):
        return arm_at_line(stage, int(moment))
    if moment == "terminate":
        step = CalibrationModule.predict_step

        def stopped(*args: Any) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            step(*args)

        patch.object(CalibrationModule, "predict_step", stopped).start()
        return None
    original = Run.stage

    @contextmanager
    def watched(self: Run, name: str, cached: bool = False) -> Iterator[None]:
        with original(self, name, cached):
            if name == stage and moment == "begin":
                die()
            if name == stage and moment.startswith("rename"):
                die_at_rename(int(moment.removeprefix("rename") or 1))
            yield
        if name == stage and moment == "end":
            die()

    patch.object(Run, "stage", watched).start()


def run(request: dict[str, Any], rank: int, port: int) -> None:
    """Run the command line in the fork, as one of `ranks` processes."""
    os.chdir(request["folder"])
    if request["kill"]:
        arm(*request["kill"].split(":"))
    if limit := request["file_size"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.argv = ["sieve", *request["arguments"]]
    if request["ranks"] > 1:
        # With LOCAL_RANK, Lightning takes this process as a rank and starts no other.
        os.environ |= {"LOCAL_RANK": str(rank), "MASTER_PORT": str(port)}
        rank_zero_only.rank = rank
    if rank > 0:  # Hydra's own files are written once.
        sys.argv += ["hydra.output_subdir=null", f"hydra.job.name=rank_{rank}"]
    sieve.run.main()


def start(request: dict[str, Any], output: int, errors: int, rank: int, port: int) -> int:
    """Fork a run that writes to two descriptors; returns its process id."""
    if child := os.fork():
        return child
    os.dup2(output, 1)
    os.dup2(errors, 2)
    status = 1
    try:
        run(request, rank, port)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except Exception:
        traceback.print_exc()
    finally:
        if "wandb" in sys.modules:  # Its service writes the rest.
            sys.modules["wandb"].teardown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Fork, wait, and report how the run ended: the first status that is not 0."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        files, port = (output.fileno(), errors.fileno()), free_port()
        children = [start(request, *files, rank, port) for rank in range(request["ranks"])]
        with killing_after(request["kill_after"], children):
            ends = [os.waitpid(child, 0)[1] for child in children]
        statuses = [os.waitstatus_to_exitcode(end) for end in ends]
        status = next((status for status in statuses if status), 0)
        for file in (output, errors):
            file.seek(0)
        texts = {"stdout": output.read().decode(), "stderr": errors.read().decode()}
        return {"status": status, **texts}


def free_port() -> int:
    """A port of this machine that no process uses."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def warm_up() -> None:
    """Do what every run would repeat: import packages, compile templates, find Hydra's plugins."""
    import sklearn.feature_extraction.text
    import sklearn.linear_model
    import sklearn.multiclass
    import sklearn.pipeline  # noqa: F401

    from sieve.report.templating import environment

    for template in environment().list_templates():
        environment().get_template(template)
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        compose("config", ["+task=jsonl"], return_hydra_config=True)


if __name__ == "__main__":
    warm_up()
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
