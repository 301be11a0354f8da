"""What jobs returned, on disk: it outlives the sweeper, which may be killed before it has read it.

`returned/<job>.json` holds a job's overrides and what it returned; `failed/<job>.txt` the traceback
of one that raised.
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

LONGEST = 600  # characters of a reason


class Recorder:
    """The application's function, with a file for what it returned or raised."""

    def __init__(self, function: Callable[[Any], Any], folder: Path) -> None:
        self.function, self.folder = function, folder.absolute()
        self.here = Path.cwd()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Arrive in a worker, which may have been started in another folder, as Ray's are.

        The folders of jobs, and the application's own paths, may be relative to the search's.
        """
        self.__dict__.update(state)
        os.chdir(self.here)

    def __call__(self, config: DictConfig) -> Any:
        """Run the job. An exit of the application is an error of this job, not of the search."""
        job = HydraConfig.get()
        _failed(self.folder, job.job.num).unlink(missing_ok=True)
        try:
            returned = self.function(config)
        except SystemExit as error:
            if _is_launchers(error):
                raise  # The job goes on in another process.
            if isinstance(error.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from error  # Frameworks end so on Ctrl-C.
            raise RuntimeError(f"the application exited with {error.code!r}") from error
        except Exception as error:
            if (lost := _of_submitit(error)) is not None:
                raise lost from None
            write(_failed(self.folder, job.job.num), traceback.format_exc())
            raise
        try:
            text = json.dumps({"overrides": list(job.overrides.task), "returned": plain(returned)})
        except (TypeError, ValueError, RuntimeError):
            return returned  # Only what is JSON can be found again.
        write(_path(self.folder, job.job.num), text)
        return returned


def recorded(folder: Path, job: int, overrides: Iterable[str]) -> tuple[bool, Any]:
    """Whether a job with these overrides, and maybe others, has returned before, and what."""
    path = _path(folder, job)
    if not path.exists():
        return False, None
    record = json.loads(path.read_text(encoding="utf-8"))
    return set(overrides) <= set(record["overrides"]), record["returned"]


def is_recorded(folder: Path, job: int) -> bool:
    """Whether a job has returned, as far as its file tells."""
    return _path(folder, job).exists()


def failure(folder: Path, job: int) -> str:
    """Where the traceback of a job is, for the end of a sentence; empty where there is none."""
    path = _failed(folder, job)
    return f" (traceback in {path})" if path.exists() else ""


def outcome(job: JobReturn) -> tuple[Any, str]:
    """What a job returned, as plain containers, and why where it raised.

    Not by `return_value`, which writes to the terminal before it raises.
    """
    if job.status == JobStatus.COMPLETED:
        return plain(job.return_value), ""
    return None, reason(job._return_value)


def is_lost(job: JobReturn) -> bool:
    """Whether a job came back because its launcher had to end it, and may be launched again."""
    return job.status != JobStatus.COMPLETED and _of_submitit(job._return_value) is not None


def _of_submitit(error: BaseException | None) -> BaseException | None:
    """What submitit raised in a job whose time is over, itself or under what was made of it."""
    while error is not None and not type(error).__module__.startswith("submitit."):
        error = error.__context__
    return error


def _is_launchers(error: SystemExit) -> bool:
    """Whether submitit exits, as it does before a preempted job goes back into the queue."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return bool(frames) and str(frames[-1][0].f_globals["__name__"]).startswith("submitit.")


def reason(error: BaseException) -> str:
    """An error as one line, its middle left out where it is long, as with the log of a lost job.

    The kind is left out where the text was written for the user.
    """
    text = " ".join(str(error).split())
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
    if isinstance(error, CompactHydraException) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _path(folder: Path, job: int) -> Path:
    return folder / "returned" / f"{job}.json"


def _failed(folder: Path, job: int) -> Path:
    return folder / "failed" / f"{job}.txt"
