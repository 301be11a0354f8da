"""The model card of an export: what the model does, how to load it, how it was made."""

from collections.abc import Mapping

from sieve.report.result import Result, read
from sieve.report.sentence import answer_sentence, verdict
from sieve.report.templating import environment
from sieve.report.units import metric_name, metric_value
from sieve.report.values import percent

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
        facts=_facts(result, base),
    )


def _facts(result: Result, base: str) -> dict[str, str]:
    graph = result.export.accuracy
    facts = {
        "Base model": base,
        "Kept of the prunable parameters": percent(result.kept_fraction.prunable),
        "Kept of the whole model": percent(result.kept_fraction.model),
        "Projection, storage": f"{result.projection}, {result.storage}",
        "Search": result.search.method,
        "Quantization": result.quantization.method if result.quantization else "",
        f"{metric_name(result).capitalize()} on test, as exported": ""
        if graph is None
        else metric_value(result, graph),
        "Seed": "" if result.seed is None else str(result.seed),
        "Sieve": result.sieve_version,
    }
    return {name: value for name, value in facts.items() if value}
