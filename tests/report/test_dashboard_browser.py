"""The dashboard in Chromium: it sorts, filters, draws and compares on wide and narrow screens."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import SCHEMES, SIZES, cut_texts, opened
from report.results import full_result

from sieve.report import write_report
from sieve.report.dashboard import gather, write_dashboard

pytestmark = pytest.mark.slow
WIDTHS = (390, 1440)
# task, search, kept fraction, drop; the tolerance is 0.02
RUNS = (
    ("sst2", "uniform", 0.35, 0.006),
    ("sst2", "waterfill", 0.09, 0.012),
    ("sst2", "genetic", 0.12, 0.031),
    ("sst2", "random", 0.6, 0.012),
    ("imdb", "uniform", 0.2, 0.05),
    ("text", "uniform", 0.5, 0.01),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six runs with their dashboard and reports, one of them a real report."""
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
        run = root / f"{task}-{search}"
        (run / ".hydra").mkdir(parents=True)
        (run / ".hydra" / "config.yaml").write_text(f"search:\n  method: {search}\nseed: {index}\n")
        (run / "result.json").write_text(json.dumps(result))
        (run / "report.html").write_text("<title>its report</title>")
    write_report(full_result(), root / "sst2-uniform" / "report.html")
    write_dashboard(gather([root]), root / "dashboard.html")
    return root


@pytest.fixture(params=WIDTHS)
def page(request: pytest.FixtureRequest, browser: Any, folder: Path) -> Iterator[Any]:
    """The page at one width. Any message of the console and any request fails the test."""
    with opened(browser, folder / "dashboard.html", request.param) as page:
        yield page


def searches(page: Any) -> list[str]:
    """The searches of the rows that are shown, from top to bottom."""
    cells = page.locator("#runs tbody tr:not([hidden]) .search-cell")
    return [text.strip() for text in cells.all_text_contents()]


def row(page: Any, name: str) -> Any:
    return page.locator(f'#runs tr[data-folder="{name}"]')


def head(page: Any, key: str) -> Any:
    return page.locator(f'#runs th[data-key="{key}"]')


def select(page: Any, *names: str) -> None:
    for name in names:
        row(page, name).locator("input").check()


def points(page: Any) -> list[str]:
    """The hover texts of the points in the figure."""
    script = "document.getElementById('front').data.filter(t => t.legendgroup).flatMap(t => t.text)"
    return [text for text in page.evaluate(script) if text]


def front(page: Any) -> list[float]:
    """The kept percents of the runs on the front."""
    return page.evaluate("document.getElementById('front').data[0].x")


def test_headers_sort_by_number_and_tell_screen_readers(page: Any) -> None:
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
    assert len(points(page)) == 4
    page.fill("#filters [name=words]", "WATER sst2")
    assert searches(page) == ["waterfill"]
    assert len(points(page)) == 1 and "sst2-waterfill" in points(page)[0]
    page.fill("#filters [name=words]", "no such words")
    assert searches(page) == [] and page.text_content("#shown") == "None of 6 runs"
    page.click("#filters button")
    page.locator("#runs tbody tr:not([hidden])").nth(5).wait_for()
    assert page.text_content("#shown") == "6 runs"


def test_selected_runs_are_compared_side_by_side(page: Any) -> None:
    select(page, "sst2-uniform", "sst2-waterfill")
    lines = {
        texts[0]: texts[1:]
        for line in page.locator("#compared .outcome tbody tr").all()
        for texts in [line.locator("th, td").all_inner_texts()]
    }
    kept = [text.replace("\u00a0", " ") for text in lines["Kept of prunable"]]
    assert kept == ["35.0 %", "9.0 %", "\u221226.0 points"]
    assert lines["Folder"][:2] == ["sst2-uniform", "sst2-waterfill"]
    settings = page.locator("#compared .settings tbody tr").all_inner_texts()
    assert [line.split()[0] for line in settings] == ["search.method", "seed"]
    page.wait_for_selector("#maps .js-plotly-plot .main-svg")
    assert page.locator("#maps figcaption").all_inner_texts()[0].startswith("A: kept")
    select(page, "imdb-uniform")
    assert "tasks differ" in page.text_content("#compared")
    page.click("#compared button")
    assert page.locator("#runs input:checked").count() == 0
    assert page.locator("#maps figure").count() == 0


