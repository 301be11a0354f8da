"""Any task of lm-evaluation-harness as a task: its documents, prompts, answers and metric.

    python -m sieve.run +task=lm_eval task.name=arc_easy

Prompts and answers are encoded as the harness encodes them, and the harness gives each row its
value, so the dense model's score is the harness's own.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from sieve.runtime.artifacts import fingerprint
from sieve.tasks.config import ROLES, TaskConfig
from sieve.tasks.example import Example, Row
from sieve.tasks.metrics import Metric, RowMetric
from sieve.tasks.splits import divide
from sieve.tasks.task import Task
from sieve.tasks.writing import Writing

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks import TaskManager

log = logging.getLogger(__name__)
KINDS = {
    "multiple_choice": "multiple_choice",
    "loglikelihood": "multiple_choice",
    "generate_until": "generation",
    "loglikelihood_rolling": "perplexity",
}
# Metrics that are not a mean over rows: our form, and the unit of the text.
FORMS = {
    "perplexity": ("perplexity", "token"),
    "word_perplexity": ("perplexity", "word"),
    "byte_perplexity": ("perplexity", "byte"),
    "bits_per_byte": ("bits", "byte"),
}
SEED = 1234  # the harness's seed for few-shot examples
MAX_NEW_TOKENS = 256  # the harness's default


class _Request(NamedTuple):
    """A document, and what the harness asks a model about it."""

    document: Row
    instances: list[Instance]  # one, or one per choice


def build_harness_task(config: TaskConfig, seed: int = 0) -> Task:
    """Build the harness's task `config.name`; needs no model.

    Raises:
        ValueError: lm-eval is not installed, there is no such task, or it has a type or a metric
            that is not supported.
        RuntimeError: the task's data cannot be loaded.
    """
    settings = dict(config.lm_eval or {})
    harness = _load(config, settings.get("include_path"))
    kind = KINDS.get(harness.OUTPUT_TYPE)
    if kind is None:
        raise ValueError(
            f"task '{config.name}' of lm-evaluation-harness has the type {harness.OUTPUT_TYPE}, "
            f"expected one of {', '.join(KINDS)}; choose another task."
        )
    if settings.get("num_fewshot") is not None:
        harness.set_config(key="num_fewshot", value=int(settings["num_fewshot"]))
    harness.set_fewshot_seed(SEED)
    requests = _requests(harness)
    metric, unit = _metric(config, harness)
    by_key: dict[str, _Request] = {}
    examples: dict[str, list[Example]] = {}
    for role, asked in requests.items():
        examples[role] = [_to_example(harness, request) for request in asked]
        by_key |= {e.key: r for e, r in zip(examples[role], asked, strict=True)}
    wanted = 0 if kind == "perplexity" else config.selection_rows  # Texts are long.
    division = divide(config.name, examples, config.max_rows, seed, wanted)
    filter_name, row_metric = None, None
    if kind == "generation":
        filter_name = settings.get("filter") or harness._filters[0].name
    if kind != "perplexity":
        row_metric = _row_metric(harness, metric, filter_name, by_key)
    report = {
        "source": f"lm-evaluation-harness {config.name}",
        "read": {role: len(asked) for role, asked in requests.items()},
        "harness": {
            "metric": metric.name,
            "filter": filter_name,
            "shots": harness.config.num_fewshot,
        },
    }
    return Task(
        name=config.name,
        domain=config.domain,
        metric=metric,
        splits=division.splits,
        report=report | division.report(),
        chat="never",
        delimiter=str(harness.config.target_delimiter or ""),
        kind=kind,
        row_metric=row_metric,
        writing=_writing(harness) if kind == "generation" else None,
        unit=unit,
        scoring=fingerprint(metric.name, filter_name or unit, settings),
        harness=True,
    )


def _load(config: TaskConfig, include_path: str | None) -> ConfigurableTask:
    """The task object of the harness."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ValueError(
            "+task=lm_eval needs the package lm-eval, which is not installed; "
            "pip install 'sieve-llm[lm_eval]'."
        ) from error
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = _manager(TaskManager, include_path)
    if config.name not in manager.all_subtasks:
        similar = [name for name in manager.all_subtasks if config.name.lower() in name.lower()]
        hint = f", such as {', '.join(similar[:4])}" if similar else ""
        raise ValueError(
            f"lm-evaluation-harness has no task '{config.name}' (a group is not a task), expected "
            f"one of its {len(manager.all_subtasks)}{hint}; set task.name, or for a task of yours "
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
def _manager(manager: type[TaskManager], include_path: str | None) -> TaskManager:
    """The harness's index of its tasks, which takes seconds to make."""
    return manager(include_path=include_path)


def _requests(harness: ConfigurableTask) -> dict[str, list[_Request]]:
    """Role -> documents with their requests; a role without documents is absent."""
    documents: dict[str, Iterable[Row]] = {"test": harness.eval_docs}
    if harness.has_test_docs() and harness.has_validation_docs():
        documents["selection"] = harness.validation_docs()
    if harness.has_training_docs():
        documents["calibration"] = harness.training_docs()
    else:  # Missing splits are carved from calibration.
        only = "selection" if "selection" in documents else "test"
        documents["calibration"] = documents.pop(only)
    shots = harness.config.num_fewshot or 0
    requests: dict[str, list[_Request]] = {role: [] for role in ROLES if role in documents}
    # Test first, because the harness draws the shots of its prompts in this order.
    for role in ("test", "calibration", "selection"):
        for index, document in enumerate(documents.get(role, ())):
            made = harness.construct_requests(
                doc=document,
                ctx=_context(harness, document, shots),
                metadata=(harness.config["task"], index, 1),
            )
            instances = made if isinstance(made, list) else [made]
            requests[role].append(_Request(document, instances))
    return requests


def _context(harness: ConfigurableTask, document: Row, shots: int) -> str | list[str]:
    """The prompt of a document, or one per choice."""
    return harness.fewshot_context(
        document, num_fewshot=shots, gen_prefix=harness.doc_to_prefix(document)
    )


def _to_example(harness: ConfigurableTask, request: _Request) -> Example:
    document, arguments = request.document, [one.args for one in request.instances]
    if harness.OUTPUT_TYPE == "loglikelihood_rolling":
        (text,) = arguments[0]
        return Example("", (text,), 0, size=(harness.count_words(text), harness.count_bytes(text)))
    contexts = tuple(context for context, *_ in arguments)
    if harness.OUTPUT_TYPE == "generate_until":
        target = harness.doc_to_target(document)
        if harness.config.doc_to_choice is not None:
            target = harness.doc_to_choice(document)[target]
        targets = tuple(str(one) for one in (target if isinstance(target, list) else [target]))
        delimiter = str(harness.config.target_delimiter or "")
        example = Example(contexts[0], (delimiter + targets[0],), 0, references=targets)
    else:
        choices = tuple(continuation for _, continuation, *_ in arguments)
        right = 0 if len(choices) == 1 else _answer(harness, document, len(choices))
        own = contexts if len(set(contexts)) > 1 else ()
        example = Example(contexts[0], choices, right, contexts=own)
    if not harness.config.num_fewshot:
        return example
    bare = _context(harness, document, 0)
    bare = bare if isinstance(bare, str) else bare[0]
    return replace(example, bare=bare or "\n".join(example.choices))


def _answer(harness: ConfigurableTask, document: Row, count: int) -> int:
    """The index of the right choice, or of the first of several; 0 if the document has none."""
    multiple = harness.multiple_input
    gold = harness.doc_to_text(document) if multiple else harness.doc_to_target(document)
    if isinstance(gold, list):
        gold = gold[0] if gold else 0
    if isinstance(gold, str):
        choices = harness.doc_to_choice(document)
        gold = choices.index(gold) if gold in choices else 0
    return int(gold) if isinstance(gold, int) and 0 <= gold < count else 0


def _metric(config: TaskConfig, harness: ConfigurableTask) -> tuple[Metric, str]:
    """The metric `task.metric`, or the task's first supported one, and the unit of a perplexity."""
    names = list(harness._metric_fn_list)
    for name in [config.metric] if config.metric else names:
        if name not in names:
            continue
        if name in FORMS:
            form, unit = FORMS[name]
            return Metric(name, form, 0.0), unit
        is_mean = getattr(harness.aggregation().get(name), "__name__", "") == "mean"
        if is_mean and harness.higher_is_better().get(name, True):
            return Metric(name), "token"
    raise ValueError(
        f"task '{config.name}' of lm-evaluation-harness has the metrics {', '.join(names)}"
        f"{f', not {config.metric!r}' if config.metric else ''}, expected one that is a mean over "
        f"rows and larger for better answers, or one of {', '.join(FORMS)}; set task.metric."
    )


def _row_metric(
    harness: ConfigurableTask,
    metric: Metric,
    filter_name: str | None,
    requests: dict[str, _Request],
) -> RowMetric:
    """The harness's own value of a row; `requests` has the request of each example's key."""

    def value(example: Example, results: Sequence[Any]) -> float:
        document = requests[example.key].document
        return float(harness.process_results(document, list(results))[metric.name])

    def from_pairs(logprobs: Sequence[float], greedy: Sequence[bool], example: Example) -> float:
        return value(example, list(zip(logprobs, greedy, strict=True)))

    def from_outputs(texts: Sequence[str], examples: Sequence[Example]) -> list[float]:
        return [value(e, [extract(text, e)]) for text, e in zip(texts, examples, strict=True)]

    def extract(text: str, example: Example) -> object:
        """The answer that the harness's filter finds in a text."""
        (instance,) = requests[example.key].instances
        answered = replace(instance, resps=[text], filtered_resps={})
        for ensemble in harness._filters:
            if ensemble.name == filter_name:
                ensemble.apply([answered])
        return answered.filtered_resps[filter_name]

    return RowMetric(metric, from_pairs=from_pairs, from_outputs=from_outputs)


def _writing(harness: ConfigurableTask) -> Writing:
    """The length and stop strings that the task sets."""
    settings = dict(harness.config.generation_kwargs or {})
    until = settings.get("until") or []
    stop = tuple(until if isinstance(until, list) else [until])
    length = int(settings.get("max_gen_toks") or settings.get("max_new_tokens") or MAX_NEW_TOKENS)
    if settings.get("do_sample") or settings.get("temperature", 0) not in (0, 0.0, None):
        log.warning("lm-evaluation-harness samples answers for this task; Sieve decodes greedily.")
    return Writing(length, tuple(text for text in stop if text), strip=False)
