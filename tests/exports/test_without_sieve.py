"""Exports load where Sieve cannot be imported: factorized ones with trust_remote_code."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models import FAMILIES, tiny_llama, tiny_tokenizer
from sieved import banked, logits, tokens, uniform
from transformers import AutoModelForCausalLM

import sieve

# Loads directories without Sieve and writes the logits beside each. Without trust_remote_code
# transformers asks the user; if nobody can answer, it raises a ValueError that names the flag.
WITHOUT_SIEVE = """
import sys, warnings
sys.modules["sieve"] = None
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
dense, *folders = sys.argv[1:]
ids = torch.load("ids.pt")
model = AutoModelForCausalLM.from_pretrained(dense)
with torch.no_grad():
    torch.save(model(input_ids=ids).logits, dense + ".logits.pt")
for folder in folders:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    torch.save(logits, folder + ".logits.pt")
    model.save_pretrained(folder + "_again")
    again = AutoModelForCausalLM.from_pretrained(folder + "_again", trust_remote_code=True)
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, logits)
AutoTokenizer.from_pretrained(folders[0], trust_remote_code=True)
write = pipeline("text-generation", model=folders[0], trust_remote_code=True)
text = write("a good movie", max_new_tokens=4, do_sample=False)[0]["generated_text"]
print("WROTE", text.startswith("a good movie"))
for flag in (False, None):
    try:
        AutoModelForCausalLM.from_pretrained(folders[0], trust_remote_code=flag)
    except ValueError as error:
        print("REFUSED", error)
"""


@pytest.mark.slow
def test_exports_load_without_sieve_and_are_refused_without_trust_remote_code(exported, tmp_path):
    torch.save(tokens(), tmp_path / "ids.pt")
    expected = {}
    for family in FAMILIES:
        model, folder = exported(family)
        expected[str(folder)] = logits(model)
    first = next(iter(expected))
    resaved = str(tmp_path / "resaved")  # Saved after `import sieve`, it loads without Sieve too.
    AutoModelForCausalLM.from_pretrained(first).save_pretrained(resaved)
    expected[resaved] = expected[first]
    model = tiny_llama()
    bank = banked(model, storage="pivoted")
    sieve.apply(model, bank, uniform(bank, 0.6))
    dense = str(sieve.export(model, tiny_tokenizer(), tmp_path / "dense", "dense"))
    done = subprocess.run(
        [sys.executable, "-P", "-c", WITHOUT_SIEVE, dense, *expected],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("REFUSED") == 2
    assert done.stdout.count("Please pass the argument `trust_remote_code=True`") == 2
    assert "WROTE True" in done.stdout
    assert "newly initialized" not in done.stderr and "a model of type" not in done.stderr
    torch.testing.assert_close(torch.load(dense + ".logits.pt"), logits(model), rtol=0, atol=1e-4)
    for folder, values in expected.items():
        torch.testing.assert_close(torch.load(folder + ".logits.pt"), values, rtol=0, atol=1e-5)
        again = Path(folder + "_again")
        assert (again / "modeling_sieve.py").is_file()
        loaded = AutoModelForCausalLM.from_pretrained(again)
        torch.testing.assert_close(logits(loaded), values, rtol=0, atol=1e-5)
