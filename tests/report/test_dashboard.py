"""The dashboard: every run is found once, nothing is left unescaped, and its links stay."""

import json
import re
import subprocess
import sys
from copy import deepcopy
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from report.results import full_result

from sieve.report.__main__ import main
from sieve.report.dashboard import gather, render_dashboard, write_dashboard
from sieve.report.dashboard.page import embedded
from sieve.report.dashboard.records import link

Result = dict[str, Any]
EVIL = "</script ><img src=x onerror=alert(1)>&\"'\u2028"


def put(folder: Path, report: bool = True, **changes: Any) -> Path:
    """Write a run."""
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(full_result() | changes), encoding="utf-8")
    if report:
        (folder / "report.html").write_text("<title>report</title>")
    return folder


def page_of(*folders: Path) -> str:
    return render_dashboard(gather(folders).runs, folders[0] / "dashboard.html")


def data_of(page: str) -> Result:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


class Page(HTMLParser):
    """Tags with their attributes, the text of cells, and whether every element was closed."""

    VOID = {"meta", "link", "input", "wbr"}

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.append((self.open[-1], data.replace("\u00a0", " ")))

    def heads(self) -> list[str]:
        return [attrs["data-key"] for tag, attrs in self.tags if "data-key" in attrs]

    def text(self) -> str:
        return "".join(words for tag, words in self.texts if tag not in ("script", "style"))


def test_single_runs_multirun_jobs_and_sweeps_are_found_once(tmp_path: Path) -> None:
    for place in ("sst2/a", "sst2/multirun/now/0", "sst2/multirun/now/1", "sweep/result"):
        put(tmp_path / place)
    (tmp_path / "sweep/jobs/0").mkdir(parents=True)
    (tmp_path / "sweep/prepare").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "sst2")
    (tmp_path / "sst2/around").symlink_to(tmp_path)
    found = gather([tmp_path, tmp_path / "sst2"]).runs
    places = [run.folder.resolve().relative_to(tmp_path.resolve()).as_posix() for run in found]
    assert sorted(places) == ["sst2/a", "sst2/multirun/now/0", "sst2/multirun/now/1",
                              "sweep/result"]  # fmt: skip


def test_damaged_and_foreign_files_are_named_in_one_warning_and_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "good")
    for name, content in (
        ("cut", b'{"task": "sst2", '),
        ("bytes", b"\xff\xfe\x00"),
        ("deep", b"[" * 200_000),
        ("list", b"[1, 2]"),
        ("foreign", b'{"task": "other", "model": "m", "score": 3}'),
        ("shapeless", json.dumps(full_result() | {"matrices": "none"}).encode()),
        ("unsized", json.dumps(full_result() | {"kept_fraction": {}}).encode()),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_bytes(content)
    main([str(tmp_path)])
    [warning] = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith("skipped 7 files:")
    for name in ("cut", "bytes", "deep", "list", "foreign", "shapeless", "unsized"):
        assert str(tmp_path / name / "result.json") in warning
    assert "good" not in warning
    assert f"1 run in {tmp_path / 'dashboard.html'}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing", "missing is not there, expected a folder of runs"),
        ("empty", "no run was found under"),
        ("file", "file is a file, expected a folder of runs"),
        ("broken", "not JSON), expected a result.json"),
    ],
)
def test_what_holds_no_run_gets_one_sentence_and_status_1(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, words: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/result.json").write_text("{")
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path / name)])
    [message] = [record.message for record in caplog.records]
    assert stopped.value.code == 1 and words in message and "\n" not in message
    assert not list(tmp_path.rglob("dashboard.html"))


def test_a_page_that_cannot_be_written_gets_one_sentence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path / "run")
    below_a_file = tmp_path / "run/result.json/page.html"
    for out, words in ((tmp_path, "expected a file"), (below_a_file, "choose another --out")):
        caplog.clear()
        with pytest.raises(SystemExit):
            main([str(tmp_path), "--out", str(out)])
        [message] = [record.message for record in caplog.records]
        assert words in message


