"""Every number of README and of the results page is that of a committed file."""

import importlib
import json
from pathlib import Path

import pytest

from experiments import numbers
from experiments.pages import PAGES, RESULTS, filled, tables

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_tables_are_those_of_the_committed_results(page: Path) -> None:
    text = page.read_text()
    own = {name: table for name, table in tables().items() if f"<!-- {name} -->" in text}
    assert filled(text, own) == text


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_the_figure_of_a_result_can_be_drawn(path: Path, tmp_path: Path) -> None:
    claim = importlib.import_module(f"experiments.claims.{path.stem}")
    if not hasattr(claim, "draw"):
        return
    claim.draw(json.loads(path.read_text()), tmp_path / "figure.svg")
    assert "<svg" in (tmp_path / "figure.svg").read_text()


def test_every_result_has_its_place_on_a_page() -> None:
    text = "".join(page.read_text() for page in PAGES)
    assert [name for name in tables() if f"<!-- {name} -->" not in text] == []
    drawn = {path.name for path in RESULTS.glob("*.svg")}
    assert {name for name in drawn if f"results/{name}" not in text} == set()


@pytest.mark.parametrize("page", numbers.PAGES)
def test_every_number_of_the_prose_has_a_source(page: str) -> None:
    assert list(numbers.strays(page)) == []


@pytest.mark.parametrize("page", numbers.PAGES)
def test_every_number_is_what_its_source_says(page: str) -> None:
    assert list(numbers.differing(page)) == []


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A page of its own with one measured and one stated number."""
    monkeypatch.setattr(numbers, "ROOT", tmp_path)
    monkeypatch.setattr(numbers, "SOURCES", tmp_path / "numbers.json")
    (tmp_path / "figures.json").write_text(json.dumps({"a": [{"value": 0.123}]}))
    (tmp_path / "set.toml").write_text("python = 3.11")
    entries = [
        {
            "says": "keeps 12.3 %",
            "file": "figures.json",
            "keys": ["a/0/value"],
            "times": 100,
            "digits": 1,
        },
        {"says": "Python 3.11", "file": "set.toml", "text": "python = 3.11"},
    ]
    (tmp_path / "numbers.json").write_text(json.dumps({"page.md": entries}))
    path = tmp_path / "page.md"
    path.write_text("It keeps\n12.3 % under Python 3.11, `x=5`.\n\n    run 77\n")
    return path


def test_numbers_are_found_across_lines_and_commands_are_no_prose(page: Path) -> None:
    assert list(numbers.strays("page.md")) == list(numbers.differing("page.md")) == []


@pytest.mark.parametrize("text", ["- a list\n    of 77 things\n", "a ` b 78\n\nc ` d\n"])
def test_what_only_looks_like_a_command_or_a_name_is_prose(page: Path, text: str) -> None:
    page.write_text(text)
    assert len(list(numbers.strays("page.md"))) == 1


def test_a_number_without_a_source_is_told_of(page: Path) -> None:
    page.write_text(page.read_text() + "\nAnd 4,500 more.\n")
    assert list(numbers.strays("page.md")) == ["line 6: 4,500 has no source in numbers.json"]


def test_a_number_that_differs_from_its_source_is_told_of(page: Path) -> None:
    (page.parent / "figures.json").write_text(json.dumps({"a": [{"value": 0.13}]}))
    (page.parent / "set.toml").write_text("python = 3.12")
    assert list(numbers.differing("page.md")) == [
        "'keeps 12.3 %': figures.json has 13.0",
        "'Python 3.11': set.toml does not say 'python = 3.11'",
    ]


def test_a_source_of_a_number_that_is_gone_is_told_of(page: Path) -> None:
    page.write_text("Nothing.")
    assert list(numbers.differing("page.md"))[0] == "'keeps 12.3 %' is not there"


def test_a_block_without_a_place_is_refused() -> None:
    with pytest.raises(ValueError, match="0 blocks named table"):
        filled("text", {"table": "| a |"})
