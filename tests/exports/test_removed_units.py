"""A model without some attentions and MLPs is exported without them and computes the same."""

import pytest
import torch
from exporting import greedy
from models import FAMILIES, tiny_tokenizer
from sieved import banked, logits, tokens
from transformers import AutoModelForCausalLM, PreTrainedModel

import sieve
from sieve.bank.bank import Bank
from sieve.bank.genome import Genome
from sieve.factorized.modeling_layers import skipped
from sieve.stages.result import matrix_table, sizes


def without_units(family: str) -> tuple[PreTrainedModel, Bank, Genome]:
    """A model without the first attention, whose cache counts tokens, and without the last MLP."""
    model = FAMILIES[family]()
    bank = banked(model, storage="pivoted")
    last = max(m.layer or 0 for m in bank.matrices)
    removed = {("o", 0), ("down", last)}
    indexes = tuple(2 if (m.kind, m.layer) in removed else 1 for m in bank.matrices)
    genome = Genome((1.0, 0.6, 0.0), indexes, bank.names, bank.fingerprint)
    sieve.apply(model, bank, genome)
    return model, bank, genome


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "opt"])
def test_an_export_skips_them_and_generates_the_same_with_a_cache(family, tmp_path):
    model, _, _ = without_units(family)
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "export")
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert skipped(loaded).keys() == skipped(model).keys()
    assert len(skipped(loaded)) == (1 if family == "opt" else 2)  # OPT's MLP is not a module.
    assert torch.equal(logits(loaded), logits(model))
    ids = tokens(2, 9)
    assert torch.equal(greedy(loaded, ids), greedy(loaded, ids, use_cache=False))
    again = sieve.export(loaded, tiny_tokenizer(), tmp_path / "again")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(again)), logits(model))


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_counted_parameters_are_those_of_the_export(family, tmp_path):
    dense = sum(p.numel() for p in FAMILIES[family]().parameters())
    model, bank, genome = without_units(family)
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "export")
    stored = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(folder).parameters())
    assert sizes(bank, genome, dense, torch.float32)["parameters"]["model_kept"] == stored
    rows = matrix_table(bank, genome)
    assert [r["kept_fraction"] for r in rows if r["layer"] == 0 and r["kind"] in "qkv"] == [0] * 3
    total = sum(r["kept_fraction"] * r["d_out"] * r["d_in"] for r in rows)
    assert total == pytest.approx(bank.kept_parameters(genome))


def test_dense_weights_without_them_compute_the_same(tmp_path):
    model, _, _ = without_units("gpt2")  # Its layers have biases, so dense weights hold them.
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "dense", "dense")
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(folder)), logits(model), rtol=1e-4, atol=1e-4
    )
