"""A dense model that does not do the task gives no answer; the page says what helps instead."""

import shlex
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sieve.report import closing_table
from sieve.report.card import model_card
from sieve.report.next_steps import next_steps
from sieve.report.page import render_page
from sieve.report.result import read
from sieve.report.verdict import verdict

Result = dict[str, Any]
RUN = "python -m sieve.run +task=sst2 model.path=models/reader-6m seed=0"


@pytest.fixture
def at_chance(result: Result, monkeypatch: pytest.MonkeyPatch) -> Result:
    monkeypatch.setattr("sieve.report.page.get_plotlyjs", lambda: "")
    result["baseline"] = {"accuracy": 0.51, "chance": 0.5, "beats_chance": False}
    return result


def printed(result: Result) -> str:
    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        console.print(closing_table(result, {}))
    return capture.get()


def commands(result: Result, folder: Path | None = None) -> list[str]:
    return [step.command for step in next_steps(read(result), folder)]


@pytest.mark.parametrize(
    ("inverted", "badge"), [(False, "no better than chance"), (True, "worse than chance")]
)
def test_page_terminal_and_card_show_no_kept_fraction_as_the_answer(
    at_chance: Result, inverted: bool, badge: str
) -> None:
    at_chance["baseline"]["inverted"] = inverted
    page = render_page(at_chance).replace("\N{NO-BREAK SPACE}", " ")
    assert '<p class="figure">no answer</p>' in page
    assert f'<p class="badge missed">{badge}</p>' in page
    assert f"no answer   {badge}" in printed(at_chance)
    card = model_card(at_chance, "owner/model", "{text}")
    assert f"**no answer** because the dense model does not do the task · **{badge}**\n" in card
    for text in (page.partition("</header>")[0], card.partition("## Intended use")[0]):
        assert "kept" not in text


@pytest.mark.parametrize("inverted", [False, True])
def test_the_verdict_names_all_that_helps(at_chance: Result, inverted: bool) -> None:
    at_chance["baseline"]["inverted"] = inverted
    text = verdict(read(at_chance)).text
    assert "labels" in text and "python -m sieve.tune" in text and "use another model." in text
    assert ("the order of task.labels" in text) == inverted


def test_the_next_steps_tune_the_model_and_prune_it(at_chance: Result, tmp_path: Path) -> None:
    at_chance["export"] = {"format": "factorized", "server": ""}
    tune, prune = commands(at_chance, tmp_path)
    assert tune == RUN.replace("sieve.run", "sieve.tune my_adapter")
    assert prune == f"{RUN} model.adapter=my_adapter"
    assert commands(at_chance) == [tune, prune]
    title = next_steps(read(at_chance), tmp_path)[0].title
    assert title.startswith("Check the prompt and the labels.") and "another model" in title
    page = render_page(at_chance)
    assert page.index("What next</h2>") < page.index(tune) < page.index(prune)


def test_a_model_without_an_answer_is_not_to_be_exported(at_chance: Result, tmp_path: Path) -> None:
    at_chance["export"] = {"format": "none"}
    assert not any("export=" in command for command in commands(at_chance, tmp_path))


def test_the_commands_in_the_terminal_fit_and_can_be_pasted(at_chance: Result) -> None:
    at_chance["command"] = f"{RUN} 'task.prompt=A review: {{text}}' " + " ".join(
        f"search.rows={number}" for number in range(1000, 1010)
    )
    text = printed(at_chance)
    assert max(map(len, text.splitlines())) <= 80
    pasted = " ".join(line.strip() for line in text.splitlines()).replace("\\ ", "")
    tune, prune = commands(at_chance)
    assert tune in pasted and prune in pasted


def test_tuning_gets_the_settings_of_data_and_model_alone(at_chance: Result) -> None:
    own = ["hydra.run.dir=here", "recovery=lora", "recovery.steps=9", "logger=none", "export=onnx"]
    at_chance["command"] += f" +experiment=mine tolerance=0.01 {shlex.join(own)}"
    tune, prune = commands(at_chance)
    assert tune.endswith("seed=0 +experiment=mine tolerance=0.01")
    assert all(word in shlex.split(prune) for word in own)


@pytest.mark.parametrize(
    "change",
    [
        {"metric": "agreement"},  # has no labels
        {"rivals": {"tuned_dense": 0.5}},  # was tuned already
        {"baseline": {"accuracy": 0.9, "chance": 0.5, "beats_chance": True}},
    ],
)
def test_tuning_is_offered_only_where_it_may_help(at_chance: Result, change: Result) -> None:
    at_chance |= change
    assert commands(at_chance) == [] and "sieve.tune" not in printed(at_chance)


@pytest.mark.parametrize("command", ["", f"{RUN} model.adapter=mine"])
def test_without_a_command_to_build_on_only_the_verdict_names_the_tuning(
    at_chance: Result, command: str
) -> None:
    at_chance["command"] = command
    assert commands(at_chance) == [] and "sieve.tune" in printed(at_chance)