def test_two_runs_of_one_model_also_have_a_map_of_differences(browser: Any, tmp_path: Path) -> None:
    for kept in (0.25, 0.5):
        result = full_result() | {"kept_fraction": {"prunable": kept, "model": kept}}
        for matrix in result["matrices"]:
            matrix["kept_fraction"] = kept
        (tmp_path / str(kept)).mkdir()
        (tmp_path / str(kept) / "result.json").write_text(json.dumps(result))
    write_dashboard(gather([tmp_path]), tmp_path / "dashboard.html")
    with opened(browser, tmp_path / "dashboard.html", 1440) as page:
        select(page, "0.25", "0.5")
        plots = page.locator("#maps .js-plotly-plot")
        maps = plots.evaluate_all("plots => plots.map(plot => plot.data[0].z[5][6])")
        assert maps == [25, 50, 25]


def test_no_run_on_the_front_is_beaten_by_a_run_of_its_task(page: Any) -> None:
    assert front(page) == [9, 35]
    page.select_option("#front-controls [name=measure]", "drop")
    assert front(page) == [9, 35]
    page.select_option("#front-controls [name=series]", "text, perplexity")
    page.select_option("#front-controls [name=measure]", "metric")
    assert front(page) == [50]
    assert "20.00 → 20.20" in points(page)[0]


def test_points_have_hover_texts_and_are_selected_by_a_click(page: Any) -> None:
    point = page.locator("#front .points path").first
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector("#front .hoverlayer .hovertext")
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector("#runs tr.picked")
    assert page.locator("#runs tr.picked input:checked").count() == 1


def test_the_name_of_a_task_opens_the_report_of_its_run(page: Any) -> None:
    row(page, "imdb-uniform").locator("a").click()
    assert page.title() == "its report"


def test_scripts_in_result_files_never_run(browser: Any, tmp_path: Path) -> None:
    evil = "</script><script>document.title='taken'</script><img src=x onerror=document.title='x'>"
    for index in range(2):
        result = full_result() | {"task": evil, "model": f"{evil}{index}", "projection": evil}
        result["matrices"][0] |= {"name": f"a.{evil}", "kind": evil, "kept_fraction": index / 2}
        (tmp_path / f"{index}").mkdir()
        (tmp_path / f"{index}" / "result.json").write_text(json.dumps(result))
    write_dashboard(gather([tmp_path]), tmp_path / "dashboard.html")
    with opened(browser, tmp_path / "dashboard.html", 1440) as page:
        select(page, "0", "1")
        page.wait_for_selector("#maps .js-plotly-plot .main-svg")
        assert evil in page.text_content("#compared") and "runs on 1 task" in page.title()
        assert page.locator("img, #compared script").count() == 0


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", SIZES)
def test_the_table_of_runs_fits_until_all_columns_are_asked_for(
    browser: Any, folder: Path, width: int, scheme: str
) -> None:
    beyond = "box => box.scrollWidth - box.clientWidth"
    with opened(browser, folder / "dashboard.html", width, scheme) as page:
        assert cut_texts(page) == []
        assert page.locator(".tall").evaluate(beyond) <= 0
        for key in ("task", "kept", "verdict"):
            assert head(page, key).is_visible()
        assert not head(page, "seed").is_visible()
        page.check("[name=all]")
        assert head(page, "seed").is_visible() and cut_texts(page) == []
        page.click("#filters button")
        head(page, "seed").wait_for(state="hidden")
