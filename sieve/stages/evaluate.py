"""evaluate: the dense and the pruned model on the test split, once."""

import platform
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sieve.bank.bank import Bank
from sieve.bank.genome import Genome
from sieve.data.datamodule import SieveDataModule
from sieve.evaluation.evaluation import (
    ScoringModule,
    check_finite,
    compare_with_chance,
    warn_not_finite,
)
from sieve.evaluation.speed import compare_speed, describe_machine
from sieve.runtime.artifacts import fingerprint
from sieve.runtime.memory import peak_memory_mib
from sieve.stages.cached import JSON, JSON_LINES, FileFormat, Record
from sieve.stages.finished import scored_switch
from sieve.stages.quantize import quantization_record, quantize
from sieve.stages.run import Run
from sieve.stages.splits import split_key
from sieve.stages.student import prompt_record
from sieve.stages.unlabelled import (
    compare_answers,
    compared_rows,
    dense_choices,
    unlabelled_key,
)
from sieve.stages.vocabulary import vocabulary_record
from sieve.tasks.drop_test import upper_drop
from sieve.tasks.flips import find_flips, score_classes
from sieve.tasks.scores import Scores, as_baseline, compare

VERSION = 8  # of the record; part of its fingerprint


def evaluate(run: Run, bank: Bank, genome: Genome) -> Record:
    """Score both models on the test split: accuracies, interval of the drop, speed, memory.

    On rows without labels their answers are compared. The test rows that changed are written to
    `flips.jsonl`.
    """
    others = {name: split_key(data.task, "test") for name, data in run.others.items()}
    rows = [run.split_key("test"), others, run.config.seed, run.config.confidence]
    if run.task.unlabelled:
        rows += [unlabelled_key(run), run.config.recovery.method, run.config.recovery.unlabelled]
    settings = [asdict(run.config.speed), asdict(run.config.quantization)]
    machine = [platform.node(), describe_machine(run.device)]
    model = [bank.fingerprint, genome.levels]
    key = fingerprint("evaluation", VERSION, model, rows, settings, machine)
    files: dict[str, FileFormat[Any]] = {"evaluation": JSON, "flips": JSON_LINES}
    record, flips = run.cached("evaluate", key, files, lambda: _evaluate(run, bank, genome))
    if run.leads:
        JSON_LINES.write(flips, run.run_dir / "flips.jsonl")
    return record


def _evaluate(run: Run, bank: Bank, genome: Genome) -> tuple[Record, list[Record]]:
    quantized = speed = prompt = None
    dense_too = is_dense(run, bank, genome)  # The dense model has the same scores once more.
    with scored_switch(run, bank) as switch:
        with run.original_model():
            dense = as_baseline(score_test(run, run.original_data))
            check_finite(dense)
            others_dense = {n: score_test(run, data) for n, data in run.original_others.items()}
        unlabelled = [] if dense_too else compared_rows(run)
        answers = dense_choices(run, unlabelled)
        switch.to(genome)
        pruned = dense if dense_too else score_test(run)
        if run.config.quantization.method != "none":
            size, unquantized = quantize(run, bank), pruned
            pruned = score_test(run)
            quantized = quantization_record(
                run, bank, size, before=unquantized.accuracy, after=pruned.accuracy
            )
        compared = compare_answers(run, unlabelled, answers)
        others_pruned = others_dense
        if not dense_too:
            others_pruned = {name: score_test(run, data) for name, data in run.others.items()}
        finish = (lambda: quantize(run, bank)) if quantized else None
        # The speed of a model in parts would be the speed of a network or of a disk.
        if run.config.speed.enabled and run.leads and not run.in_parts:
            options = {k: v for k, v in asdict(run.config.speed).items() if k != "enabled"}
            options |= {"finish": finish, "dense_model": run.original_model}
            speed = asdict(compare_speed(switch, genome, **options))
        if run.dense_task is not None:
            prompt = prompt_record(run, switch, genome, finish)
    if run.leads:
        warn_not_finite(pruned, "The pruned model")
        for model, others in (("dense", others_dense), ("pruned", others_pruned)):
            for name, scores in others.items():
                warn_not_finite(scores, f"The {model} model on the task {name}")
    record = _compare(run, dense, pruned)
    chance = compare_with_chance(dense, run.task.splits["test"])
    record["baseline"] |= {
        "chance": chance.accuracy if chance else None,
        "beats_chance": chance.beaten if chance else None,
        "inverted": chance.inverted if chance else None,
    }
    accuracies = {f"evaluate/{m}_accuracy": record[m]["accuracy"] for m in ("baseline", "pruned")}
    run.logger.log_metrics(accuracies | {"evaluate/drop": record["drop"]["point"]})
    changed, flips = _changes(run, dense, pruned)
    record |= changed | {
        "quantization": quantized,
        "unlabelled": compared,
        "vocabulary": vocabulary_record(run, dense, pruned),
        "memory": {"peak_mib": peak_memory_mib(run.device)},
        "speed": speed,
        **({} if prompt is None else {"prompt": prompt}),
        "also": _compare_others(run, others_dense, others_pruned),
    }
    return record, flips


def _changes(run: Run, dense: Scores, pruned: Scores) -> tuple[Record, list[Record]]:
    """How many test rows flipped and how each class fared, and the rows that flipped."""
    examples, task = run.task.splits["test"], run.task
    flips = [asdict(flip) for flip in find_flips(examples, dense, pruned)]
    counts = Counter(flip["outcome"] for flip in flips)
    classes = score_classes(examples, task.labels, dense, pruned)
    outcomes = {outcome: counts[outcome] for outcome in ("lost", "won", "changed")}
    return {
        "flips": {"rows": len(flips)} | outcomes,
        "classes": [asdict(one) for one in classes],
    }, flips


def _compare_others(
    run: Run, dense: Mapping[str, Scores], pruned: Mapping[str, Scores]
) -> dict[str, Record]:
    """The comparison on the test rows of each task of `also`."""
    return {
        name: {
            "metric": data.task.metric.name,
            "relative": data.task.metric.relative,
            "domain": data.task.domain,
        }
        | _compare(run, dense[name], pruned[name])
        for name, data in run.others.items()
    }


def is_dense(run: Run, bank: Bank, genome: Genome) -> bool:
    """Whether a genome leaves the dense model as it is: weights, dtype, prompt and vocabulary."""
    changed = run.config.quantization.method != "none" or run.dense_task is not None
    return not (changed or run.cut) and all(rank is None for rank in bank.ranks(genome).values())


def _compare(run: Run, dense: Scores, pruned: Scores) -> Record:
    confidence, seed = run.config.confidence, run.config.seed
    upper = None
    if confidence is not None and pruned is not dense:
        upper = upper_drop(dense, pruned, confidence)
    return {
        "baseline": {"accuracy": dense.accuracy, "not_finite": dense.not_finite},
        "pruned": {"accuracy": pruned.accuracy, "not_finite": pruned.not_finite},
        "examples": len(dense.values),
        "drop": asdict(compare(dense, pruned, seed)) | {"upper": upper},
    }


def score_test(run: Run, data: SieveDataModule | None = None) -> Scores:
    """Score the model in its present state on a test split, by default the run's own."""
    data = data or run.data
    examples = len(data.task.splits["test"])
    module = ScoringModule(run.backbone.model, examples, data.task.metric)
    run.trainer.test(module, datamodule=data, verbose=False)
    run.settle()
    assert module.scores is not None
    return module.scores
