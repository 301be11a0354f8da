"""The fingerprint of a bank changes with the code that computes it, not with its documentation."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sieve import projections
from sieve.config import ProjectionConfig
from sieve.stages.fit import bank_key


def key(name: str = "loss_aware") -> str:
    return bank_key(ProjectionConfig(name), "moments", torch.float32, seed=0)


def test_editing_a_docstring_does_not_change_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key()
    monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("the key reads source text"))
    monkeypatch.setattr("builtins.open", lambda *_: pytest.fail("the key reads source text"))
    assert key() == before


@pytest.mark.parametrize("name", ["loss_aware", "learned"])
def test_raising_the_version_of_a_projection_changes_its_key_alone(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, other = key(name), key("svd")
    projection = projections.PROJECTIONS[name]
    newer = replace(projection, version=projection.version + 1)
    monkeypatch.setitem(projections.PROJECTIONS, name, newer)
    assert key(name) != before and key("svd") == other
