"""Adapters of PEFT on an exported model: trained, saved, loaded, merged."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict, Unpack

import pytest
import torch
from models import tiny_gpt2, tiny_llama, tiny_tokenizer
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from sieved import banked, logits, mixed, tokens, uniform
from transformers import PreTrainedModel, Trainer, TrainingArguments

import sieve
from sieve.factorized.modeling_layers import FactorizedLinear
from sieve.model.quantized import is_quantized

ATTENTION = "base_model.model.model.layers.0.self_attn"
FACTORS = r".*\.factor_(in|out)"
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{text}")
    for text in (
        ".*is_gradient_checkpointing.*",  # PEFT uses the older name.
        "fan_in_fan_out is set to",  # PEFT warns and corrects it.
        "Initializing zero-element tensors",  # Matrices of rank 0
        ".*LoRA tensor.*have invalid shape",  # have empty adapters.
    )
]
WITHOUT_SIEVE = """
import sys
sys.modules["sieve"] = None
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
export, adapter = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(export, trust_remote_code=True)
model = PeftModel.from_pretrained(model, adapter)
ids = torch.load(export + ".ids.pt")
with torch.no_grad():
    logits = model(input_ids=ids).logits
    merged = model.merge_and_unload()(input_ids=ids).logits
torch.save([logits, merged], export + ".logits.pt")
"""


class BankOptions(TypedDict, total=False):
    """Options of a bank."""

    storage: str
    joint: bool
    projection: str


def export(
    folder: Path,
    build: Callable[[], PreTrainedModel] = tiny_llama,
    **options: Unpack[BankOptions],
) -> Path:
    """An exported model with mixed levels, some of rank 0 and some dense."""
    model = build()
    bank = banked(model, **options)
    genome = uniform(bank, 0.3) if options.get("joint") else mixed(bank)
    sieve.apply(model, bank, genome)
    return sieve.export(model, tiny_tokenizer(), folder)


def adapted(model: PreTrainedModel, target: str) -> PeftModel:
    """The model with adapters, trained on one batch; its loss must fall."""
    config = LoraConfig(r=4, target_modules=target, task_type="CAUSAL_LM")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        wrapped = get_peft_model(model, config)
    trained = {n: p for n, p in wrapped.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    optimizer = torch.optim.Adam(trained.values(), 1e-2)
    ids, losses = tokens(4, 16), []
    for _ in range(5):
        loss = wrapped(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] - 0.1
    return wrapped.eval()


@pytest.mark.parametrize(
    ("build", "options", "target"),
    [
        (tiny_llama, {"storage": "plain"}, "all-linear"),
        (tiny_llama, {"storage": "pivoted"}, FACTORS),
        (tiny_llama, {"storage": "plain", "joint": True}, FACTORS),
        (tiny_llama, {"storage": "pivoted", "joint": True}, "all-linear"),
        (tiny_gpt2, {"storage": "pivoted", "projection": "affine"}, FACTORS),
    ],
)
def test_an_adapter_is_trained_saved_loaded_and_merged(
    build: Callable[[], PreTrainedModel], options: BankOptions, target: str, tmp_path: Path
) -> None:
    folder = export(tmp_path / "export", build, **options)
    wrapped = adapted(sieve.load(folder)[0], target)
    wrapped.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(sieve.load(folder)[0], tmp_path / "adapter")
    assert torch.equal(logits(loaded), logits(wrapped))
    base, _ = sieve.load(folder)
    logits(base)  # State of this pass must not survive the merge.
    merged = PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload()
    torch.testing.assert_close(logits(merged), logits(wrapped), rtol=0, atol=1e-5)
    again = sieve.export(merged, tiny_tokenizer(), tmp_path / "merged")
    torch.testing.assert_close(logits(sieve.load(again)[0]), logits(wrapped), rtol=0, atol=1e-5)


def test_matrices_that_share_a_factor_share_its_adapter(tmp_path: Path) -> None:
    folder = export(tmp_path / "export", storage="pivoted", joint=True)
    wrapped = adapted(sieve.load(folder)[0], FACTORS)
    factors = [wrapped.get_submodule(f"{ATTENTION}.{n}_proj").factor_in for n in "qkv"]
    assert isinstance(factors[0], LoraLayer) and factors.count(factors[0]) == 3


def test_an_adapter_can_be_put_on_quantized_factors(tmp_path: Path) -> None:
    from sieve.config import QuantizationConfig
    from sieve.quantization import quantize

    model, tokenizer = sieve.load(export(tmp_path / "export", storage="pivoted"))
    names = [n for n, m in model.named_modules() if isinstance(m, FactorizedLinear)]
    quantize(model.requires_grad_(False), names, QuantizationConfig("int8"), torch.float32)
    folder = sieve.export(model, tokenizer, tmp_path / "small")
    base, _ = sieve.load(folder)
    assert any(is_quantized(p) for p in base.parameters())
    wrapped = adapted(base, FACTORS)
    wrapped.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(sieve.load(folder)[0], tmp_path / "adapter")
    torch.testing.assert_close(logits(loaded), logits(wrapped), rtol=0, atol=1e-5)
    merged, expected = logits(loaded.merge_and_unload()), logits(wrapped)
    error = (merged - expected).abs().max()  # Merging rounds to 8 bits again.
    assert 0 < error < 0.05 * (expected - logits(sieve.load(folder)[0])).abs().max()


def test_an_adapter_names_the_export_it_was_trained_on(tmp_path: Path) -> None:
    folder = export(tmp_path / "export", storage="pivoted")
    wrapped = adapted(sieve.load(folder)[0], FACTORS)
    wrapped.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(loaded), logits(wrapped))
    model, _ = sieve.load(folder)
    model.load_adapter(tmp_path / "adapter")  # by transformers, without a wrapper
    assert torch.equal(logits(model), logits(wrapped))


@pytest.mark.slow
def test_the_trainer_of_transformers_trains_an_adapter(tmp_path: Path) -> None:
    folder = export(tmp_path / "export", storage="pivoted")
    config = LoraConfig(r=4, target_modules=FACTORS, task_type="CAUSAL_LM")
    wrapped = get_peft_model(sieve.load(folder)[0], config)
    before = {name: p.detach().clone() for name, p in wrapped.named_parameters()}
    rows = [{"input_ids": row, "labels": row} for row in tokens(6, 16)]
    arguments = TrainingArguments(
        str(tmp_path / "trainer"),
        max_steps=3,
        per_device_train_batch_size=6,
        save_steps=3,
        learning_rate=1e-2,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        activation_checkpointing=True,
    )
    trainer = Trainer(wrapped, arguments, train_dataset=rows)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 3 and losses[-1] < losses[0]
    moved = {n for n, p in wrapped.named_parameters() if not torch.equal(p, before[n])}
    assert moved and all(".lora_" in name for name in moved)
    saved = tmp_path / "trainer/checkpoint-3"
    loaded = PeftModel.from_pretrained(sieve.load(folder)[0], saved)
    assert torch.equal(logits(loaded), logits(wrapped.eval()))


@pytest.mark.slow
def test_an_adapter_loads_without_sieve(tmp_path: Path) -> None:
    folder = export(tmp_path / "export", storage="pivoted")
    wrapped = adapted(sieve.load(folder)[0], FACTORS)
    wrapped.save_pretrained(tmp_path / "adapter")
    torch.save(tokens(), f"{folder}.ids.pt")
    command = [sys.executable, "-c", WITHOUT_SIEVE, str(folder), str(tmp_path / "adapter")]
    subprocess.run(command, check=True)
    for loaded in torch.load(f"{folder}.logits.pt", weights_only=True):
        torch.testing.assert_close(loaded, logits(wrapped), rtol=0, atol=1e-5)
