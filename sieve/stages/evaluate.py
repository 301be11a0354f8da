"""evaluate: dense and pruned model on the test split, once."""

import platform
from dataclasses import asdict
from typing import Any

from sieve.bank.bank import Bank
from sieve.bank.genome import Genome
from sieve.bank.switch import Switch
from sieve.data.datamodule import SieveDataModule
from sieve.evaluation.evaluation import ScoringModule, compare_with_chance
from sieve.evaluation.speed import compare_speed, describe_machine
from sieve.runtime.artifacts import fingerprint, read_json, write_json_atomic
from sieve.runtime.memory import peak_memory_mib
from sieve.stages.quantize import quantize, record_of
from sieve.stages.run import Run, split_key
from sieve.tasks import Task
from sieve.tasks.scores import Scores, compare


def evaluate(run: Run, bank: Bank, genome: Genome) -> dict[str, Any]:
    """Dense and pruned model on the test split, once: scores, interval, size, speed."""
    key = fingerprint(
        "evaluation", 2, bank.fingerprint, genome.levels, asdict(run.config.speed),
        asdict(run.config.quantization),
        run.split_key("test"), run.config.seed,
        {name: split_key(one.task, "test") for name, one in run.others.items()},
        platform.node(), describe_machine(run.device),
    )  # fmt: skip
    path = run.cache.path("evaluation", key, "json")
    with run.stage("evaluate", cached=path.exists()):
        if not path.exists():
            figures = _evaluate(run, bank, genome)
            if run.leads:
                write_json_atomic(path, figures)
    return read_json(path)


def _evaluate(run: Run, bank: Bank, genome: Genome) -> dict[str, Any]:
    speed = run.config.speed
    with Switch(run.backbone.model, bank) as switch:
        baseline = score_test(run)
        before = {name: score_test(run, data) for name, data in run.others.items()}
        switch.to(genome)
        pruned = score_test(run)
        quantized = None
        if run.config.quantization.method != "none":
            found, unquantized = quantize(run, bank), pruned
            pruned = score_test(run)
            quantized = record_of(run, bank, found, unquantized.accuracy, pruned.accuracy)
        after = {name: score_test(run, data) for name, data in run.others.items()}
        timed = None
        # Of a model shared out over ranks it would be the speed of what connects them.
        if speed.enabled and run.leads and not run.sharded:
            options = {k: v for k, v in asdict(speed).items() if k != "enabled"}
            finish = (lambda: quantize(run, bank)) if quantized else None
            timed = asdict(compare_speed(switch, genome, **options, finish=finish))
    drop = compare(baseline, pruned, run.config.seed)
    chance = compare_with_chance(baseline, run.task.splits["test"])
    run.logger.log_metrics(
        {"evaluate/baseline_accuracy": baseline.accuracy,
         "evaluate/pruned_accuracy": pruned.accuracy, "evaluate/drop": drop.point}
    )  # fmt: skip
    return {
        "baseline": {
            "accuracy": baseline.accuracy,
            "chance": chance.accuracy if chance else None,
            "beats_chance": chance.beaten if chance else None,
        },
        "pruned": {"accuracy": pruned.accuracy},
        "quantization": quantized,
        "examples": len(baseline.values),
        "drop": asdict(drop),
        "memory": {"peak_mib": peak_memory_mib(run.device)},
        "speed": timed,
        "also": {
            name: _compared(run, before[name], after[name], data.task)
            for name, data in run.others.items()
        },
    }


def _compared(run: Run, baseline: Scores, pruned: Scores, task: Task) -> dict[str, Any]:
    """Both models on the test rows of another task."""
    return {
        "metric": task.metric.name,
        "relative": task.metric.relative,
        "domain": task.domain,
        "baseline": {"accuracy": baseline.accuracy},
        "pruned": {"accuracy": pruned.accuracy},
        "examples": len(baseline.values),
        "drop": asdict(compare(baseline, pruned, run.config.seed)),
    }


def score_test(run: Run, data: SieveDataModule | None = None) -> Scores:
    """Score the model as it stands on a test split, the run's own by default."""
    data = data or run.data
    examples = len(data.task.splits["test"])
    module = ScoringModule(run.backbone.model, examples, data.task.metric)
    run.trainer.test(module, datamodule=data, verbose=False)
    run.settle()
    assert module.scores is not None
    return module.scores
