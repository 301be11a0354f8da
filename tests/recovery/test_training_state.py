"""The state of a training: one file, or one of each rank, and the same when it is read."""

from pathlib import Path

import pytest
import torch
from ranked import on_ranks

from sieve.recovery.training_state import load_state, save_state, save_state_together

HEADER = {"format": 1, "best": [0.5, -1.25]}


def state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = {f"now|{i}": torch.randn(4, i + 1, generator=generator) for i in range(8)}
    return found | {"0|step": torch.tensor(3.0)}


def saved(folder: Path) -> None:
    save_state_together(folder, state(), HEADER)
    save_state_together(folder, state(), HEADER)  # The second replaces the first.


def check(path: Path) -> None:
    tensors, header = load_state(path)
    assert header == HEADER
    assert tensors.keys() == state().keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in state().items())


@pytest.mark.slow
def test_ranks_write_a_part_each_without_pickle(tmp_path: Path) -> None:
    on_ranks(saved, 4, tmp_path / "parts")
    check(tmp_path / "parts")
    files = sorted(path.name for path in (tmp_path / "parts").iterdir())
    assert len(files) == 5 and files.pop(0) == "header.json"
    assert all(name.endswith(".safetensors") for name in files)
    assert [path.name for path in tmp_path.iterdir()] == ["parts"]


def test_one_process_writes_one_file(tmp_path: Path) -> None:
    save_state(tmp_path / "one", state(), HEADER)
    check(tmp_path / "one")
    assert (tmp_path / "one").is_file()


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    on_ranks(saved, 2, tmp_path / "parts")
    part = next((tmp_path / "parts").glob("*.safetensors"))
    part.write_bytes(part.read_bytes()[:-3])
    with pytest.raises(ValueError, match=f"{part.name} is damaged"):
        load_state(tmp_path / "parts")