@pytest.mark.parametrize("key", ["task", "model", "projection", "date", "metric", "command"])
def test_names_from_files_cannot_become_elements(tmp_path: Path, key: str) -> None:
    put(tmp_path / "run", **{key: EVIL})
    put(tmp_path / "plain")
    text = page_of(tmp_path)
    page = Page(text)
    assert "<" not in embedded({EVIL: EVIL})
    assert page.open == [] and "img" not in {tag for tag, _ in page.tags}
    assert [tag for tag, _ in page.tags].count("script") == 2
    if key in ("task", "model", "projection"):
        assert EVIL.rpartition("/")[2] in data_of(text)["runs"][1][key]


def test_names_of_folders_and_matrices_cannot_become_elements(tmp_path: Path) -> None:
    result = full_result()
    result["matrices"][0] |= {"name": EVIL, "kind": EVIL, "layer": EVIL}
    result["search"]["method"] = result["recovery"] = result["quantization"] = None
    result |= {"recovery": {"method": EVIL}, "quantization": {"method": EVIL}}
    folder = put(tmp_path / "<b onclick=x>&\"'", **result)
    (folder / ".hydra").mkdir()
    (folder / ".hydra/config.yaml").write_text("task: {prompt: '</script><b>'}\n")
    put(tmp_path / "plain")
    text = page_of(tmp_path)
    page = Page(text)
    assert page.open == [] and not {"img", "b"} & {tag for tag, _ in page.tags}
    assert "</script><b>" in [run["settings"]["task.prompt"] for run in data_of(text)["runs"]]


def test_the_policy_lets_nothing_be_fetched_and_one_script_run(tmp_path: Path) -> None:
    put(tmp_path / "run")
    page = Page(page_of(tmp_path))
    [policy] = [attrs["content"] for tag, attrs in page.tags if "http-equiv" in attrs]
    assert policy.startswith("default-src 'none';") and "script-src 'sha256-" in policy
    assert "script-src 'unsafe-inline'" not in policy
    fetching = [attrs for _, attrs in page.tags if {"src", "srcset", "data", "action"} & set(attrs)]
    assert fetching == []
    assert [attrs["href"] for tag, attrs in page.tags if tag == "link"] == ["data:,"]


def test_a_hundred_runs_of_a_deep_model_weigh_less_than_five_megabytes(tmp_path: Path) -> None:
    for index in range(100):
        deep = full_result(n_layers=80)
        for place, matrix in enumerate(deep["matrices"]):
            matrix["kept_fraction"] = (index * 7919 + place * 104729) % 99991 / 99991
        put(tmp_path / f"{index:03d}", **deep)
    out = tmp_path / "dashboard.html"
    write_dashboard(gather([tmp_path]).runs, out)
    assert out.stat().st_size < 2_500_000


def test_links_are_relative_and_hold_when_the_folder_moves(tmp_path: Path) -> None:
    home = tmp_path / "runs"
    put(home / "a #1?/50%: x")
    put(home / "without", report=False)
    page = Page(page_of(home))
    [address] = [
        attrs["href"] for tag, attrs in page.tags if tag == "a" and "#" not in attrs["href"]
    ]
    assert address == "a%20%231%3F/50%25%3A%20x/report.html"
    assert [run["href"] for run in data_of(page_of(home))["runs"]] == [address, None]
    assert link(home / "x/report.html", tmp_path / "pages/all.html") == "../runs/x/report.html"
    assert link(Path("javascript:x/report.html"), Path("page.html")) == "javascript%3Ax/report.html"


def test_columns_that_no_run_has_are_left_out(tmp_path: Path) -> None:
    put(tmp_path / "a", speed=None, recovery=None, quantization=None)
    put(tmp_path / "b", speed=None, seed=1)
    assert Page(page_of(tmp_path)).heads() == [
        "task", "model", "projection", "search", "kept", "kept_model", "metric", "drop",
        "tolerance", "verdict", "bytes", "seed", "date", "seconds",
    ]  # fmt: skip
    put(tmp_path / "c", quantization={"method": "int8"})
    assert {"prefill", "decode", "after"} < set(Page(page_of(tmp_path)).heads())


