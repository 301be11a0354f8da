"""Save the return values of jobs, so that they survive if the sweeper is killed.

`returned/<job>.json` holds the overrides and the return value of a job, `failed/<job>.txt` the
traceback of a job that raised.
"""

import json
import os
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import CompactHydraException
from omegaconf import DictConfig

from ._files import plain, write

MAX_REASON = 600  # characters of an error message


class Recorder:
    """Wraps the application: saves its return value or its traceback to a file."""

    def __init__(self, function: Callable[[Any], Any], folder: Path) -> None:
        self.function, self.folder = function, folder.absolute()
        self.working_directory = Path.cwd()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Change to the working directory of the search, because workers may start elsewhere.

        Ray's workers do. The sweep directory and the application's paths may be relative.
        """
        self.__dict__.update(state)
        os.chdir(self.working_directory)

    def __call__(self, config: DictConfig) -> Any:
        """Run the job. If the application exits, this job fails and the search continues."""
        job = HydraConfig.get()
        _failed(self.folder, job.job.num).unlink(missing_ok=True)
        try:
            returned = self.function(config)
        except SystemExit as error:
            if _is_submitit_exit(error):
                raise  # Submitit resumes the job in another process.
            if isinstance(error.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from error  # Frameworks exit this way after Ctrl-C.
            raise RuntimeError(f"the application exited with {error.code!r}") from error
        except Exception as error:
            if (lost := _submitit_error(error)) is not None:
                raise lost from None
            write(_failed(self.folder, job.job.num), traceback.format_exc())
            raise
        try:
            text = json.dumps({"overrides": list(job.overrides.task), "returned": plain(returned)})
        except (TypeError, ValueError, RuntimeError):
            return returned  # Values that JSON cannot store are not saved.
        write(_path(self.folder, job.job.num), text)
        return returned


def recorded(folder: Path, job: int, overrides: Iterable[str]) -> tuple[bool, Any]:
    """Whether a job with these overrides (and maybe more) has returned, and its return value."""
    path = _path(folder, job)
    if not path.exists():
        return False, None
    record = json.loads(path.read_text(encoding="utf-8"))
    return set(overrides) <= set(record["overrides"]), record["returned"]


def is_recorded(folder: Path, job: int) -> bool:
    """Whether the return value of a job has been saved."""
    return _path(folder, job).exists()


def failure(folder: Path, job: int) -> str:
    """The path of a job's traceback in parentheses; empty if there is none."""
    path = _failed(folder, job)
    return f" (traceback in {path})" if path.exists() else ""


def outcome(job: JobReturn) -> tuple[Any, str]:
    """The return value of a job as plain containers, and its error message; one of them is empty.

    Read `_return_value`, because the property `return_value` prints the error before it raises it.
    """
    if job.status == JobStatus.COMPLETED:
        return plain(job.return_value), ""
    return None, reason(job._return_value)


def is_lost(job: JobReturn) -> bool:
    """Whether the launcher ended the job early, so that it may be launched again."""
    return job.status != JobStatus.COMPLETED and _submitit_error(job._return_value) is not None


def _submitit_error(error: BaseException | None) -> BaseException | None:
    """The exception of submitit behind an error, such as a timeout; None if there is none."""
    while error is not None and not type(error).__module__.startswith("submitit."):
        error = error.__context__
    return error


def _is_submitit_exit(error: SystemExit) -> bool:
    """Whether submitit raised the exit, which it does when it requeues a preempted job."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return bool(frames) and str(frames[-1][0].f_globals["__name__"]).startswith("submitit.")


def reason(error: BaseException) -> str:
    """An error as one line. The middle of a long message, such as a job's log, is left out.

    Messages of CompactHydraException are written for users and get no class name.
    """
    text = " ".join(str(error).split())
    if len(text) > MAX_REASON:
        text = f"{text[: MAX_REASON // 2]} ... {text[-MAX_REASON // 2 :]}"
    if isinstance(error, CompactHydraException) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _path(folder: Path, job: int) -> Path:
    return folder / "returned" / f"{job}.json"


def _failed(folder: Path, job: int) -> Path:
    return folder / "failed" / f"{job}.txt"
