"""Any task of lm-evaluation-harness as a task: its documents, prompts, targets and metric.

`+task=lm_eval task.name=arc_easy`. Prompts and answers are encoded as the harness does it, and a
row's value is what the harness makes of it, so that the dense model's score is the harness's own.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from sieve.runtime.artifacts import fingerprint
from sieve.tasks.config import ROLES, TaskConfig
from sieve.tasks.example import Example
from sieve.tasks.metrics import Metric, RowMetric
from sieve.tasks.splits import carve, check_not_empty, drop_duplicates, sample
from sieve.tasks.task import Task
from sieve.tasks.writing import Writing

log = logging.getLogger(__name__)
KINDS = {
    "multiple_choice": "multiple_choice",
    "loglikelihood": "multiple_choice",
    "generate_until": "generation",
    "loglikelihood_rolling": "perplexity",
}
# Metrics of values that are not simply averaged: Sieve's form, and what a text is divided by.
FORMS = {
    "perplexity": ("perplexity", None),
    "word_perplexity": ("perplexity", "words"),
    "byte_perplexity": ("perplexity", "bytes"),
    "bits_per_byte": ("bits", "bytes"),
}
SEED = 1234  # of the harness for few-shot examples
MAX_NEW_TOKENS = 256  # of the harness, where a task does not say


@dataclass(frozen=True)
class _Document:
    """A document of the harness, and the request it makes."""

    content: Any
    request: Any  # one instance, or a list of them


def build_harness_task(config: TaskConfig, seed: int = 0) -> Task:
    """Build `config.name` of the harness; needs no model.

    Raises:
        ValueError: the package is not there, there is no such task, or it is of a kind or has a
            metric that Sieve does not know.
        RuntimeError: its data cannot be had.
    """
    settings = dict(config.lm_eval or {})
    harness = _load(config, settings)
    kind = KINDS.get(harness.OUTPUT_TYPE)
    if kind is None:
        raise ValueError(
            f"task '{config.name}' of lm-evaluation-harness is of type {harness.OUTPUT_TYPE}, "
            f"expected one of {', '.join(KINDS)}."
        )
    shots = settings.get("num_fewshot")
    if shots is not None:
        harness.set_config(key="num_fewshot", value=int(shots))
    harness.set_fewshot_seed(SEED)
    documents = _documents(harness)  # Those of the test first, as the harness draws shots in order.
    metric, name, chosen = _metric(config, harness)
    if kind == "generation":
        chosen = settings.get("filter") or harness._filters[0].name
    held: dict[str, Any] = {}
    splits = {
        role: [_example(harness, one, held) for one in found] for role, found in documents.items()
    }
    distinct, duplicates = drop_duplicates(splits)
    check_not_empty(config.name, distinct, duplicates)
    parts, carved = carve(distinct)
    check_not_empty(config.name, parts, duplicates)
    of_text = kind == "perplexity"
    parts = {role: sample(parts[role], config.max_rows.get(role), seed) for role in ROLES}
    return Task(
        name=config.name, domain=config.domain, metric=metric, splits=parts,
        report={
            "source": f"lm-evaluation-harness {config.name}",
            "read": {role: len(found) for role, found in documents.items()},
            "rows": {role: len(found) for role, found in parts.items()},
            "carved": {role: {"from": "calibration", "rows": n} for role, n in carved.items()},
            "duplicates": duplicates, "truncated": {},
            "harness": {"metric": name, "filter": chosen, "shots": harness.config.num_fewshot},
        },
        chat="never", delimiter=str(harness.config.target_delimiter or ""), kind=kind,
        row_metric=None if of_text else _row_metric(harness, metric, name, chosen, held),
        writing=_writing(harness) if kind == "generation" else None,
        unit={"words": "word", "bytes": "byte"}.get(str(chosen), "token") if of_text else "token",
        scoring=fingerprint(name, chosen, settings), harness=True,
    )  # fmt: skip


def _load(config: TaskConfig, settings: dict[str, Any]) -> Any:
    """The task object of the harness."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ValueError(
            "+task=lm_eval takes the package lm-eval, which is not installed; "
            "pip install 'sieve-llm[lm_eval]'."
        ) from error
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = _manager(TaskManager, settings.get("include_path"))
    if config.name not in manager.all_subtasks:
        near = [name for name in manager.all_subtasks if config.name.lower() in name.lower()]
        hint = f", such as {', '.join(near[:4])}" if near else ""
        raise ValueError(
            f"lm-evaluation-harness has no task '{config.name}' (a group is not one), expected one "
            f"of its {len(manager.all_subtasks)}{hint}; set task.name, or for a task of yours "
            "++task.lm_eval.include_path=folder."
        )
    try:
        return manager.load(config.name)["tasks"][config.name]
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RuntimeError(
            f"task '{config.name}' of lm-evaluation-harness could not be loaded ({reason}); check "
            "the network, your access to its data, and its settings."
        ) from error


@lru_cache(maxsize=4)
def _manager(make: Any, include_path: str | None) -> Any:
    """The harness's index of its tasks, which takes seconds to make."""
    return make(include_path=include_path)


def _documents(harness: Any) -> dict[str, list[_Document]]:
    """Role -> documents with their requests; roles without any are absent."""
    found: dict[str, Iterable[Any]] = {}
    if harness.has_training_docs():
        found["calibration"] = harness.training_docs()
    if harness.has_test_docs() and harness.has_validation_docs():
        found["selection"] = harness.validation_docs()
    found["test"] = harness.eval_docs
    if "calibration" not in found:  # Else all come from what there is, by the hash of prompts.
        only = "selection" if "selection" in found else "test"
        found["calibration"] = found.pop(only)
    order = [role for role in ("test", *ROLES[:2]) if role in found]
    shots = harness.config.num_fewshot or 0
    documents = {}
    for role in order:
        documents[role] = [
            _Document(doc, _request(harness, doc, shots, index))
            for index, doc in enumerate(found[role])
        ]
    return {role: documents[role] for role in ROLES if role in documents}


