"""Several objectives judged together: the least margin, or the margin of all rows as one."""

import pytest
from models import tiny_tokenizer
from sieved import uniform
from test_objective import BANK, BATCHES, EXAMPLES, MODEL

from sieve.data.text import text_batches
from sieve.search.joint_objective import JointObjective
from sieve.search.objective import Objective
from sieve.search.score import Score
from sieve.tasks.example import Example
from sieve.tasks.metrics import metric_of


def test_a_joint_objective_takes_the_least_margin_or_that_of_all_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both = JointObjective([Objective(MODEL, BANK, BATCHES), Objective(MODEL, BANK, BATCHES)])
    answers = [Score(0.5, 0.9, 0.02, 10, 0.1), Score(0.5, 0.8, -0.1, 10, 0.3)]
    for objective, answer in zip(both.objectives, answers, strict=True):
        monkeypatch.setattr(objective, "score", lambda *_, answer=answer: answer)
    score = both.score(uniform(BANK, 0.6))
    assert (score.margin, score.examples_used) == (-0.1, 20)
    assert score.accuracy == pytest.approx(0.85) and score.loss == pytest.approx(0.2)
    together = JointObjective(both.objectives, together=True).score(uniform(BANK, 0.6))
    assert together.margin == pytest.approx(-0.04) and not together.feasible
    assert together.accuracy == pytest.approx(0.85) and together.examples_used == 20
    both.objectives.reverse()
    assert both.score(uniform(BANK, 0.6)).examples_used == 10
    # With `together`, all objectives are scored even if the first refuses.
    again = JointObjective(both.objectives, together=True).score(uniform(BANK, 0.6))
    assert (again.margin, again.examples_used) == (together.margin, 20)
    assert len(both.baseline.correct) == 2 * len(EXAMPLES)


@pytest.mark.parametrize("form", ["perplexity", "bits"])
def test_a_joint_objective_of_two_texts_scores_them_as_one_text(form: str) -> None:
    metric = metric_of("perplexity", form)
    texts = [Example("", (" the good movie" * (1 + i % 4) + f" {i}",), 0) for i in range(9)]

    def objective(some: list[Example]) -> Objective:
        return Objective(MODEL, BANK, text_batches(some, tiny_tokenizer(), metric), tolerance=0.3)

    genome = uniform(BANK, 0.6)
    whole = objective(texts).score(genome)
    joint = JointObjective([objective(texts[:2]), objective(texts[2:])], together=True).score(
        genome
    )
    assert joint.accuracy == pytest.approx(whole.accuracy, rel=1e-5)
    assert joint.margin == pytest.approx(whole.margin, rel=1e-4)
