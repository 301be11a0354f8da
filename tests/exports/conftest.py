"""Exports that several test files only read."""

from collections.abc import Callable
from pathlib import Path

import pytest
from exporting import pruned
from models import FAMILIES, tiny_mixtral, tiny_tokenizer
from transformers import PreTrainedModel

import sieve

Exported = Callable[[str], tuple[PreTrainedModel, Path]]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Prunes and exports each family once; returns its model in memory and its directory."""
    exports: dict[str, tuple[PreTrainedModel, Path]] = {}

    def get(family: str) -> tuple[PreTrainedModel, Path]:
        if family not in exports:
            model = pruned((FAMILIES | {"mixtral": tiny_mixtral})[family]())
            path = tmp_path_factory.mktemp("exports") / family
            exports[family] = model, sieve.export(model, tiny_tokenizer(), path)
        return exports[family]

    return get
