"""The cost model compares genomes of different sizes at one divergence."""

import numpy as np
import pytest

from sieve.search.score import CostModel, Score, fit_cost_model


def test_a_genome_at_the_divergence_limit_costs_what_the_limit_was_set_for() -> None:
    model = CostModel(0.1, 0.02, 0.3)
    for kept, cost in ((0.08, 0.1), (0.12, 0.1), (0.1, 0.09), (0.02, 0.1)):
        far = model.max_divergence(kept, cost)
        score = Score(kept, 0.9, 0.0, 10, divergence=far)
        assert model.cost(score) == pytest.approx(cost)
    # A genome this large costs more at any divergence.
    assert model.max_divergence(0.3, 0.1) == -np.inf
    assert model.cost(Score(0.3, 0.9, 0.0, 10, divergence=0.0)) > 0.1


def test_a_small_model_that_always_gives_the_same_answer_costs_as_much_as_dense() -> None:
    model = CostModel(0.0114, 0.383, 0.22, tolerance=0.02)
    answers = Score(0.0117, 0.79, 0.014, 523, divergence=0.382)
    collapsed = Score(0.0042, 0.5, -0.2725, 523, divergence=0.47)
    assert model.cost(answers) < 0.012 and model.cost(collapsed) == 1
    # A loss slightly beyond the tolerance may be chance.
    worse = Score(0.0090, 0.77, -0.01, 523, divergence=0.42)
    assert model.cost(worse) < model.cost(answers)
    # The margin of a genome that was dropped early is only a bound.
    part = Score(0.0042, 0.5, -0.2725, 65, divergence=0.47, whole=False)
    assert model.cost(part) < 0.012


def test_a_genome_that_keeps_nothing_can_be_the_reference() -> None:
    nothing = Score(0.0, 0.9, 0.01, 10, divergence=0.02)
    model = fit_cost_model(nothing, [nothing, Score(0.1, 0.9, 0.01, 10, divergence=0.01)])
    assert model.kept_fraction > 0 and not np.isnan(model.max_divergence(0.1, 0.05))
    assert model.cost(Score(0.1, 0.9, 0.01, 10, divergence=0.02)) > model.cost(nothing) > 0
