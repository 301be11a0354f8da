"""Forecasts of the same model share its shapes."""

from typing import Any

import pytest

import sieve.costs.dry_run

_models: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def each_model_is_built_once(monkeypatch):
    build = sieve.costs.dry_run.read_model

    def once(config):
        settings = config.projection
        key = str((config.model, settings.prune_head, settings.prune_embedding))
        if key not in _models:
            _models[key] = build(config)
        return _models[key]

    monkeypatch.setattr(sieve.costs.dry_run, "read_model", once)
