"""The model card of an export: what the model does, how to load it, how it was made."""

import json
from collections.abc import Mapping, Sequence

from sieve.report.result import read
from sieve.report.rivals import standards
from sieve.report.sentence import answer_sentence
from sieve.report.templating import environment
from sieve.report.verdict import verdict
from sieve.tasks.placeholders import PLACEHOLDER, names_in

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
    answers: Sequence[str] = (),
    chat: bool = False,
) -> str:
    """Markdown with the Hub's front matter.

    Args:
        record: `result.json`.
        base: the model that was pruned, by its name on the Hub if it has one.
        prompt: the task's prompt, with columns in braces.
        form: the format of the export.
        auto_class: the transformers class that loads the model.
        answers: the likeliest of these is the answer to every row, each as it follows the prompt;
            empty if rows have answers of their own.
        chat: whether the prompt is a message of the tokenizer's chat template.
    """
    scored = answers and auto_class == "AutoModelForCausalLM" and not form.startswith("onnx")
    result = read(record)
    template = environment().get_template("model_card.md")
    return template.render(
        result=result,
        base=base,
        prompt=_as_text(prompt),
        answers=[answer.strip() for answer in answers],
        code=_prediction(prompt, answers, chat) if scored else "",
        form=form,
        auto_class=auto_class,
        pipeline=PIPELINES[auto_class],
        answer=answer_sentence(result),
        verdict=verdict(result),
        standards=standards(result),
    )


def _as_text(prompt: str) -> str:
    """A prompt with line breaks, and with single braces where it has doubled ones."""
    text = prompt.replace("\\n", "\n")
    return PLACEHOLDER.sub(
        lambda match: match.group() if match.group(1) else match.group()[0], text
    )


def _prediction(prompt: str, answers: Sequence[str], chat: bool) -> str:
    """Python code that prints the likeliest answer to one row."""
    columns = "".join(
        f".replace({_quoted(f'{{{name}}}')}, 'your text')" for name in names_in(prompt)
    )
    lines = [
        "import torch",
        "",
        f"prompt = {_quoted(_as_text(prompt))}{columns}",
        f"answers = [{', '.join(map(_quoted, answers))}]",
        "scores = []",
        "for answer in answers:",
        f"    tokens = tokenizer(prompt + answer{', add_special_tokens=False' * chat}, "
        "return_tensors='pt').input_ids",
        "    with torch.no_grad():",
        "        logprobs = model(input_ids=tokens).logits[0, :-1].float().log_softmax(-1)",
        "    scores.append(logprobs.gather(1, tokens[0, 1:, None]).sum())",
        "print(answers[scores.index(max(scores))].strip())",
    ]
    if chat:
        lines.insert(
            3,
            "prompt = tokenizer.apply_chat_template([{'role': 'user', 'content': prompt}], "
            "tokenize=False, add_generation_prompt=True)",
        )
    return "\n".join(lines)


def _quoted(text: str) -> str:
    """A text as a literal of Python."""
    return json.dumps(text, ensure_ascii=False)