def test_a_rise_of_a_perplexity_is_no_drop_in_points(tmp_path: Path) -> None:
    put(
        tmp_path / "p", task="text", metric="perplexity", relative=True, tolerance=0.05,
        baseline={"accuracy": 21.7}, pruned={"accuracy": 22.51},
        drop={"point": 0.037, "low": 0.032, "high": 0.042},
    )  # fmt: skip
    put(tmp_path / "q")
    text = page_of(tmp_path)
    shown = Page(text).text()
    for words in ("21.70 → 22.51", "3.7 %", "5.0 %", "80.7 % → 80.1 %", "0.6 points"):
        assert words in shown, words
    [run] = [run for run in data_of(text)["runs"] if run["relative"]]
    assert run["text"]["drop"] == "3.7 % (3.2 to 4.2)" and run["verdict"] == "met"
    assert run["facts"][1] == ["Perplexity, pruned", 22.51, "22.51", "plain"]


def test_the_headline_counts_what_is_within_the_tolerance(tmp_path: Path) -> None:
    put(tmp_path / "met", drop={"point": 0.006, "low": -0.004, "high": 0.016})
    put(tmp_path / "uncertain", drop={"point": 0.006, "low": -0.004, "high": 0.026})
    put(tmp_path / "missed", drop={"point": 0.03, "low": 0.02, "high": 0.04}, task="imdb")
    page = Page(page_of(tmp_path))
    assert ("h1", "3 runs on 2 tasks, 2 of them within their tolerance") in page.texts
    values = [words for tag, words in page.texts if tag == "dd"]
    assert values[:5] == ["3", "2", "1", "2", "1"]


def test_the_run_that_kept_least_within_the_tolerance_speaks_for_its_task(tmp_path: Path) -> None:
    for name, kept, drop in (("a", 0.4, 0.0), ("b", 0.2, 0.01), ("c", 0.1, 0.05)):
        put(tmp_path / name, kept_fraction={"prunable": kept, "model": kept}, drop={"point": drop})
    places = [attrs["href"] for tag, attrs in Page(page_of(tmp_path)).tags if tag == "a"]
    assert places[0] == "#run-1"


def test_only_settings_that_differ_among_the_runs_are_carried(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        folder = put(tmp_path / name, seed=seed)
        (folder / ".hydra").mkdir()
        (folder / ".hydra/config.yaml").write_text(
            f"seed: {seed}\ncalibration: {{tokens: 500, mix: {{}}}}\npaths: {{runs_dir: {name}}}\n"
        )
    (put(tmp_path / "c") / ".hydra").mkdir()
    (tmp_path / "c/.hydra/config.yaml").write_text("seed: [")
    settings = [run["settings"] for run in data_of(page_of(tmp_path))["runs"]]
    assert settings == [
        {"seed": "0", "calibration.tokens": "500"},
        {"seed": "1", "calibration.tokens": "500"},
        {"seed": "0", "calibration.tokens": "none"},
    ]


def test_runs_of_one_model_share_the_names_of_its_matrices_and_experts_a_cell(
    tmp_path: Path,
) -> None:
    result = full_result(n_layers=2)
    expert = {"kind": "expert_up", "layer": 1, "d_out": 10, "d_in": 10}
    for number, kept in ((0, 0.5), (1, 0.25)):
        result["matrices"].append(expert | {"name": f"e{number}", "kept_fraction": kept})
    put(tmp_path / "a", **result)
    put(tmp_path / "b", **deepcopy(result))
    put(tmp_path / "c", matrices=None)
    data = data_of(page_of(tmp_path))
    [layout] = data["layouts"]
    assert [run["layout"] for run in data["runs"]] == [0, 0, -1]
    assert layout["layers"] == ["0", "1"] and layout["kinds"][-1] == "expert_up"
    assert layout["names"][-1] == "layer 1, 2 expert_up" and layout["sizes"][-1] == 200
    assert data["runs"][0]["levels"][-1] == 37.5


@pytest.mark.parametrize("key", sorted({*full_result()} - {"task", "model", "kept_fraction"}))
@pytest.mark.parametrize("value", [None, "text", 3, [], {}])
def test_any_other_part_may_be_missing_or_of_another_kind(
    tmp_path: Path, key: str, value: Any
) -> None:
    put(tmp_path / "good")
    put(tmp_path / "odd", **{key: value})
    page = Page(page_of(tmp_path))
    assert page.open == [] and "None" not in page.text()


def test_the_command_writes_a_page_and_says_where(tmp_path: Path) -> None:
    put(tmp_path / "run")
    done = subprocess.run(
        [sys.executable, "-m", "sieve.report", str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "1 run in" in done.stdout and (tmp_path / "dashboard.html").is_file()
