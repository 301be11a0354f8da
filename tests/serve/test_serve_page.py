"""The page of a served export, in a real browser."""

import shutil
from pathlib import Path

import pytest
from served import REVIEWS, serving

from sieve.exports.task_file import write_task
from sieve.tasks.config import TaskConfig


@pytest.mark.slow
def test_the_page_shows_an_answer_and_a_problem_in_a_browser(exported: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if browser is None:
        pytest.skip("no Chromium is installed")
    with serving(exported) as (_, address), playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = opened.new_page(viewport={"width": 390, "height": 800})
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(address)
        page.fill("#field-text", "a good movie")
        page.fill("#field-what", "film")
        page.click("button")
        page.wait_for_selector(".answer")
        assert page.text_content(".answer") in REVIEWS.labels
        assert page.locator(".choice").count() == 2
        page.fill("#field-text", "q" * 300)
        page.click("button")
        page.wait_for_selector(".problem")
        assert "expected at most 128" in (page.text_content(".problem") or "")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        opened.close()
    assert not problems


@pytest.mark.slow
def test_the_page_shows_a_written_answer_and_the_whole_text(exported: Path, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if browser is None:
        pytest.skip("no Chromium is installed")
    folder = tmp_path / "export"
    shutil.copytree(exported, folder)
    options = {"kind": "generation", "prompt": "{text}", "max_new_tokens": 8, "stop": []}
    write_task(TaskConfig(name="w", extract="^.", **options), (), folder)
    with serving(folder) as (_, address), playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = opened.new_page(viewport={"width": 390, "height": 800})
        page.goto(address)
        page.wait_for_selector("button")
        assert page.text_content("#what") == "Writes an answer."
        page.fill("#field-text", "a good movie")
        page.click("button")
        page.wait_for_selector(".answer")
        written = page.text_content("output pre") or ""
        assert len(written) > 1 and page.text_content(".answer") == written[0].strip()
        assert page.locator(".choice").count() == 0
        opened.close()