def _context(harness: Any, doc: Any, shots: int) -> Any:
    return harness.fewshot_context(doc, num_fewshot=shots, gen_prefix=harness.doc_to_prefix(doc))


def _request(harness: Any, doc: Any, shots: int, index: int) -> Any:
    context = _context(harness, doc, shots)
    return harness.construct_requests(
        doc=doc, ctx=context, metadata=(harness.config["task"], index, 1)
    )


def _example(harness: Any, document: _Document, held: dict[str, Any]) -> Example:
    """A document as an example; `held` keeps it by the example's key."""
    doc, request = document.content, document.request
    requests = request if isinstance(request, list) else [request]
    arguments = [one.args for one in requests]
    if harness.OUTPUT_TYPE == "loglikelihood_rolling":
        (text,) = arguments[0]
        count = {"words": harness.count_words(text), "bytes": harness.count_bytes(text)}
        return Example("", (text,), 0, size=tuple(count.values()))
    if harness.OUTPUT_TYPE == "generate_until":
        context, target = arguments[0][0], harness.doc_to_target(doc)
        if harness.config.doc_to_choice is not None:
            target = harness.doc_to_choice(doc)[target]
        targets = [str(one) for one in (target if isinstance(target, list) else [target])]
        delimiter = str(harness.config.target_delimiter or "")
        example = Example(context, (delimiter + targets[0],), 0, references=tuple(targets))
    elif harness.OUTPUT_TYPE == "multiple_choice":
        contexts = [context for context, *_ in arguments]
        choices = tuple(continuation for _, continuation, *_ in arguments)
        answer = _gold(harness, doc, len(choices))
        own = tuple(contexts) if len(set(contexts)) > 1 else ()
        example = Example(contexts[0], choices, answer, contexts=own)
    else:
        context, continuation = arguments[0][:2]
        example = Example(context, (continuation,), 0)
    held[example.key] = request, doc
    if harness.config.num_fewshot:
        bare = _context(harness, doc, 0)
        bare = bare if isinstance(bare, str) else bare[0]
        return replace(example, bare=bare or "\n".join(example.choices))
    return example


def _gold(harness: Any, doc: Any, count: int) -> int:
    """The index of the right choice, of several the first; 0 where the document tells none."""
    gold = harness.doc_to_text(doc) if harness.multiple_input else harness.doc_to_target(doc)
    if isinstance(gold, list):
        gold = gold[0] if gold else 0
    if isinstance(gold, str):
        choices = harness.doc_to_choice(doc)
        gold = choices.index(gold) if gold in choices else 0
    return int(gold) if isinstance(gold, int) and 0 <= gold < count else 0


def _metric(config: TaskConfig, harness: Any) -> tuple[Metric, str, str | None]:
    """The metric that is asked for, or the task's first that Sieve knows, in Sieve's terms."""
    known = list(harness._metric_fn_list)
    wanted = [config.metric] if config.metric else known
    for name in wanted:
        if name in FORMS and name in known:
            return Metric(name, FORMS[name][0], 0.0), name, FORMS[name][1]
        averaged = harness.aggregation().get(name)
        is_mean = getattr(averaged, "__name__", "") == "mean"
        if name in known and is_mean and harness.higher_is_better().get(name, True):
            return Metric(name), name, None
    raise ValueError(
        f"task '{config.name}' of lm-evaluation-harness has the metrics {', '.join(known)}"
        f"{f', not {config.metric!r}' if config.metric else ''}, expected one that is a mean over "
        f"rows, the larger the better, or one of {', '.join(FORMS)}; set task.metric."
    )


def _row_metric(
    harness: Any, metric: Metric, name: str, chosen: str | None, held: dict[str, Any]
) -> RowMetric:
    """A row's value, as the harness makes it of log-likelihoods or of a text."""

    def from_pairs(logprobs: Sequence[float], greedy: Sequence[bool], example: Example) -> float:
        _, doc = held[example.key]
        pairs = list(zip(logprobs, greedy, strict=True))
        return float(harness.process_results(doc, pairs)[name])

    def from_outputs(texts: Sequence[str], examples: Sequence[Example]) -> list[float]:
        return [from_output(text, example) for text, example in zip(texts, examples, strict=True)]

    def from_output(text: str, example: Example) -> float:
        request, doc = held[example.key]
        one = replace_responses(request, text)
        for ensemble in harness._filters:
            if ensemble.name == chosen:
                ensemble.apply([one])
        return float(harness.process_results(doc, [one.filtered_resps[chosen]])[name])

    return RowMetric(metric, from_pairs=from_pairs, from_outputs=from_outputs)


def replace_responses(request: Any, text: str) -> Any:
    """A request of the harness as if a model had answered it so."""
    return replace(request, resps=[text], filtered_resps={})


def _writing(harness: Any) -> Writing:
    """Length and stop strings as a task of the harness asks for them."""
    asked = dict(harness.config.generation_kwargs or {})
    until = asked.get("until") or []
    stop = tuple(until if isinstance(until, list) else [until])
    length = int(asked.get("max_gen_toks") or asked.get("max_new_tokens") or MAX_NEW_TOKENS)
    if asked.get("do_sample") or asked.get("temperature", 0) not in (0, 0.0, None):
        log.warning("the harness samples answers of this task; here they are greedy.")
    return Writing(length, tuple(text for text in stop if text), strip=False)
