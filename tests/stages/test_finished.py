"""Ranks that share a model share its factors when it is scored, and rank 0 alone writes them."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sieve.config import ExportConfig, QuantizationConfig
from sieve.stages import finished as module


def made(
    monkeypatch: pytest.MonkeyPatch, name: str, sharded: bool, leads: bool = True, **settings: str
) -> dict[str, Any]:
    """How the switch of `name` is made."""
    monkeypatch.setattr(module, "Switch", lambda *_, **options: options)
    config = SimpleNamespace(
        export=ExportConfig(format=settings.get("export", "factorized")),
        quantization=QuantizationConfig(settings.get("quantization", "none")),
    )
    run: Any = SimpleNamespace(
        config=config, sharded=sharded, leads=leads, backbone=SimpleNamespace(model=None)
    )
    bank: Any = SimpleNamespace(groups=[settings["group"]] if "group" in settings else [])
    return getattr(module, name)(run, bank)


def test_factors_are_split_where_the_model_is(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, split = (made(monkeypatch, "scored_switch", sharded) for sharded in (False, True))
    assert whole == {"as_stored": True, "split": False}
    assert split == {"as_stored": False, "split": True}
    rounded = made(monkeypatch, "scored_switch", True, quantization="int8")
    assert rounded == whole


def test_rank_0_alone_holds_what_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    held = [made(monkeypatch, "written_switch", True, leads)["held"] for leads in (True, False)]
    assert held == [torch.device("cpu"), torch.device("meta")]
    assert made(monkeypatch, "written_switch", False)["held"] is None
    assert made(monkeypatch, "written_switch", True, export="dense")["held"] is None
    assert made(monkeypatch, "written_switch", True, group="siblings")["held"] is None
