"""The documentation: every setting is explained, what it shows runs, the site stands alone."""

import json
import os
import re
import subprocess
import sys
from dataclasses import fields, is_dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_type_hints
from urllib.parse import unquote

import pytest
from models import tiny_llama, tiny_tokenizer
from omegaconf import OmegaConf
from test_conf_groups import CONF, compose_raw
from test_readme import commands, compose_command

from sieve.config import Config
from sieve.docs import comments, included, settings

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "sieve/docs/pages").rglob("*.md"))
COMMANDS = [(page.name, overrides) for page in PAGES for overrides in commands(page)]
IDS = [" ".join(overrides) for _, overrides in COMMANDS]


def leaves(held: Any, prefix: str = "") -> set[str]:
    if not isinstance(held, dict) or not held:
        return {prefix.rstrip(".")}
    return set().union(*(leaves(value, f"{prefix}{key}.") for key, value in held.items()))


def declared(of: type, prefix: str = "") -> set[str]:
    found = set()
    for one in fields(of):
        kind = get_type_hints(of)[one.name]
        nested = isinstance(kind, type) and is_dataclass(kind)
        found |= declared(kind, f"{prefix}{one.name}.") if nested else {prefix + one.name}
    return found


def test_every_setting_has_a_meaning() -> None:
    known = {e.key: e.meaning for group in settings.entries().values() for e in group}
    assert [key for key, meaning in known.items() if not meaning.strip()] == []
    assert declared(Config) - {"trainer"} - known.keys() == set()
    for trainer in ("cpu", "gpu"):
        raw = compose_raw("+task=sst2", f"trainer={trainer}")
        composed = leaves(OmegaConf.to_container(raw))
        strays = [
            key for key in composed
            if not any(key == one or key.startswith(f"{one}.") for one in known if "." in one)
            and key not in known
        ]  # fmt: skip
        # What stands in a mapping, such as task.hub, is explained as a whole.
        assert strays == []


def test_every_option_of_every_group_has_its_line() -> None:
    listed = {(option.group, option.name) for option in settings.options()}
    files = {(p.parent.name, p.stem) for p in CONF.glob("*/[!_]*.yaml")}
    assert listed == {pair for pair in files if pair[0] != "hydra"}
    assert [(o.group, o.name) for o in settings.options() if not o.meaning.strip()] == []
    page = settings.page()
    for group, name in listed:
        assert f"{group}={name}</code>" in page


def test_the_page_of_settings_has_types_defaults_and_values() -> None:
    held = {e.key: e for group in settings.entries().values() for e in group}
    assert (held["tolerance"].type, held["tolerance"].default) == ("number", "0.02")
    assert held["search.judge"].allowed == ("divergence", "margin")
    assert "loss_aware" in held["projection.name"].allowed
    assert held["calibration.layers_at_once"].type == "whole number or null"
    assert held["task.prompt"].default == "" and held["task.delimiter"].default == "' '"
    assert held["hydra.sweeper.population"].default == "100"
    assert "{: #search.judge .setting }" in settings.page()


