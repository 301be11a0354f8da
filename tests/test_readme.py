"""The README's examples in Python run as printed, one after the other."""

import re
from pathlib import Path

import pytest
import torch
from models import tiny_llama, tiny_tokenizer
from transformers import AutoModelForCausalLM

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # Of peft.
def test_the_examples_sieve_a_transformers_model_and_put_an_adapter_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook, adapter = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    tiny_llama().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    rows = [{"text": f"number {i} is {i % 7}", "label": i % 2} for i in range(240)]
    scope = {"path": str(tmp_path / "model"), "rows": rows}
    exec(notebook, scope)
    again = AutoModelForCausalLM.from_pretrained("small", dtype=torch.float32)
    tokens = torch.arange(8)[None]
    torch.testing.assert_close(again(tokens).logits, scope["model"](tokens).logits)
    exec(adapter, scope)
    trained = [n for n, p in scope["model"].named_parameters() if p.requires_grad]
    assert trained and all(".factor_" in name and ".lora_" in name for name in trained)
