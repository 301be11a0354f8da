"""A run records what the labels give without a language model, and whether it trained on them."""

from pathlib import Path

import pytest
from runs import finished, make_world

from sieve.config import RecoveryConfig
from sieve.stages.rivals import trains_on_labels


@pytest.mark.slow
def test_a_run_scores_the_labels_alone_on_all_calibration_rows(tmp_path: Path) -> None:
    make_world(tmp_path)
    result = finished(tmp_path, "first", "speed.enabled=false", "export=none")
    rivals = result["rivals"]
    assert rivals["tfidf"]["rows"] == result["data"]["rows"]["calibration"]
    assert 0 <= rivals["tfidf"]["accuracy"] <= 1
    assert rivals["why_not"] is rivals["tuned_dense"] is None
    assert not rivals["trained_on_labels"]
    again = finished(tmp_path, "second", "speed.enabled=false", "export=none", "tolerance=0.3")
    assert again["cached"]["rivals"] and again["rivals"] == rivals


@pytest.mark.parametrize(("loss", "labels"), [("task", True), ("both", True), ("kl", False)])
def test_only_right_answers_that_changed_the_model_count_as_labels(loss: str, labels: bool) -> None:
    config = RecoveryConfig("full", loss=loss)
    assert trains_on_labels(config, {"taken": True}) is labels
    assert not trains_on_labels(config, {"taken": False})
    assert not trains_on_labels(config, None)