def test_comments_are_read_beside_above_and_below_their_keys(tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    path.write_text("# Head.\n\n# above\na: 1\nb:\n  c: x#y  # beside\n         # below\nd: 2\n")
    assert comments.of_yaml(path) == {"a": "above", "b": "", "b.c": "beside below", "d": ""}
    assert comments.head_of(path) == "Head."
    source = "class A:\n    # above\n    a: int = 1  # beside\n    b: str | None = None\n"
    assert comments.of_source(source)["a"] == comments.Described("int", "1", "above beside")
    assert comments.of_source(source)["b"].comment == ""


@pytest.mark.parametrize(("page", "overrides"), COMMANDS, ids=IDS)
def test_a_command_of_the_pages_composes(page: str, overrides: list[str]) -> None:
    compose_command(overrides)


def test_the_pages_have_commands_to_try() -> None:
    assert {"task.md", "model.md", "cookbook.md", "quick-start.md"} <= {p for p, _ in COMMANDS}


def test_settings_that_the_pages_name_are_settings() -> None:
    known = settings.keys()
    groups = "|".join({key.split(".")[0] for key in known if "." in key} - {"hydra"})
    text = "\n".join(page.read_text("utf-8") for page in PAGES)
    named = set(re.findall(rf"`\+*((?:{groups})\.\w[\w.]*)[`= ]", text))
    assert len(named) > 20
    # What stands in a mapping, such as task.hub.rows, is explained as a whole.
    assert {n for n in named if n not in known and n.rpartition(".")[0] not in known} == set()


def test_the_examples_in_python_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cookbook = (ROOT / "sieve/docs/pages/cookbook.md").read_text("utf-8")
    questions = (ROOT / "sieve/docs/pages/questions.md").read_text("utf-8")
    (notebook,) = re.findall(r"```python\n(.*?)```", cookbook, re.DOTALL)
    (size,) = re.findall(r"```python\n(.*?)```", questions, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    tiny_llama().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    rows = [{"text": f"number {i} is {i % 7}", "label": i % 2} for i in range(240)]
    scope: dict[str, Any] = {"path": str(tmp_path / "model"), "rows": rows}
    exec(notebook, scope)
    assert (tmp_path / "small" / "config.json").is_file()
    exec(size, scope)
    assert scope["bank"].kept_fraction(scope["genome"]) <= 0.25


def test_lists_are_nested_as_the_site_wants_them() -> None:
    text = "Some:\n- one\n  more\n\n  ```sh\n  - no item\n  ```\n- two\n\nAfter.\n\n1. a\n\n   b\n"
    assert included.nested_by_four(text) == (
        "Some:\n\n- one\n    more\n\n    ```sh\n    - no item\n    ```\n- two\n\nAfter.\n\n"
        "1. a\n\n    b\n"
    )


def test_links_of_included_pages_lead_to_the_site(monkeypatch: pytest.MonkeyPatch) -> None:
    one = included.include("experiments/longer.md")
    assert "](files/experiments/projections.svg)" in one.text
    assert all(path.is_file() for path in one.files.values())
    files: dict[str, Path] = {}
    assert included._target("../README.md#here", "experiments/README.md", files) == "index.md#here"
    assert included._target("https://a.b", "README.md", files) == "https://a.b"
    assert included._target("no.svg", "README.md", files) == "no.svg" and files == {}


def test_the_answer_is_the_one_of_the_readme() -> None:
    shown = included.answer().splitlines()
    assert shown[0] == "```text" and shown[-1] == "```"
    readme = (ROOT / "README.md").read_text("utf-8")
    assert all(line.strip() in readme for line in shown[1:-1])
    assert any("accuracy on test" in line for line in shown)


def test_a_drawing_takes_its_colours_and_its_font_from_the_page() -> None:
    pytest.importorskip("matplotlib")
    from sieve.docs.drawing import COLOURS, axes, styled, to_svg
    from sieve.docs.plots import interval, splits
    from sieve.docs.subject import Subject

    with styled():
        for draw in (interval, splits):
            svg = to_svg(draw(Subject()), "one")
            assert not [colour for colour in COLOURS.values() if colour in svg]
            assert "var(--figure-ink)" in svg and "DejaVu" not in svg and "<style" not in svg
            assert 'id="one-' in svg and "width=" not in svg.split(">", 1)[0]
        figure, panels = axes()
        assert len(panels) == 1 and to_svg(figure, "two").startswith("<svg")


class Links(HTMLParser):
    """What a page shows, links to and is linked by."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []  # fetched when the page is opened
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        held = {name: value or "" for name, value in attrs}
        self.ids |= {held["id"]} if "id" in held else set()
        if tag == "a":
            self.links += [held["href"]] if "href" in held else []
        elif tag == "link" or tag == "use" or tag == "image":
            self.loaded += [v for k, v in held.items() if k in ("href", "xlink:href")]
        self.loaded += [held[key] for key in ("src", "srcset", "data", "poster") if key in held]
        self.loaded += re.findall(r"url\(['\"]?([^)'\"]+)", held.get("style", ""))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for name in ("mkdocs", "material", "mkdocstrings", "matplotlib"):
        pytest.importorskip(name, reason=f"{name} is not there; pip install 'sieve-llm[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [
        sys.executable, "-W", "error::UserWarning", "-m", "mkdocs", "build", "--strict",
        "--config-file", str(ROOT / "sieve/docs/mkdocs.yml"), "--site-dir", str(folder),
    ]  # fmt: skip
    paths = [str(ROOT), str(ROOT / "plugins/hydra_genetic_sweeper"), os.environ.get("PYTHONPATH")]
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "NO_MKDOCS_2_WARNING": "1", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_every_link_within_the_site_leads_somewhere(site: Path) -> None:
    pages = {page: Links(page.read_text("utf-8")) for page in site.rglob("*.html")}
    assert len(pages) > len(PAGES)
    broken = []
    for page, held in pages.items():
        for link in held.links + held.loaded:
            if re.match(r"[a-z]+:", link) or page.name == "404.html":
                continue
            path, _, anchor = unquote(link).partition("#")
            target = (page.parent / path).resolve() if path else page
            found = target.is_file() and (not anchor or target.suffix != ".html")
            if not found and not (target in pages and anchor in {*pages[target].ids, "__top"}):
                broken.append(f"{page.name}: {link}")
    assert broken == []


@pytest.mark.slow
def test_no_page_asks_for_anything_from_elsewhere(site: Path) -> None:
    asked = []
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        asked += [u for u in Links(text).loaded if re.match(r"(?:[a-z]+:)?//", u)]
        asked += re.findall(r"@import[^;]+;", text)
        assert "mermaid" not in text and "api.github.com" not in text
    for sheet in site.rglob("*.css"):
        inside = re.findall(r"(?:url\(|@import\s+)['\"]?([^)'\";]+)", sheet.read_text("utf-8"))
        asked += [u for u in inside if re.match(r"(?:https?:)?//", u)]
    assert asked == []


@pytest.mark.slow
def test_the_site_has_every_figure_and_can_be_searched_from_the_disk(site: Path) -> None:
    from sieve.docs.figures import FIGURES

    text = "".join(page.read_text("utf-8") for page in site.glob("*.html"))
    assert [name for name in FIGURES if f'id="figure-{name}"' not in text] == []
    assert "<!-- figure" not in text and "<!-- answer" not in text
    found = json.loads((site / "search/search_index.json").read_text("utf-8"))["docs"]
    assert any(entry["location"] == "settings.html#search.judge" for entry in found)
    assert (site / "search/search_index.js").is_file()
    assert "assets/iframe-worker.js" in (site / "index.html").read_text("utf-8")
