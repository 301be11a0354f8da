"""The model card of an export: what the model does, how to load it, how it was made."""

from collections.abc import Mapping

from sieve.report.result import read
from sieve.report.rivals import standards
from sieve.report.sentence import answer_sentence
from sieve.report.templating import environment
from sieve.report.verdict import verdict

PIPELINES = {
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForSequenceClassification": "text-classification",
}


def model_card(
    record: Mapping[str, object],
    base: str,
    prompt: str,
    form: str = "factorized",
    auto_class: str = "AutoModelForCausalLM",
) -> str:
    """Markdown with the Hub's front matter.

    Args:
        record: `result.json`.
        base: the model that was pruned, by its name on the Hub if it has one.
        prompt: the task's prompt with its fields.
        form: the format of the export.
        auto_class: the transformers class that loads the model.
    """
    result = read(record)
    template = environment().get_template("model_card.md")
    return template.render(
        result=result,
        base=base,
        prompt=prompt,
        form=form,
        auto_class=auto_class,
        pipeline=PIPELINES[auto_class],
        answer=answer_sentence(result),
        verdict=verdict(result),
        standards=standards(result),
    )
