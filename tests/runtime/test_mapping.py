"""Mapped files give the tensors of safetensors, and their pages can be dropped."""

import errno
import gc
import sys
from pathlib import Path

import pytest
import torch
from models import tiny_llama
from safetensors import safe_open
from safetensors.torch import save_file
from sieved import banked, uniform
from torch import Tensor

from sieve.bank.bank import Bank
from sieve.bank.switch import Switch
from sieve.runtime import mapping
from sieve.runtime.mapping import MappedFile, Spool, drop_pages, write_tensors

NUMBERS = 2**20


def mapped_kib(path: Path) -> int:
    """Pages of a file in the memory of this process, in KiB."""
    own, kib = False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            own = line.endswith(str(path))
        elif own and line.startswith("Rss:"):
            kib += int(line.split()[1])
    return kib


@pytest.fixture
def stored(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    tensors = {
        "long": torch.randn(NUMBERS),
        "half": torch.randn(3, 5).half(),
        "bfloat16": torch.randn(7).bfloat16(),
        "exact": torch.randn(2, 3, 4).double(),
        "empty": torch.empty(0, 6),
        "scalar": torch.tensor(2.5),
    }
    save_file(tensors, tmp_path / "file.safetensors", {"written": "here"})
    return tmp_path / "file.safetensors", tensors


def test_tensors_are_the_stored_ones_also_after_their_pages_are_dropped(
    stored: tuple[Path, dict[str, Tensor]],
) -> None:
    path, tensors = stored
    file = MappedFile(path)
    assert set(file.keys()) == set(tensors)
    views = {name: file.get_tensor(name) for name in tensors}
    for _ in range(2):
        for name, tensor in tensors.items():
            assert views[name].dtype == tensor.dtype and views[name].equal(tensor)
        drop_pages()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_dropped_pages_are_no_longer_in_memory(stored: tuple[Path, dict[str, Tensor]]) -> None:
    path, tensors = stored
    long = MappedFile(path).get_tensor("long")
    assert long.equal(tensors["long"])
    assert mapped_kib(path) >= 4 * NUMBERS // 1024
    drop_pages()
    assert mapped_kib(path) == 0
    assert long[NUMBERS // 2] == tensors["long"][NUMBERS // 2]
    assert mapped_kib(path) > 0


@pytest.mark.slow
def test_a_file_is_unmapped_with_its_last_view(stored: tuple[Path, dict[str, Tensor]]) -> None:
    gc.collect()
    before = len(mapping._mapped)
    view = MappedFile(stored[0]).get_tensor("half")
    gc.collect()
    assert len(mapping._mapped) == before + 1
    del view
    gc.collect()
    assert len(mapping._mapped) == before


def test_a_system_that_cannot_drop_pages_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pages:
        """A map of a system without `madvise`."""

    monkeypatch.setattr(mapping, "_mapped", {Pages()})
    drop_pages()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_pivoting_for_a_streamed_model_leaves_no_page_of_a_bank_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sieve.bank.switch.is_offloaded", lambda model: True)
    model, path = tiny_llama(), tmp_path / "bank.safetensors"
    banked(model, storage="pivoted").save(path)
    bank = Bank.load(path)
    with Switch(model, bank).to(uniform(bank, 0.3)):
        assert mapped_kib(path) == 0


def test_a_file_that_is_written_tensor_by_tensor_is_one_of_safetensors(
    stored: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    tensors = stored[1] | {"across": torch.randn(4, 3).T, "part": torch.randn(5, 6)[:, :2]}
    write_tensors(tmp_path / "own", tensors, {"a": "ä"})
    with safe_open(tmp_path / "own", "pt") as file:
        assert file.metadata() == {"a": "ä"} and set(file.keys()) == tensors.keys()
        for name, tensor in tensors.items():
            read = file.get_tensor(name)
            assert read.equal(tensor) and read.dtype == tensor.dtype, name
    mapped = MappedFile(tmp_path / "own")
    assert all(mapped.get_tensor(name).equal(tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("drop", [False, True])
def test_pages_are_dropped_while_a_bank_is_saved_only_if_asked(
    drop: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drops: list[None] = []
    monkeypatch.setattr("sieve.bank.files.drop_pages", lambda: drops.append(None))
    bank = banked(tiny_llama())
    bank.save(tmp_path / "bank", drop)
    assert len(drops) == drop * 4 * len(bank.names)  # U, V, energies and the mean of each


def test_spooled_tensors_are_equal_also_after_their_pages_are_dropped(
    stored: tuple[Path, dict[str, Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapping, "CHUNK", 2**10)
    (folder := tmp_path / "spool").mkdir()
    tensors = stored[1] | {"order": torch.arange(9, dtype=torch.int32), "view": torch.rand(4, 6).T}
    spool = Spool(folder)
    for tensor in tensors.values():
        first = spool.put(tensor)
        second = spool.put(tensor + 1)  # Of a page that may be in memory already.
        for _ in range(2):
            assert first.equal(tensor) and second.equal(tensor + 1)
            drop_pages()
    assert not list(folder.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_spooled_tensors_share_files_which_go_with_their_views(tmp_path: Path) -> None:
    def opened() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    gc.collect()
    before, spool = opened(), Spool(tmp_path)
    views = [spool.put(torch.rand(5)) for _ in range(100)]
    assert opened() - before <= 2  # The file and its map.
    del spool, views
    gc.collect()
    assert opened() == before


def test_a_full_disk_is_named_by_a_spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sieve.runtime.mapping.tempfile.TemporaryFile", full)
    with pytest.raises(OSError, match=rf"{tmp_path} \(No space left on device\).*paths.cache_dir"):
        Spool(tmp_path).put(torch.rand(2))
