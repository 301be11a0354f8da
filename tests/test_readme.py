"""The README's examples in Python run as printed, one after the other."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from models import tiny_llama, tiny_tokenizer
from transformers import AutoModelForCausalLM

from sieve.conversion import CONF, register_resolvers

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")  # Matrices of rank 0.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # Of peft.
def test_the_examples_sieve_a_transformers_model_and_put_an_adapter_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook, adapter = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    tiny_llama().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    rows = [{"text": f"number {i} is {i % 7}", "label": i % 2} for i in range(640)]
    scope = {"path": str(tmp_path / "model"), "rows": rows}
    exec(notebook, scope)
    again = AutoModelForCausalLM.from_pretrained("small", dtype=torch.float32)
    tokens = torch.arange(8)[None]
    torch.testing.assert_close(again(tokens).logits, scope["model"](tokens).logits)
    exec(adapter, scope)
    trained = [n for n, p in scope["model"].named_parameters() if p.requires_grad]
    assert trained and all(".factor_" in name and ".lora_" in name for name in trained)


def commands(page: Path) -> list[list[str]]:
    """The overrides of every `python -m sieve.run` on a page, lines joined."""
    text = page.read_text("utf-8").replace("\\\n", " ")
    lines = re.findall(r"^(?: {4})?python -m sieve\.run (.*)$", text, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


@pytest.mark.parametrize("overrides", commands(README), ids=" ".join)
def test_a_command_of_the_readme_composes(overrides: list[str]) -> None:
    compose_command(overrides)


def compose_command(overrides: list[str]) -> None:
    """Fails where Hydra does not know what a command asks for."""
    register_resolvers()
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        if "--multirun" in overrides:  # One job of it.
            overrides = [o.split(",")[0] for o in overrides if o != "--multirun"]
        assert compose("config", overrides)


def test_settings_that_the_readme_names_can_be_given_as_it_says() -> None:
    pages = README, README.parent / "sieve/docs/pages/task.md"
    text = "".join(page.read_text("utf-8") for page in pages)
    named = set(re.findall(r"`(\+\+task\.[\w.]+)(?:=\S+)?`", text))
    assert {"++task.judge.url", "++task.hub.rows", "++task.hub.streaming"} <= named
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        for task in ("squad", "amazon"):
            assert compose("config", [f"+task={task}", *(f"{name}=1" for name in sorted(named))])
