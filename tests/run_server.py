"""Runs `sieve.run` in forks of one process that has everything imported: a run takes a second.

One JSON request per line on stdin, `{"arguments", "folder", "kill", "file_size"}`; the answer on
stdout is `{"status", "stderr"}`. `kill` is `stage:moment`; the moments of a stage are `begin`,
`rename` (a file is written beside its place, not yet renamed) and `end` (all is written).
"""

import json
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import sieve.run
import sieve.runtime.artifacts
import sieve.stages  # so that the forks need not
from sieve.stages import Run


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(stage: str, moment: str) -> None:
    """Have this process killed at a moment of a stage."""
    original = Run.stage

    @contextmanager
    def watched(self: Run, name: str, cached: bool = False) -> Iterator[None]:
        with original(self, name, cached):
            if name == stage and moment == "begin":
                die()
            if name == stage and moment == "rename":
                patch("sieve.runtime.artifacts.os.replace", die).start()
            yield
        if name == stage and moment == "end":
            die()

    patch.object(Run, "stage", watched).start()


def run(request: dict[str, Any]) -> None:
    """The run itself, in the fork."""
    os.chdir(request["folder"])
    if request["kill"]:
        arm(*request["kill"].split(":"))
    if limit := request["file_size"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.argv = ["sieve", *request["arguments"]]
    sieve.run.main()


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Fork, wait, and tell how it ended."""
    with tempfile.TemporaryFile() as errors, open(os.devnull, "w") as nowhere:
        if (child := os.fork()) == 0:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(errors.fileno(), 2)
            status = 1
            try:
                run(request)
                status = 0
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else 1
            finally:
                if "wandb" in sys.modules:  # Its service writes the rest.
                    sys.modules["wandb"].teardown()
                sys.stderr.flush()
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        errors.seek(0)
        return {"status": status, "stderr": errors.read().decode()}


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
