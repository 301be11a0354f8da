"""The dashboard in a real browser: it sorts, filters, draws and compares, at both widths."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report.results import full_result

from sieve.report import write_report
from sieve.report.dashboard import gather, write_dashboard

pytestmark = pytest.mark.slow
WIDTHS = (390, 1440)
# task, search, kept, drop; the first two are within the tolerance, so is the last
RUNS = (
    ("sst2", "uniform", 0.35, 0.006),
    ("sst2", "waterfill", 0.09, 0.012),
    ("sst2", "genetic", 0.12, 0.031),
    ("sst2", "random", 0.6, 0.012),
    ("imdb", "uniform", 0.2, 0.05),
    ("text", "uniform", 0.5, 0.01),
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, where it and playwright are installed."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some runs with a dashboard; one of them has its report."""
    root = tmp_path_factory.mktemp("runs")
    for index, (task, search, kept, drop) in enumerate(RUNS):
        result = full_result() | {"task": task, "model": f"model-{10 - index}", "seed": index}
        result["search"] |= {"method": search, "curve": []}
        result["kept_fraction"] = {"prunable": kept, "model": kept}
        result["drop"] = {"point": drop, "low": drop - 0.01, "high": drop + 0.005}
        result["pruned"] = {"accuracy": 0.807 - drop}
        if task == "text":
            result |= {"metric": "perplexity", "relative": True, "baseline": {"accuracy": 20.0}}
            result["pruned"] = {"accuracy": 20.2}
        for matrix in result["matrices"]:
            matrix["kept_fraction"] = kept
        result["matrices"][6]["kept_fraction"] = 0.97
        place = root / f"{task}-{search}"
        place.mkdir()
        (place / "result.json").write_text(json.dumps(result))
        (place / "report.html").write_text("<title>its report</title>")
    write_report(full_result(), root / "sst2-uniform" / "report.html")
    write_dashboard(gather([root]).runs, root / "dashboard.html")
    return root


@pytest.fixture(params=WIDTHS)
def page(request: pytest.FixtureRequest, browser: Any, folder: Path) -> Iterator[Any]:
    """The page at one width; whatever the console says of it is a failure."""
    yield from opened(browser, folder / "dashboard.html", request.param)


def opened(browser: Any, path: Path, width: int) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": width, "height": 900})
    page, problems = context.new_page(), list[str]()
    page.set_default_timeout(5000)
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda asked: problems.extend([asked.url] * asked.url.startswith("http")))
    page.goto(path.as_uri())
    yield page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert not problems
    context.close()


def searches(page: Any) -> list[str]:
    """The searches of the rows that are shown, from top to bottom."""
    cells = page.locator("#runs tbody tr:not([hidden]) .search-cell")
    return [text.strip() for text in cells.all_text_contents()]


def row(page: Any, name: str) -> Any:
    return page.locator(f'#runs tr[data-folder="{name}"]')


def head(page: Any, key: str) -> Any:
    return page.locator(f'#runs th[data-key="{key}"]')


def test_headers_sort_by_number_and_say_so(page: Any) -> None:
    assert searches(page) == ["uniform", "waterfill", "genetic", "uniform", "random", "uniform"]
    kept = head(page, "kept")
    kept.locator("button").click()
    smallest_first = ["waterfill", "genetic", "uniform", "uniform", "uniform", "random"]
    assert searches(page) == smallest_first
    assert kept.get_attribute("aria-sort") == "ascending"
    assert head(page, "task").get_attribute("aria-sort") == "none"
    kept.locator("button").press("Enter")
    assert searches(page) == smallest_first[::-1]
    assert kept.get_attribute("aria-sort") == "descending"


def test_filters_narrow_the_table_and_the_figure(page: Any) -> None:
    page.select_option("#filters [name=task]", "sst2")
    assert page.text_content("#shown") == "4 of 6 runs"
    assert page.locator("#front .point").count() == 4
    page.fill("#filters [name=words]", "WATER sst2")
    assert searches(page) == ["waterfill"]
    assert page.locator("#front .point").count() == 1
    page.fill("#filters [name=words]", "nothing like it")
    assert searches(page) == [] and "None of 6 runs" in page.text_content("#shown")
    page.click("#filters button")
    page.locator("#runs tbody tr:not([hidden])").nth(5).wait_for()
    assert page.text_content("#shown") == "6 runs"


