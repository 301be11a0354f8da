"""The answer of a notebook is that of an evaluation, on rows that the search has not seen."""

import pytest
from models import tiny_llama, tiny_tokenizer
from sieved import banked, mixed

import sieve
from sieve.evaluation.evaluation import score
from sieve.search.measure import Answer
from sieve.tasks.metrics import metric_of
from sieve.tasks.scores import compare


def examples(first: int, count: int) -> list[sieve.Example]:
    return [
        sieve.Example(f"number {i} is {i % 7}", (" no", " yes"), i % 2)
        for i in range(first, first + count)
    ]


@pytest.fixture(scope="module")
def measured() -> tuple[sieve.Objective, sieve.Genome]:
    model = tiny_llama()
    bank = banked(model)
    batches = sieve.scoring_batches(examples(0, 30), tiny_tokenizer())
    return sieve.Objective(model, bank, batches), mixed(bank)


def test_the_answer_is_that_of_an_evaluation(
    measured: tuple[sieve.Objective, sieve.Genome],
) -> None:
    objective, genome = measured
    batches = sieve.scoring_batches(examples(100, 50), tiny_tokenizer())
    answer = sieve.measure(objective, genome, batches)
    model = objective.switch.model
    dense = score(model, batches)
    with objective.switch.to(genome):
        pruned = score(model, batches)
    drop = compare(dense, pruned)
    assert (answer.dense.accuracy, answer.pruned.accuracy) == (dense.accuracy, pruned.accuracy)
    assert answer.drop == drop and answer.kept_fraction == objective.bank.kept_fraction(genome)
    text = str(answer)
    kept, before, after = (
        f"{100 * value:.1f} %" for value in (answer.kept_fraction, dense.accuracy, pruned.accuracy)
    )
    assert text.startswith(f"{kept} of the prunable parameters kept: accuracy {after} instead of ")
    assert f"instead of {before}, a " in text and "(95 % interval" in text
    assert text.endswith("on 50 rows that the search has not seen.")
    table = answer._repr_html_()
    assert f"{before} → {after}" in table and "<th style='text-align:left'>kept</th>" in table


def test_rows_of_the_search_are_counted(measured: tuple[sieve.Objective, sieve.Genome]) -> None:
    objective, genome = measured
    batches = sieve.scoring_batches(examples(25, 20), tiny_tokenizer(), batch_tokens=64)
    answer = sieve.measure(objective, genome, batches)
    assert answer.seen == 5
    assert str(answer).endswith("on 20 rows, of which the search has seen 5.")


def test_a_perplexity_rises_by_percent(measured: tuple[sieve.Objective, sieve.Genome]) -> None:
    from sieve.data.text import text_batches

    objective, genome = measured
    texts = [sieve.Example("", (f"a good movie {i}",), 0) for i in range(12)]
    batches = text_batches(texts, tiny_tokenizer(), metric_of("perplexity", None))
    answer = sieve.measure(objective, genome, batches)
    assert isinstance(answer, Answer)
    assert f"kept: perplexity {answer.pruned.accuracy:,.2f}"[:22] in str(answer)
    assert " % (95 % interval" in str(answer) and "points" not in str(answer)
