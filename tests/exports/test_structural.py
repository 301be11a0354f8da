"""A model of a structural search is exported to formats without factors, as small as it is."""

from dataclasses import replace

import pytest
import torch
from models import FAMILIES, tiny_tokenizer
from sieved import banked, logits

import sieve
from sieve.search.waterfill import waterfill

pytest.importorskip("gguf")
pytest.importorskip("onnxruntime")


def _has_both(used):
    """Whether an MLP has lost neurons and a whole unit is gone."""
    return any(gene.neurons for gene in used) and 0 in used.values()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("format", "family"), [("gguf", "llama"), ("gguf", "qwen2"), ("onnx", "qwen2")]
)
def test_units_and_neurons_that_were_removed_are_absent(format, family, tmp_path):
    model = FAMILIES[family]()
    dense_bytes = sum(parameter.nbytes for parameter in model.parameters())
    bank = replace(banked(model, narrow=True), structural=True)
    frontier = waterfill(bank)
    genomes = (frontier.genome(step) for step in range(len(frontier.changes)))
    genome = next(g for g in genomes if _has_both(bank.in_use(g)))
    sieve.apply(model, bank, genome)
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "export", format)
    loaded, _ = sieve.load(folder)
    with torch.no_grad():
        torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-3, atol=1e-3)
    files = [path for path in folder.iterdir() if path.suffix in (".gguf", ".onnx", ".data")]
    kept = sum(parameter.nbytes for parameter in model.parameters())
    assert kept < 0.8 * dense_bytes
    assert sum(path.stat().st_size for path in files) < kept + 120_000  # names, tokenizer, graph