def test_two_runs_are_picked_and_compared(page: Any) -> None:
    row(page, "sst2-uniform").locator("input").check()
    assert "Pick one more run" in page.text_content("#compared")
    row(page, "sst2-waterfill").locator("input").check()
    lines = dict(
        (cells[0], cells[1:])
        for line in page.locator("#compared .outcome tbody tr").all()
        for cells in [line.locator("th, td").all_inner_texts()]
    )
    assert lines["Kept of prunable"] == ["35.0\u00a0%", "9.0\u00a0%", "\u221226.0\u00a0points"]
    assert lines["Accuracy, pruned"][-1] == "\u22120.6\u00a0points"
    settings = page.locator("#compared .settings tbody tr").all_inner_texts()
    assert [line.split()[0] for line in settings] == ["seed", "search.method"]
    assert page.locator("#compared .map").count() == 3
    assert page.locator("#compared .map").first.locator("tbody td").count() == 6 * 7
    differing = page.locator("#compared .listed")
    assert "The 10 of 41 differing matrices" in differing.locator("caption").inner_text()
    assert page.locator('#pair [name="a"]').input_value() == "3"
    page.click('#pair [name="swap"]')
    assert "+26.0" in page.locator("#compared .outcome").inner_text()
    page.click('#pair [name="clear"]')
    assert page.locator("#runs input:checked").count() == 0


def test_a_third_pick_takes_the_place_of_the_oldest_and_a_select_picks_too(page: Any) -> None:
    for name in ("sst2-uniform", "sst2-waterfill", "imdb-uniform"):
        row(page, name).locator("input").check()
    picked = page.locator("#runs tr.picked")
    assert [node.get_attribute("data-folder") for node in picked.all()] == [
        "imdb-uniform", "sst2-waterfill",
    ]  # fmt: skip
    assert "different tasks" in page.text_content("#compared")
    page.select_option('#pair [name="b"]', label="output, genetic, 12.0 % (sst2-genetic)")
    assert row(page, "sst2-genetic").locator("input").is_checked()
    assert not row(page, "imdb-uniform").locator("input").is_checked()


def test_the_front_is_of_one_task_and_no_run_on_it_is_beaten(page: Any) -> None:
    names = page.locator("#front .point.on-front").evaluate_all(
        "nodes => nodes.map(node => node.getAttribute('aria-label').split('(')[1].split(')')[0])"
    )
    assert names == ["sst2-waterfill", "sst2-uniform"]
    page.select_option("#front-controls [name=y]", "drop")
    assert page.locator("#front .point.on-front").count() == 2
    page.select_option("#front-controls [name=series]", "text")
    page.select_option("#front-controls [name=y]", "metric")
    assert page.text_content("#upwards") == "Perplexity"
    assert "20.00 → 20.20" in page.locator("#front .point").get_attribute("aria-label")


def test_points_have_tips_and_are_picked_by_pointer_and_by_key(page: Any) -> None:
    first = page.locator("#front .point .mark").first
    first.hover()
    assert "sst2-waterfill" in page.text_content("#front .tip")
    first.click()
    assert row(page, "sst2-waterfill").locator("input").is_checked()
    page.locator('#front .point[tabindex="0"]').focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#front .tip").is_visible()
    page.keyboard.press("Enter")
    assert page.locator("#runs tr.picked").count() == 2
    page.keyboard.press("Escape")
    assert page.locator("#front .tip").is_hidden()


def test_the_name_of_a_task_opens_the_report_of_its_run(page: Any) -> None:
    row(page, "imdb-uniform").locator("a").click()
    assert page.title() == "its report"


def test_nothing_from_a_file_is_run(browser: Any, tmp_path: Path) -> None:
    evil = "</script><script>document.title='taken'</script><img src=x onerror=document.title='x'>"
    for index in range(2):
        result = full_result() | {"task": evil, "model": f"{evil}{index}", "projection": evil}
        result["matrices"][0] |= {"name": f"a.{evil}", "kind": evil, "kept_fraction": index / 2}
        (tmp_path / f"{index}").mkdir()
        (tmp_path / f"{index}" / "result.json").write_text(json.dumps(result))
    write_dashboard(gather([tmp_path]).runs, tmp_path / "dashboard.html")
    for page in opened(browser, tmp_path / "dashboard.html", 1440):
        for box in page.locator("#runs tbody input").all():
            box.check()
        page.locator("#front .point .mark").last.hover()
        assert evil in page.text_content("#compared") and "runs on 1 task" in page.title()
        assert page.locator("img, #compared script").count() == 0


@pytest.mark.parametrize("width", WIDTHS)
def test_the_report_of_a_single_run_is_quiet_and_fits(
    browser: Any, folder: Path, width: int
) -> None:
    for page in opened(browser, folder / "sst2-uniform" / "report.html", width):
        page.wait_for_selector(".js-plotly-plot .main-svg")
        assert "sst2" in page.title()
