"""Work done by several gloo ranks on the CPU, in forks of a process that has all imported."""

import contextlib
import io
import multiprocessing
import os
import tempfile
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


def on_ranks(work: Callable[..., Any], world: int, *given: Any) -> list[Any]:
    """What `work(*given)` returns on every rank; AssertionError with the traceback of one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with tempfile.TemporaryDirectory() as folder, on_path():
        ends, ranks = [], []
        for rank in range(world):
            receives, sends = context.Pipe(duplex=False)
            place = (rank, world, f"file://{folder}/store")
            ranks.append(context.Process(target=_rank, args=(place, sends, work, given)))
            ranks[-1].start()
            sends.close()
            ends.append(receives)
        found = [_received(end) for end in ends]
        for rank in ranks:
            rank.join()
    failures = [text for failed, text in found if failed]
    assert not failures, "\n".join(failures)
    return [result for _, result in found]


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


def _received(end: Connection) -> tuple[bool, Any]:
    try:
        found: tuple[bool, Any] = torch.load(io.BytesIO(end.recv_bytes()), weights_only=False)
        return found
    except EOFError:
        return True, "a rank ended without a word"


def _rank(
    place: tuple[int, int, str], sends: Connection, work: Callable[..., Any], given: Any
) -> None:
    torch.set_num_threads(1)
    rank, world, store = place
    distributed.init_process_group(
        "gloo", init_method=store, rank=rank, world_size=world, timeout=timedelta(minutes=5)
    )
    try:
        found = False, work(*given)
    except BaseException:
        found = True, f"rank {rank}: {traceback.format_exc()}"
    written = io.BytesIO()
    torch.save(found, written)
    sends.send_bytes(written.getvalue())
    os._exit(0)


def sharded(model: PreTrainedModel, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The same model, shared out over the ranks."""
    shard(model, init_device_mesh("cpu", (distributed.get_world_size(),)), dtype)
    return model


def position() -> tuple[int, int]:
    """This rank, and how many there are."""
    return distributed.get_rank(), distributed.get_world_size()
