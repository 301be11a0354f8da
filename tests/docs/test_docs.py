"""The documentation: every setting is explained, and its examples run."""

import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from models import tiny_llama, tiny_tokenizer
from omegaconf import OmegaConf
from test_conf_groups import CONF, compose_raw
from test_readme import commands, compose_command

from sieve.config import Config, SweepConfig
from sieve.docs import comments, included, settings

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "sieve/docs/pages").rglob("*.md"))
COMMANDS = [(page.name, overrides) for page in PAGES for overrides in commands(page)]
IDS = [" ".join(overrides) for _, overrides in COMMANDS]


def leaves(node: object, prefix: str = "") -> set[str]:
    """The dotted keys of a composed configuration."""
    if not isinstance(node, dict) or not node:
        return {prefix.rstrip(".")}
    return set().union(*(leaves(value, f"{prefix}{key}.") for key, value in node.items()))


def declared(settings_class: type, prefix: str = "") -> set[str]:
    """The dotted keys of a dataclass of settings."""
    keys = set()
    for field in fields(settings_class):
        kind = get_type_hints(settings_class)[field.name]
        nested = isinstance(kind, type) and is_dataclass(kind)
        keys |= declared(kind, f"{prefix}{field.name}.") if nested else {prefix + field.name}
    return keys


def test_every_setting_has_a_meaning() -> None:
    meanings = {e.key: e.meaning for group in settings.entries().values() for e in group}
    documented = meanings.keys() | declared(SweepConfig, "sweep.")
    assert [key for key, meaning in meanings.items() if not meaning.strip()] == []
    assert declared(Config) - {"trainer"} - documented == set()
    for trainer in ("cpu", "gpu"):
        raw = compose_raw("+task=sst2", f"trainer={trainer}")
        # An entry for a mapping, such as task.hub, covers the keys in it.
        assert [
            key
            for key in leaves(OmegaConf.to_container(raw))
            if key not in documented
            and not any(key.startswith(f"{name}.") for name in documented if "." in name)
        ] == []


def test_the_page_of_settings_has_no_settings_of_the_sweeper_alone() -> None:
    assert not declared(SweepConfig, "sweep.") & settings.keys()


def test_every_option_of_every_group_has_its_line() -> None:
    listed = {(option.group, option.name) for option in settings.options()}
    files = {(p.parent.name, p.stem) for p in CONF.glob("*/[!_]*.yaml")}
    assert listed == {pair for pair in files if pair[0] != "hydra"}
    assert [(o.group, o.name) for o in settings.options() if not o.meaning.strip()] == []
    pages = settings.pages()
    for group, name in listed:
        assert f"{group}={name}</code>" in pages[f"settings/{group}.md"]


def test_the_pages_of_settings_have_defaults_and_anchors() -> None:
    entries = {e.key: e for group in settings.entries().values() for e in group}
    assert entries["tolerance"].default == "0.02" and entries["projection.refit"].default == "true"
    assert entries["task.prompt"].default == "" and entries["task.delimiter"].default == "' '"
    assert entries["hydra.launcher.partition"].meaning.startswith("With `launcher=slurm`: ")
    assert settings.page_of("search.judge") == "settings/search.md"
    assert settings.page_of("tolerance") == "settings/run.md"
    pages = settings.pages()
    for key in entries:
        heading = f"## `{key}` {{: #{settings.anchor(key)} .setting }}"
        assert heading in pages[settings.page_of(key)]
        assert f"]({settings.page_of(key)}#{settings.anchor(key)})" in pages["settings.md"]


def test_every_page_of_settings_is_in_the_menu() -> None:
    menu = (ROOT / "sieve/docs/mkdocs.yml").read_text("utf-8")
    assert [path for path in settings.pages() if f": {path}\n" not in menu] == []


def test_comments_are_read_beside_above_and_below_their_keys(tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    path.write_text("# Head.\n\n# above\na: 1\nb:\n  c: x#y  # beside\n         # below\nd: 2\n")
    assert comments.of_yaml(path) == {"a": "above", "b": "", "b.c": "beside below", "d": ""}
    assert comments.of_file(path) == "Head."


@pytest.mark.slow
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
    # An entry for a mapping, such as task.hub, covers task.hub.rows.
    assert {n for n in named if n not in known and n.rpartition(".")[0] not in known} == set()


@pytest.mark.slow
def test_the_examples_in_python_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cookbook = (ROOT / "sieve/docs/pages/cookbook.md").read_text("utf-8")
    questions = (ROOT / "sieve/docs/pages/questions.md").read_text("utf-8")
    (notebook,) = re.findall(r"```python\n(.*?)```", cookbook, re.DOTALL)
    (size,) = re.findall(r"```python\n(.*?)```", questions, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    tiny_llama().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    rows = [{"text": f"number {i} is {i % 7}", "label": i % 2} for i in range(640)]
    scope: dict[str, Any] = {"path": str(tmp_path / "model"), "rows": rows}
    exec(notebook, scope)
    assert (tmp_path / "small" / "config.json").is_file()
    exec(size, scope)
    assert scope["bank"].kept_fraction(scope["genome"]) <= 0.25


def test_links_of_included_pages_lead_to_the_site() -> None:
    page, linked = included.include("experiments/README.md")
    assert "](files/experiments/results/curve.svg)" in page
    assert all(path.is_file() for path in linked.values())
    files: dict[str, Path] = {}
    assert (
        included.link_target("../README.md#here", "experiments/README.md", files) == "index.md#here"
    )
    assert included.link_target("https://a.b", "README.md", files) == "https://a.b"
    assert included.link_target("no.svg", "README.md", files) == "no.svg" and files == {}


def test_the_answer_is_the_one_of_the_readme() -> None:
    shown = included.answer().splitlines()
    assert shown[0] == "```text" and shown[-1] == "```"
    readme = (ROOT / "README.md").read_text("utf-8")
    assert all(line.strip() in readme for line in shown[1:-1])
    assert any("accuracy on test" in line for line in shown)


def test_a_figure_takes_its_colors_and_its_font_from_the_page() -> None:
    pytest.importorskip("matplotlib")
    from matplotlib import pyplot as plt

    from sieve.docs.drawing import COLORS, STYLE, to_svg
    from sieve.docs.plots import interval
    from sieve.docs.subject import Subject

    with plt.rc_context(STYLE):
        svg = to_svg(interval(Subject()), "one")
    assert not [color for color in COLORS.values() if color in svg]
    assert "var(--figure-ink)" in svg and "DejaVu" not in svg and "<style" not in svg
    assert svg.startswith("<svg") and "width=" not in svg.split(">", 1)[0]
    assert 'id="one-' in svg and "#one-" in svg
