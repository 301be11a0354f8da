"""The tests of a run share the risk of being wrong that its confidence allows."""

from typing import Any

import pytest

from sieve.config import Config, ProjectionConfig, QuantizationConfig, RecoveryConfig, SearchConfig
from sieve.tasks.config import TaskConfig

REFIT = {"projection": ProjectionConfig(refit=True)}
PLAIN = {"projection": ProjectionConfig(refit=False)}
INT8 = {"quantization": QuantizationConfig(method="int8")}
TRAINED = {"recovery": RecoveryConfig(method="full")}
AS_IT_IS = {"search": SearchConfig(recover=False)}


@pytest.mark.parametrize(
    ("settings", "tests"),
    [
        (PLAIN, 1),
        (REFIT, 2),
        ({"projection": ProjectionConfig(refit=False, tune_steps=10)}, 2),
        (REFIT | INT8, 3),
        (REFIT | TRAINED, 1),  # The sizes after training are the only choice.
        (PLAIN | TRAINED | INT8, 2),
        (REFIT | TRAINED | AS_IT_IS, 3),
    ],
)
def test_every_choice_on_the_same_rows_has_an_equal_share_of_the_risk(
    settings: dict[str, Any], tests: int
) -> None:
    config = Config(task=TaskConfig("task"), confidence=0.9, **settings)
    assert config.tests == tests
    assert config.test_confidence == pytest.approx(1 - 0.1 / tests)
    assert Config(task=TaskConfig("task"), confidence=None, **settings).test_confidence is None
