"""Hidden states come back as they were put, from disk and from memory."""

import errno
from pathlib import Path

import pytest
import torch

from sieve.streaming.hidden_states import hidden_states

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("on_disk", [True, False])
def test_states_come_back_as_they_were_put(
    on_disk: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    states = torch.randn(2, 5, 4).to(dtype)
    with hidden_states(tmp_path if on_disk else None) as hidden:
        hidden.put(0, 0, states)
        hidden.put(0, 1, states[:1, :2])
        hidden.put(0, 0, states + 1)  # In place of the older ones.
        assert torch.equal(hidden.get(0, 0, CPU), states + 1)
        assert torch.equal(hidden.get(0, 1, CPU), states[:1, :2])
        hidden.drop(0)
        with pytest.raises(KeyError):
            hidden.get(0, 0, CPU)
    assert list(tmp_path.iterdir()) == []


def test_states_in_memory_are_copies() -> None:
    states = torch.zeros(1, 2, 3)
    with hidden_states() as hidden:
        hidden.put(0, 0, states)
        states += 1
        hidden.get(0, 0, CPU).add_(1)
        assert hidden.get(0, 0, CPU).sum() == 0


def test_a_full_disk_is_said_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with (
        pytest.raises(OSError, match=r"No space left.*calibration.hidden=memory"),
        hidden_states(tmp_path) as hidden,
    ):
        monkeypatch.setattr(hidden, "_path", full)
        hidden.put(0, 0, torch.zeros(1, 1, 1))
    assert list(tmp_path.iterdir()) == []
