"""The script that trains the embedded model, in a smoke run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
SETS = [
    (d, s)
    for d in ("medicine", "geography", "reviews", "reading")
    for s in ("primary", "alternate")
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a smoke run in its own process."""
    out = tmp_path_factory.mktemp("embedded") / "model"
    command = [sys.executable, "-m", "sieve.assets.train_embedded", "--smoke", "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return out


@pytest.mark.slow
def test_a_smoke_run_saves_a_float16_model_that_loads_offline(trained: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(trained, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(trained, local_files_only=True, dtype="auto")
    assert model.dtype == torch.float16
    assert model.config.vocab_size == len(tokenizer)
    tokens = tokenizer("Question: What is the organ", return_tensors="pt").input_ids
    assert tokens[0, 0] == tokenizer.bos_token_id
    assert model.float()(tokens).logits.isfinite().all()
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


@pytest.mark.slow
def test_a_smoke_run_writes_its_settings_and_accuracies(trained: Path) -> None:
    figures = json.loads((trained / "train_embedded.json").read_text())
    assert figures["steps"] > 0
    assert figures["tokens"] > figures["steps"]
    assert figures["settings"]["seed"] == 0
    for domain, dataset in SETS:
        assert 0 <= figures["accuracy"][domain][dataset] <= 1
