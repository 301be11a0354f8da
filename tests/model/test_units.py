"""Which matrices are not needed without another one is read off the graph, in every family."""

import pytest
import torch
from families import EVERY
from sieved import banked, logits
from torch import nn

from sieve.bank.genome import Genome
from sieve.bank.switch import Switch
from sieve.factorized.modeling_layers import skipped
from sieve.model.matrices import find_matrices
from sieve.model.observation import Observation, Owner
from sieve.model.units import has_neurons

# Families in which the weights of the attention leave the block beside its output.
SHOWN_WEIGHTS = {"gpt_neo", "bloom"}
SOME = "llama qwen2 gpt2 phi3 opt gemma3 cohere2 qwen2_moe gpt_neo bloom".split()


def without(bank, names):
    """The dense model without these matrices."""
    indexes = tuple(int(name in names) for name in bank.names)
    return Genome((1.0, 0.0), indexes, bank.names, bank.fingerprint)


@pytest.mark.parametrize("family", SOME)
def test_attention_and_mlp_are_units_that_end_in_o_and_down(family):
    units = {}
    for matrix in find_matrices(EVERY[family]()):
        if not matrix.expert and matrix.layer == 1:
            units.setdefault(matrix.feeds and matrix.feeds.rpartition(".")[0], set()).add(
                matrix.kind
            )
    expected = {"q", "k", "v", "qkv", "gate", "up", "gate_up"}
    if family in SHOWN_WEIGHTS:
        expected -= {"q", "k", "qkv"}
    fed = set().union(*(kinds for writer, kinds in units.items() if writer))
    assert fed == expected & set().union(*units.values())
    assert not {"o", "down"} & fed


@pytest.mark.parametrize("family", SOME)
def test_what_feeds_a_removed_writer_changes_nothing_and_stores_nothing(family):
    model = EVERY[family]()
    bank = banked(model)
    writers = {m.feeds for m in bank.matrices if m.feeds}
    with Switch(model, bank) as switch:
        # Nothing is known to feed what was removed, so everything is computed.
        switch.set_ranks(
            bank.ranks(without(bank, writers)) | {m.name: None for m in bank.matrices if m.feeds}
        )
        assert not skipped(model)
        whole = logits(model)
    with Switch(model, bank) as switch:
        switch.to(without(bank, writers))
        assert {f"{path}.{done.writer}" for path, done in skipped(model).items()} == {
            m.name for m in bank.matrices if m.owner
        }
        torch.testing.assert_close(logits(model), whole)
        for matrix in bank.matrices:
            if matrix.feeds:
                layer = model.get_submodule(matrix.name)
                assert sum(p.numel() for p in layer.parameters()) == 0
    assert not skipped(model)


@pytest.mark.parametrize(
    ("operations", "others", "expected"),
    [
        ({"MulBackward0", "SiluBackward0"}, set(), True),
        ({"MulBackward0", "MmBackward0"}, set(), False),  # It mixes neurons.
        ({"MulBackward0"}, {"router"}, False),  # Something else is multiplied with them.
    ],
)
def test_neurons_are_computed_alone_and_from_feeders_only(operations, others, expected):
    model = nn.ModuleDict({"mlp": nn.ModuleDict({"up": nn.Linear(3, 5), "down": nn.Linear(5, 3)})})
    readers = {name: {"mlp.down"} for name in {"mlp.up", *others}}
    seen = Observation({}, readers, {}, {"mlp.down": operations})
    assert has_neurons(model, seen, "mlp.down", Owner("mlp", 0), ["mlp.up"]) == expected
