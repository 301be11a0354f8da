"""The directory of an export: which paths are accepted, and what a failure leaves."""

import pytest
from models import tiny_gpt2, tiny_llama, tiny_tokenizer

import sieve


def test_an_older_export_is_replaced_as_a_whole(tmp_path):
    folder = sieve.export(tiny_gpt2(), tiny_tokenizer(), tmp_path / "export")
    (folder / "stale.txt").write_text("old")
    sieve.export(tiny_llama(), tiny_tokenizer(), folder)
    assert not (folder / "stale.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def refused(path):
    """The message with which a path for an export is refused."""
    with pytest.raises(ValueError) as caught:
        sieve.export(tiny_llama(), tiny_tokenizer(), path)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    return message


def test_a_directory_with_other_files_is_not_replaced(tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years")
    assert "contains thesis.txt and no config.json" in refused(tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    assert "contains thesis.txt and no config.json" in refused(".")
    assert (tmp_path / "home" / "thesis.txt").read_text() == "years"
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_a_file_where_a_directory_is_needed_is_named_and_kept(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "export", tmp_path / "file" / "a" / "b"):
        assert f"{tmp_path / 'file'} is a file, expected a directory" in refused(path)
    assert (tmp_path / "file").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_directory_without_write_permission_is_named(tmp_path, monkeypatch):
    # Permissions do not stop root.
    monkeypatch.setattr("os.access", lambda *_: False)
    assert f"{tmp_path} is not writable" in refused(tmp_path / "a" / "export")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_keeps_the_older_one(tmp_path, monkeypatch):
    tokenizer = tiny_tokenizer()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tokenizer, "save_pretrained", full)
    folder = sieve.export(tiny_llama(), tiny_tokenizer(), tmp_path / "export")
    before = (folder / "model.safetensors").read_bytes()
    for format in ("factorized", "dense"):
        with pytest.raises(OSError, match="could not be written .No space left on device"):
            sieve.export(tiny_gpt2(), tokenizer, folder, format)
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    assert (folder / "model.safetensors").read_bytes() == before


def test_an_empty_directory_a_new_path_and_a_path_below_home_are_accepted(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "deep" / "er", "~/small"):
        assert (sieve.export(tiny_llama(), tiny_tokenizer(), path) / "config.json").is_file()
    assert (tmp_path / "small" / "config.json").is_file()
