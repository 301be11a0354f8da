"""Work done by several gloo ranks on the CPU, in forks of a process that has all imported."""

import contextlib
import io
import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from transformers import PreTrainedModel

import sieve.stages  # noqa: F401  # so that the forks need not
from sieve.distributed.sharding import shard

LIMIT_S = 240.0  # for all ranks; half of it for a rank that waits for another one


def on_ranks(
    work: Callable[..., Any], world: int, *given: Any, limit_s: float = LIMIT_S
) -> list[Any]:
    """What `work(*given)` returns on every rank.

    AssertionError with the tracebacks of failed ranks, and the ranks that took longer than
    `limit_s`, which are killed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with tempfile.TemporaryDirectory() as folder, on_path():
        ends, ranks = [], []
        for rank in range(world):
            receives, sends = context.Pipe(duplex=False)
            place = (rank, world, f"file://{folder}/store")
            task = (place, sends, limit_s / 2, work, given)
            ranks.append(context.Process(target=_rank, args=task))
            ranks[-1].start()
            sends.close()
            ends.append(receives)
        started = [end.poll(LIMIT_S) for end in ends]  # The first forks wait for imports.
        assert all(started), "a rank did not start"
        deadline = time.monotonic() + limit_s
        answers = [_received(rank, end, deadline) for rank, end in enumerate(ends)]
        for process in ranks:
            process.kill()
            process.join()
    failures = [text for failed, text in answers if failed]
    assert not failures, "\n".join(failures)
    return [result for _, result in answers]


@contextlib.contextmanager
def on_path() -> Any:
    """Let the server of forks find this folder's modules."""
    before = os.environ.get("PYTHONPATH")
    here = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (here, before)))
    try:
        yield
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


def _received(rank: int, end: Connection, deadline: float) -> tuple[bool, Any]:
    """Whether a rank failed, and its result or its traceback."""
    try:
        end.recv_bytes()  # It has started.
        if not end.poll(max(0.0, deadline - time.monotonic())):
            return True, f"rank {rank} was still at work at the limit; does it join every pass?"
        answer: tuple[bool, Any] = torch.load(io.BytesIO(end.recv_bytes()), weights_only=False)
        return answer
    except EOFError:
        return True, f"rank {rank} ended without an answer"


def _rank(
    place: tuple[int, int, str],
    sends: Connection,
    patience_s: float,
    work: Callable[..., Any],
    given: Any,
) -> None:
    torch.set_num_threads(1)
    rank, world, store = place
    sends.send_bytes(b"started")
    timeout = timedelta(seconds=patience_s)
    distributed.init_process_group(
        "gloo", init_method=store, rank=rank, world_size=world, timeout=timeout
    )
    try:
        answer = False, work(*given)
    except BaseException:
        answer = True, f"rank {rank}: {traceback.format_exc()}"
    written = io.BytesIO()
    torch.save(answer, written)
    sends.send_bytes(written.getvalue())
    os._exit(0)


def sharded(model: PreTrainedModel, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The same model, shared out over the ranks."""
    shard(model, init_device_mesh("cpu", (distributed.get_world_size(),)), dtype)
    return model


def position() -> tuple[int, int]:
    """This rank, and how many there are."""
    return distributed.get_rank(), distributed.get_world_size()
