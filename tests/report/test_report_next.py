"""The commands that a report offers next name the run's own export."""

import shlex
from pathlib import Path
from typing import Any

import pytest

from sieve.report import write_report
from sieve.report.next_steps import next_steps
from sieve.report.page import render_page
from sieve.report.result import read

Result = dict[str, Any]


def commands(result: Result, folder: Path | None, form: str, server: str = "") -> list[str]:
    result["export"] = {"format": form, "server": server}
    return [step.command for step in next_steps(read(result), folder)]


def test_an_export_is_loaded_served_and_asked(result: Result, tmp_path: Path) -> None:
    load, serve, predict = commands(result, tmp_path, "factorized", "sieve.serve")
    assert load.endswith(f'sieve.load("{tmp_path}/export")')
    assert shlex.split(serve) == ["python", "-m", "sieve.serve", f"{tmp_path}/export"]
    assert shlex.split(predict)[2:] == ["sieve.predict", f"{tmp_path}/export", "rows.csv"]


def test_paths_in_the_current_folder_are_relative_and_spaces_are_quoted(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    load, serve, _ = commands(result, tmp_path / "my runs", "factorized", "sieve.serve")
    assert 'sieve.load("my runs/export")' in load
    assert serve == "python -m sieve.serve 'my runs/export'"


def test_a_gguf_file_is_run_in_llama_cpp(result: Result, tmp_path: Path) -> None:
    load, run, *_ = commands(result, tmp_path, "gguf", "sieve.serve")
    assert "sieve.load" in load
    assert shlex.split(run) == ["llama-cli", "-m", f"{tmp_path}/export/model.gguf"]


@pytest.mark.parametrize(("server", "served"), [("sieve.serve.completions", 1), ("", 0)])
def test_a_task_without_choices_has_no_command_for_rows(
    result: Result, tmp_path: Path, server: str, served: int
) -> None:
    load, *others = commands(result, tmp_path, "factorized", server)
    assert len(others) == served and all("sieve.serve.completions" in other for other in others)
    assert "sieve.load" in load


def test_a_run_without_an_export_says_how_to_get_one(result: Result, tmp_path: Path) -> None:
    assert commands(result, tmp_path, "none") == [f"{result['command']} export=factorized"]


def test_older_results_and_pages_without_a_folder_offer_nothing(
    result: Result, tmp_path: Path
) -> None:
    assert commands(result, None, "factorized", "sieve.serve") == []
    assert commands(result, tmp_path, "") == []
    assert "What next" not in render_page(result)


def test_the_page_shows_the_commands(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sieve.report.page.get_plotlyjs", lambda: "")
    result["export"] = {"format": "dense", "server": "sieve.serve"}
    write_report(result, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "What next</h2>" in page and f"python -m sieve.serve {tmp_path}/export" in page
