"""The dashboard finds every run once, escapes all text, and links to the reports."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from plotly.offline import get_plotlyjs
from report.results import full_result

from sieve.report.__main__ import main
from sieve.report.dashboard import gather, render_dashboard, write_dashboard
from sieve.report.dashboard.records import link

Result = dict[str, Any]
EVIL = "</script ><img src=x onerror=alert(1)>&\"'\u2028"


def put(folder: Path, report: bool = True, **changes: Any) -> Path:
    """Write the result of a run, and its report."""
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(full_result() | changes), encoding="utf-8")
    if report:
        (folder / "report.html").write_text("<title>report</title>")
    return folder


def page_of(*folders: Path) -> str:
    return render_dashboard(gather(folders), folders[0] / "dashboard.html")


def data_of(page: str) -> Result:
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert data
    return json.loads(data[1])


class Page(HTMLParser):
    """The tags of a page with their attributes, its texts, and the elements left open."""

    VOID = {"meta", "link", "input"}

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

    def keys(self) -> list[str]:
        """The columns of the table."""
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
    runs = gather([tmp_path, tmp_path / "sst2"])
    places = [run.folder.resolve().relative_to(tmp_path.resolve()).as_posix() for run in runs]
    jobs = ["sst2/multirun/now/0", "sst2/multirun/now/1"]
    assert sorted(places) == ["sst2/a", *jobs, "sweep/result"]


def test_damaged_and_foreign_files_are_named_in_warnings_and_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "good")
    for name, content in (
        ("cut", b'{"task": "sst2", '),
        ("bytes", b"\xff\xfe\x00"),
        ("deep", b"[" * 200_000),
        ("list", b"[1, 2]"),
        ("foreign", b'{"task": "other", "model": "m", "score": 3}'),
        ("unsized", json.dumps(full_result() | {"kept_fraction": {}}).encode()),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_bytes(content)
    main([str(tmp_path)])
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    names = ("bytes", "cut", "deep", "foreign", "list", "unsized")
    for name, warning in zip(names, warnings, strict=True):
        assert warning.startswith(f"skipped {tmp_path / name / 'result.json'}: ")
    assert f"1 run in {tmp_path / 'dashboard.html'}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing", "missing does not exist, expected a folder of runs"),
        ("empty", "no run was found under"),
        ("file", "file is a file, expected a folder of runs"),
        ("broken", "expected a result.json"),
    ],
)
def test_a_folder_without_runs_gives_one_sentence_and_status_1(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, words: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/result.json").write_text("{")
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path / name)])
    message = caplog.records[-1].message
    assert stopped.value.code == 1 and words in message and "\n" not in message
    assert not list(tmp_path.rglob("dashboard.html"))


def test_a_page_that_cannot_be_written_gives_one_sentence(
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


def test_text_from_files_cannot_become_elements(tmp_path: Path) -> None:
    result = full_result() | {"projection": EVIL, "date": EVIL, "metric": EVIL, "command": EVIL}
    result |= {"recovery": {"method": EVIL}, "quantization": {"method": EVIL}}
    result["search"]["method"] = EVIL
    result["matrices"][0] |= {"name": EVIL, "kind": EVIL, "layer": EVIL}
    folder = put(tmp_path / "<b onclick=x>&\"'", **result | {"task": EVIL, "model": EVIL})
    (folder / ".hydra").mkdir()
    (folder / ".hydra/config.yaml").write_text("task: {prompt: '</script><b>'}\n")
    put(tmp_path / "plain")
    text = page_of(tmp_path)
    page, data = Page(text), data_of(text)
    assert page.open == [] and not {"img", "b"} & {tag for tag, _ in page.tags}
    assert [tag for tag, _ in page.tags].count("script") == 3
    assert EVIL in [run["task"] for run in data["runs"]]
    assert "</script><b>" in [run["settings"]["task.prompt"] for run in data["runs"]]
    assert not [run["hover"] for run in data["runs"] if "<img" in run["hover"]]


def test_the_policy_allows_the_two_scripts_and_no_requests(tmp_path: Path) -> None:
    put(tmp_path / "run")
    page = Page(page_of(tmp_path))
    [policy] = [attrs["content"] for tag, attrs in page.tags if "http-equiv" in attrs]
    assert policy.startswith("default-src 'none';") and policy.count("'sha256-") == 2
    assert "script-src 'unsafe-inline'" not in policy
    fetching = [attrs for _, attrs in page.tags if {"src", "srcset", "data", "action"} & set(attrs)]
    assert fetching == []
    assert [attrs["href"] for tag, attrs in page.tags if tag == "link"] == ["data:,"]


@pytest.mark.slow
def test_fifty_runs_of_a_deep_model_add_less_than_a_megabyte_to_plotly(tmp_path: Path) -> None:
    for index in range(50):
        deep = full_result(n_layers=80)
        for place, matrix in enumerate(deep["matrices"]):
            matrix["kept_fraction"] = (index * 7919 + place * 104729) % 99991 / 99991
        put(tmp_path / f"{index:03d}", **deep)
    out = tmp_path / "dashboard.html"
    write_dashboard(gather([tmp_path]), out)
    assert out.stat().st_size < 1_000_000 + len(get_plotlyjs())


def test_links_are_relative_so_that_the_folder_can_move(tmp_path: Path) -> None:
    home = tmp_path / "runs"
    put(home / "a #1?/50%: x")
    put(home / "without", report=False)
    page = Page(page_of(home))
    addresses = [attrs["href"] for tag, attrs in page.tags if tag == "a"]
    [address] = [address for address in addresses if "#" not in address]
    assert address == "a%20%231%3F/50%25%3A%20x/report.html"
    assert link(home / "x/report.html", tmp_path / "pages/all.html") == "../runs/x/report.html"
    assert link(Path("javascript:x/report.html"), Path("page.html")) == "javascript%3Ax/report.html"


def test_columns_without_a_value_in_any_run_are_left_out(tmp_path: Path) -> None:
    put(tmp_path / "a", speed=None, recovery=None, quantization=None)
    put(tmp_path / "b", speed=None, seed=1)
    keys = Page(page_of(tmp_path)).keys()
    assert keys[:5] == ["task", "model", "projection", "search", "kept"]
    assert not {"prefill", "decode", "after"} & set(keys)
    put(tmp_path / "c", quantization={"method": "int8"})
    assert {"prefill", "decode", "after"} < set(Page(page_of(tmp_path)).keys())


def test_a_rise_of_a_perplexity_is_not_a_drop_in_points(tmp_path: Path) -> None:
    text = {"task": "text", "metric": "perplexity", "relative": True, "tolerance": 0.05}
    text |= {"baseline": {"accuracy": 21.7}, "pruned": {"accuracy": 22.51}}
    put(tmp_path / "p", drop={"point": 0.037, "low": 0.032, "high": 0.042}, **text)
    put(tmp_path / "q")
    page = page_of(tmp_path)
    shown = Page(page).text()
    for words in ("21.70 → 22.51", "3.7 %", "5.0 %", "80.7 % → 80.1 %", "0.6 points"):
        assert words in shown, words
    data = data_of(page)
    [run] = [run for run in data["runs"] if run["task"] == "text"]
    assert run["symbol"] == "circle-open" and "rise 3.7 % (3.2 to 4.2)" in run["hover"]
    front = data["fronts"]["text, perplexity"]
    assert front["metric"]["larger_is_better"] is False and front["drop"]["title"] == "Rise, %"
    assert front["metric"]["lines"] == {"dense": 21.7, "tolerance": pytest.approx(21.7 * 1.05)}


def test_a_point_of_the_figure_has_the_interval_of_its_drop(tmp_path: Path) -> None:
    put(tmp_path / "run")
    [run] = data_of(page_of(tmp_path))["runs"]
    assert run["measures"]["drop"] == pytest.approx([0.6, 1.0, 1.0])
    assert run["measures"]["metric"] == pytest.approx([80.1, 1.0, 1.0])


def test_a_run_of_a_model_at_chance_is_marked_so_that_it_is_on_no_front(tmp_path: Path) -> None:
    baseline = full_result()["baseline"]
    folders = [
        put(tmp_path / str(beats), baseline=baseline | {"beats_chance": beats})
        for beats in (True, False)
    ]
    marked = {run["folder"]: run["at_chance"] for run in data_of(page_of(*folders))["runs"]}
    assert marked == {"True": False, "False": True}


def test_the_headline_counts_the_runs_within_the_tolerance(tmp_path: Path) -> None:
    put(tmp_path / "certified", confidence=0.9)
    put(tmp_path / "likely", confidence=None)
    put(tmp_path / "missed", drop={"point": 0.03, "low": 0.02, "high": 0.04}, task="imdb")
    page = Page(page_of(tmp_path))
    assert ("h1", "3 runs on 2 tasks, 2 of them within their tolerance") in page.texts


def test_the_smallest_run_within_the_tolerance_is_what_its_task_needs(tmp_path: Path) -> None:
    for name, kept, drop in (("a", 0.4, 0.0), ("b", 0.2, 0.01), ("c", 0.1, 0.05)):
        put(tmp_path / name, kept_fraction={"prunable": kept, "model": kept}, drop={"point": drop})
    places = [attrs["href"] for tag, attrs in Page(page_of(tmp_path)).tags if tag == "a"]
    assert places[0] == "#run-1"  # runs are sorted by kept fraction


def test_the_page_has_only_the_settings_that_differ(tmp_path: Path) -> None:
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
        {"seed": "none", "calibration.tokens": "none"},
    ]


def test_experts_of_a_layer_are_one_cell_of_the_level_map(tmp_path: Path) -> None:
    result = full_result(n_layers=2)
    expert = {"kind": "expert_up", "layer": 1, "d_out": 10, "d_in": 10}
    for number, kept in ((0, 0.5), (1, 0.25)):
        result["matrices"].append(expert | {"name": f"e{number}", "kept_fraction": kept})
    put(tmp_path / "a", **result)
    put(tmp_path / "b", matrices=None)
    levels, missing = (run["map"] for run in data_of(page_of(tmp_path))["runs"])
    assert missing is None
    assert levels["layers"] == ["0", "1"] and levels["kinds"][-1] == "expert_up"
    assert [row[-1] for row in levels["levels"]] == [None, 37.5]


@pytest.mark.slow
def test_any_other_key_may_be_missing_or_have_a_wrong_type(tmp_path: Path) -> None:
    keys = sorted({*full_result()} - {"task", "model", "kept_fraction"})
    for key in keys:
        for number, value in enumerate((None, "text", 3, [], {})):
            put(tmp_path / f"{key}-{number}", **{key: value})
    runs = gather([tmp_path])
    page = Page(render_dashboard(runs, tmp_path / "dashboard.html"))
    assert len(runs) == 5 * len(keys)
    assert page.open == [] and "None" not in page.text()


def test_the_command_writes_a_page_and_says_where(tmp_path: Path) -> None:
    put(tmp_path / "run")
    command = [sys.executable, "-m", "sieve.report", str(tmp_path)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert "1 run in" in process.stdout and (tmp_path / "dashboard.html").is_file()
