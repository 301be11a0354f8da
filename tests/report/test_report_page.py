"""The page: self-contained, escaped, complete, and whole on disk or absent."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from plotly.offline import get_plotlyjs
from results import full_result

from sieve.report import answer_sentence, write_report
from sieve.report.changes import refitted
from sieve.report.page import render_page
from sieve.report.result import read

Result = dict[str, Any]
VOID = {"meta", "br", "wbr", "link", "img", "hr", "input"}


@pytest.fixture(autouse=True)
def small_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the parser five megabytes of plotly.js."""
    monkeypatch.setattr("sieve.report.page.get_plotlyjs", lambda: "/* plotly.js */")


class Page(HTMLParser):
    """Text by element, all attributes, and whether every element was closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.tags: list[str] = []
        self.words: list[tuple[str, str]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.words.append((self.open[-1], data))

    def text(self, *tags: str) -> str:
        """The text of these elements, or of all but scripts and styles."""
        found = [
            words
            for tag, words in self.words
            if (tag in tags if tags else tag not in ("script", "style"))
        ]
        return "".join(found).replace("\u00a0", " ")


def test_the_page_opens_with_the_answer(result: Result) -> None:
    page = Page(render_page(result))
    assert page.text("h1") == answer_sentence(read(result))
    assert page.text().strip().index("sst2 needs 35.0 %") < page.text().index("Key figures")


def test_sections_come_in_the_agreed_order(result: Result) -> None:
    headings = [words for tag, words in Page(render_page(result)).words if tag == "h2"]
    assert headings == [
        "Key figures",
        "Accuracy against size",
        "Where the parameters stayed",
        "How many directions are in use",
        "Sizes and speeds",
        "Where the time went",
        "Data",
        "Levels, matrix by matrix",
        "Settings and how to reproduce",
    ]


def test_nothing_is_fetched_from_anywhere(result: Result) -> None:
    text = render_page(result)
    page = Page(text)
    fetching = {"src", "href", "srcset", "data", "poster", "action", "background"}
    assert [found for found in page.attributes if found[1] in fetching] == []
    assert not {"link", "iframe", "object", "embed", "base"} & set(page.tags)
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style and "url(" not in style[1] and "@import" not in style[1]
    assert "default-src 'none'" in text


def test_the_page_contains_plotly_once(result: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    assert render_page(result).count("/* plotly.js */") == 1
    monkeypatch.setattr("sieve.report.page.get_plotlyjs", get_plotlyjs)
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", render_page(result), re.DOTALL)
    assert sum(len(script) > 1_000_000 for script in scripts) == 1


def test_every_element_is_closed(result: Result) -> None:
    assert Page(render_page(result)).open == []


def test_values_are_escaped(result: Result) -> None:
    evil = "<b onclick=x>"
    result |= dict.fromkeys("task model command device storage date".split(), evil)
    result["matrices"][0] |= {"name": evil, "kind": evil}
    result["data"] |= {"source": evil, "duplicates": {evil: 3}, "note": evil}
    result["data"]["rows"][evil] = 3
    result["data"]["answers"]["test"][evil] = 3
    result["versions"][evil] = evil
    result["seconds"][evil] = 1.0
    result["spectrum"][evil] = result["spectrum"]["q"]
    page = Page(render_page(result))
    assert "b" not in page.tags and evil in page.text("h1") and evil in page.text("code")


def test_levels_of_every_matrix_appear(result: Result) -> None:
    for index, matrix in enumerate(result["matrices"]):
        matrix["rank"] = 1000 + index
    page = Page(render_page(result))
    assert "details" in page.tags
    for index, matrix in enumerate(result["matrices"]):
        assert matrix["name"] in page.text("code")
        assert f"1,{index:03d}" in page.text("td")


def test_a_dense_matrix_is_listed_with_full_rank(result: Result) -> None:
    result["matrices"] = [dict(result["matrices"][0], rank=None, level=1.0, kept_fraction=1.0)]
    page = Page(render_page(result))
    assert "full" in page.text("td")
    assert "1 matrix" in page.text("summary")


def test_stages_from_the_cache_are_marked(result: Result) -> None:
    rows = [words for tag, words in Page(render_page(result)).words if tag == "th"]
    assert [row for row in rows if "from the cache" in row] == [
        "Calibrate: moments of the dense model (from the cache)",
        "Fit: factors of every rank (from the cache)",
    ]


def test_the_data_section_counts_dropped_carved_and_shortened_rows(result: Result) -> None:
    result["data"]["carved"] = {"selection": {"from": "train", "fraction": 0.15, "rows": 872}}
    result["data"] |= {"harness": {"metric": "acc_norm"}, "shortened": 7}
    text = Page(render_page(result)).text()
    assert "12 rows dropped from calibration: their prompts are also in test" in text
    assert "55 rows dropped from calibration: they repeat a prompt" in text
    assert "3 rows of test repeat a prompt and were kept" in text
    assert "chosen by hash from train, 15.0 %" in text
    assert "41 rows had their text shortened" in text
    assert "7 prompts were shortened" in text
    assert "acc_norm" in text


def test_counts_of_zero_are_not_mentioned(result: Result) -> None:
    result["data"] |= {"shortened": 0, "contradictory": 0, "truncated": {"text": 0}}
    result["data"] |= {"duplicates": {"test/test": 0}, "filled": {"selection": {"rows": 0}}}
    text = Page(render_page(result)).text()
    assert "No prompt was repeated and none was shortened." in text
    assert not re.search(r"\b0 (rows|prompts)|shortened\s+0", text)


def test_the_page_contains_the_command_and_the_versions(result: Result) -> None:
    page = Page(render_page(result))
    assert result["command"] in page.text("code")
    assert "2.13.0" in page.text("dd")
    assert "200,000" in page.text("dd")


def test_missing_speeds_are_stated(result: Result) -> None:
    result |= {"speed": None, "memory": {"peak_mib": None}}
    text = Page(render_page(result)).text()
    assert "Speeds were not measured" in text
    assert "Peak memory" not in text


@pytest.mark.parametrize(
    "key",
    "drop kept_fraction speed search data seconds matrices tolerance".split(),
)
def test_any_part_may_be_missing(result: Result, key: str) -> None:
    result[key] = None
    page = Page(render_page(result))
    assert page.text("h1")
    assert "None" not in page.text()


def test_an_empty_result_still_makes_a_page() -> None:
    page = Page(render_page({}))
    assert page.text("h1")
    assert "script" not in page.tags


def test_the_file_is_replaced_whole_or_left_alone(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run" / "report.html"
    write_report(result, path)
    before = path.read_text(encoding="utf-8")
    assert before.startswith("<!DOCTYPE html>")
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]

    def full_disk(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_report({**result, "task": "another"}, path)
    assert path.read_text(encoding="utf-8") == before
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("refit", "phrase"),
    [
        (None, None),
        (
            {"taken": False, "kept_before": 0.4, "matrices_changed": 0},
            "tried and discarded: the refitted factors do worse on the selection split",
        ),
        ({"taken": True, "kept_before": 0.9, "matrices_changed": 7}, "kept fell from 90"),
        (
            {"taken": True, "kept_before": 0.0001, "matrices_changed": 7},
            "7 matrices solved again; the size did not",
        ),
    ],
)
def test_the_settings_state_the_effect_of_the_refit(
    result: dict[str, Any], refit: dict[str, Any] | None, phrase: str | None
) -> None:
    result["search"]["refit"] = refit
    page = render_page(result)
    assert (phrase is not None) == ("Refit</dt>" in page)
    assert phrase is None or phrase in page


@pytest.mark.parametrize(
    ("score", "margins", "reason"),
    [
        (
            {"feasible": False, "whole": True, "margin": -0.004},
            (0.003, -0.004),
            "with refitted factors the genome is beyond the tolerance on the selection split",
        ),
        (
            {"feasible": False, "whole": False, "margin": -0.1, "examples_used": 64},
            (0.003, -0.1),
            "with refitted factors the genome was beyond the tolerance after 64 selection rows",
        ),
        (
            {"feasible": True, "whole": True, "margin": 0.004},
            (0.007, 0.004),
            "with refitted factors the genome is within the tolerance by a smaller margin, 0.4 "
            "instead of 0.7 points",
        ),
        (
            {"feasible": True, "whole": True, "margin": 0.004},
            (0.0041, 0.004),
            "with refitted factors the genome is within the tolerance by a smaller margin",
        ),
    ],
)
def test_a_discarded_refit_says_how_the_refitted_genome_did(
    result: dict[str, Any], score: dict[str, Any], margins: tuple[float, float], reason: str
) -> None:
    before, after = margins
    refit = {"taken": False, "margin_before": before, "margin_after": after}
    result["search"]["refit"] = refit
    result["search"]["curve"].append(score | {"kept_fraction": 0.35, "refitted": True})
    assert refitted(read(result)) == f"tried and discarded: {reason}"


TRAINED = {"method": "full", "taken": True}
SIZES = {"kept_before": 0.9, "attempts": []}


@pytest.mark.parametrize(
    ("recovery", "phrase"),
    [
        (None, None),
        ({"method": "lora", "taken": False}, "LoRA, rolled back: no check"),
        ({"method": "lora", "taken": True}, "LoRA, 100 steps: 79"),
        ({"method": "full", "taken": True}, "all factors trained, 100 steps"),
        (TRAINED | {"search": SIZES | {"head_start": 0.046}}, "rows, so 4.6 points that it does"),
        (TRAINED | {"search": SIZES | {"head_start": 0.0}}, "fell from 90"),
    ],
)
def test_the_settings_state_the_effect_of_recovery(
    result: dict[str, Any], recovery: dict[str, Any] | None, phrase: str | None
) -> None:
    history = [
        {"step": step, "accuracy": accuracy, "loss": 0.5}
        for step, accuracy in ((0, 0.79), (50, 0.8), (100, 0.81), (150, 0.805))
    ]
    result["recovery"] = recovery and recovery | {"history": history}
    page = render_page(result).replace("\u00a0", " ")
    assert (phrase is not None) == ("Recovery</dt>" in page)
    assert phrase is None or phrase in page


def test_the_settings_state_the_effect_of_quantization(result: dict[str, Any]) -> None:
    assert "Quantization</dt>" not in render_page(result)
    result["quantization"] = {
        "method": "int8",
        "quantized": 37,
        "left": 5,
        "bytes_dense": 8_000_000,
        "bytes_before": 800_000,
        "bytes_after": 500_000,
        "saved": 0.9375,
        "accuracy_before": 0.88,
        "accuracy_after": 0.875,
    }
    page = render_page(result).replace("\u00a0", " ")
    for words in (
        "int8, 37 weights, 5 unchanged",
        "8.0 MB (dense) → 800.0 kB (pruned)",
        "93.8",
        "88.0",
    ):
        assert words in page, words


def test_the_key_figures_include_the_accuracy_of_an_onnx_graph(result: Result) -> None:
    assert "exported graph" not in render_page(result)
    result["export"] = {"format": "onnx_int8", "accuracy": 0.795}
    page = render_page(result).replace("\u00a0", " ")
    assert "<dt>Accuracy, exported graph</dt><dd>79.5 %</dd>" in page


def test_other_sizes_and_removed_bottlenecks_have_tables() -> None:
    result = full_result()
    drop = {"point": 0.057, "low": 0.04, "high": 0.07}
    point = {"kept_fraction": 0.1, "accuracy": 0.75, "drop": drop}
    result["curve"] = [point]
    result["contrast"] = {
        "bottlenecks": point | {"matrices": 3, "removed": 0.26},
        "others": point | {"matrices": 9, "removed": 0.25, "accuracy": 0.8},
    }
    page = Page(render_page(result)).text()
    assert "10.0 %" in page and "4.0 to 7.0" in page
    assert "without the matrices that need most" in page and "26.0 %" in page
    assert "Other sizes on the test split" not in render_page(full_result())
