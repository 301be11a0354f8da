"""The checks of settings that need neither data nor a model. An error says what to change."""

import math
from functools import reduce
from itertools import chain
from typing import Any

from sieve.config import EXPORTS, GROUP_SIZES, TRAINER_KEYS, Config, shards
from sieve.projection_checks import Check, check_embedding, check_narrow
from sieve.tasks.metrics import AGREEMENT
from sieve.tasks.placeholders import names_in
from sieve.tasks.student import ROW

DTYPES = ("auto", "float32", "bfloat16", "float16")
CHOICES = {
    "model.dtype": DTYPES,
    "calibration.answers": ("margin", "sampled", "gold"),
    "calibration.strategy": ("whole", "stream"),
    "calibration.hidden": ("disk", "memory"),
    "calibration.weighting": ("auto", "none", "answer", "gradient", "position"),
    "projection.dtype": DTYPES,
    "projection.refit_target": ("output", "residual"),
    "projection.learning.init": ("random", "pca", "optimal"),
    "search.method": ("uniform", "waterfill", "random", "evopress", "genetic"),
    "search.normalize": ("none", "relative"),
    "search.judge": ("divergence", "margin"),
    "search.alleles": ("ranks", "levels", "structural"),
    "search.seeds": ("uniform", "waterfill", "measured"),
    "sweep.job": ("", "prepare", "finalize"),
    "recovery.method": ("none", "lora", "full"),
    "recovery.factors": ("in", "out", "both"),
    "recovery.loss": ("task", "kl", "both"),
    "recovery.optimizer": ("adam", "muon"),
    "vocabulary.method": ("none", "task"),
    "quantization.method": ("none", "int8", "int4"),
    "export.format": EXPORTS,
    "export.storage": ("plain", "pivoted"),
    "export.gguf_dtype": ("auto", "float32", "float16", "bfloat16", "q8_0"),
    "logger.mode": ("auto", "online", "offline"),
    "device.accelerator": ("cpu", "gpu"),
    "until": ("fit",),
    "inspect": (True, False, "data"),
}
AT_LEAST_1 = (
    "batch_tokens calibration.tokens calibration.rows calibration.layers_at_once "
    "projection.rank_multiple "
    "projection.refit_tokens projection.refit_tries projection.learning.tokens "
    "projection.learning.batch_tokens projection.learning.epochs search.candidates search.rounds "
    "search.rows search.evaluations search.examples recovery.rank recovery.alpha recovery.steps "
    "recovery.short_steps recovery.tries "
    "recovery.accumulate recovery.tokens recovery.batch_tokens recovery.check_every "
    "recovery.patience launcher.workers speed.batch_size speed.prompt_tokens speed.new_tokens "
    "speed.repeats"
).split()
ABOVE_0 = (
    "share_prefix projection.learning_rate recovery.learning_rate recovery.minutes "
    "recovery.max_norm "
    "device.memory_gib device.bandwidth_gb device.utilization device.solver_utilization "
    "device.thread_solver_utilization "
    "device.layer_ms device.disk_gb"
).split()
WHOLE = ("onnx", "onnx_int8", "gguf")  # exports of a model on one device


def check(config: Config) -> None:
    """Raise ValueError at the first setting that is out of range or contradicts another."""
    single = (_choices, _numbers, _ranges)
    cross = (_tasks, _calibration, _projection, _search, _recovery, _vocabulary, _outputs, _sharded)
    for wrong, message in chain.from_iterable(rules(config) for rules in (*single, *cross)):
        if wrong:
            raise ValueError(message)
    for task in (config.task, *config.calibration.mix.values(), *config.also.values()):
        task.validate()
    from sieve.bank.genome import get_storage  # Imports torch: wrong settings are told before.
    from sieve.projections import get_projection

    get_projection(config.projection.name)
    get_storage(config.projection.storage)


def _value(config: Config, key: str) -> Any:
    return reduce(getattr, key.split("."), config)


def _choices(config: Config) -> Check:
    for key, allowed in CHOICES.items():
        value = _value(config, key)
        for word in value if isinstance(value, list) else [value]:
            names = [str(one).lower() if isinstance(one, bool) else one for one in allowed]
            expected = ", ".join(names)
            yield word not in (None, *allowed), f"{key} is {word!r}, expected one of {expected}."
    for key in config.trainer:
        yield (
            key not in TRAINER_KEYS,
            f"trainer.{key} is not a setting of a run, expected one of "
            f"{', '.join(TRAINER_KEYS[1:])}; for a dtype set model.dtype, for fewer tokens "
            "calibration.tokens, for fewer rows task.max_rows.",
        )
    size, sizes = config.quantization.group_size, ", ".join(map(str, GROUP_SIZES))
    yield (
        size not in GROUP_SIZES,
        f"quantization.group_size is {size}, expected one of {sizes}.",
    )


def _numbers(config: Config) -> Check:
    for key in AT_LEAST_1:
        value = _value(config, key)
        yield value is not None and value < 1, f"{key} is {value}, expected at least 1."
    for key in ABOVE_0:
        value = _value(config, key)
        wrong = value is not None and not 0 < value < math.inf
        yield wrong, f"{key} is {value}, expected a number above 0."


def _ranges(config: Config) -> Check:
    yield (
        not 0 <= config.tolerance < 1,
        f"tolerance is {config.tolerance}, expected a fraction of accuracy from 0 to below 1 "
        "(0.02 is two points); set tolerance=0.02.",
    )
    yield (
        config.confidence is not None and not 0.5 < config.confidence < 1,
        f"confidence is {config.confidence}, expected null or a probability above 0.5 and below 1; "
        "set confidence=0.9.",
    )
    yield (
        not 0 < config.recovery.first < 1,
        f"recovery.first is {config.recovery.first}, expected a fraction above 0 and below 1 of "
        "the size that the search found; set recovery.first=0.3.",
    )
    yield (
        not 0 <= config.recovery.ema_decay < 1,
        f"recovery.ema_decay is {config.recovery.ema_decay}, expected a decay per step from 0 to "
        "below 1; set recovery.ema_decay=0.98.",
    )
    yield (
        not 0 <= config.recovery.hidden < math.inf,
        f"recovery.hidden is {config.recovery.hidden}, expected a weight of at least 0; set "
        "recovery.hidden=1.",
    )
    yield (
        not all(0 <= fraction <= 1 for fraction in config.curve),
        f"curve is {config.curve}, expected fractions of the prunable parameters from 0 to 1, such "
        "as curve=[.5,.1,.02].",
    )
    levels, share = config.search.levels, config.search.confirmation
    yield (
        1 not in levels or not all(0 <= level <= 1 for level in levels),
        f"search.levels is {levels}, expected kept fractions from 0 to 1 with 1 among them.",
    )
    yield (
        config.export.check_rows < 0,
        f"export.check_rows is {config.export.check_rows}, expected at least 0, which checks none.",
    )
    yield (
        not 0 <= share < 1,
        f"search.confirmation is {share}, expected a share of the selection rows from 0 to below "
        "1.",
    )
    level, damping = config.projection.learning.level, config.projection.damping
    yield (
        not 0 < level < 1,
        f"projection.learning.level is {level}, expected a kept fraction between 0 and 1.",
    )
    yield (
        damping is not None and damping < 0,
        f"projection.damping is {damping}, expected null or at least 0.",
    )


def _tasks(config: Config) -> Check:
    yield (
        not config.model.path,
        "model.path is empty; choose model=... or set model.path=<directory>.",
    )
    weights, names = config.calibration.weights, {"self", *config.calibration.mix}
    for stray in sorted(set(weights) - names):
        yield (
            True,
            f"calibration.weights.{stray} names no task of calibration.mix, expected one of "
            f"{', '.join(sorted(names))}; add +task@calibration.mix.{stray}=...",
        )
    others = {f"calibration.mix.{name}": task for name, task in config.calibration.mix.items()}
    for key, other in (others | {f"also.{n}": t for n, t in config.also.items()}).items():
        yield (
            other.metric == AGREEMENT,
            f"{key}.metric is agreement, which only the run's own task can have; set another "
            f"{key}.metric.",
        )
    shares = [weights.get(name, 1.0) for name in names]
    yield (
        min(shares) < 0 or not 0 < sum(shares) < math.inf,
        f"calibration.weights is {weights}, expected numbers of at least 0, one of them above 0.",
    )


def _calibration(config: Config) -> Check:
    streams = config.calibration.strategy == "stream"
    yield (
        streams and config.projection.name == "learned",
        "projection=learned trains through the whole model, got calibration.strategy=stream; set "
        "calibration.strategy=whole, or choose another projection.",
    )
    yield (
        streams and config.calibration.layers_at_once is not None,
        "calibration.strategy=stream always holds one block in memory; set "
        "calibration.layers_at_once=null.",
    )
    yield (
        streams and config.task.metric == AGREEMENT,
        "task.metric=agreement asks the whole model for its answers before calibration, got "
        "calibration.strategy=stream; set calibration.strategy=whole, or choose another metric.",
    )


def _projection(config: Config) -> Check:
    projection = config.projection
    yield (
        projection.joint and bool(projection.name == "learned" or projection.tune_steps),
        "projection.joint=true needs closed-form factors; set projection.joint=false with "
        "projection=learned or projection.tune_steps above 0.",
    )
    yield (
        projection.joint and config.recovery.method != "none",
        f"recovery={config.recovery.method} cannot train factors that matrices share; set "
        "projection.joint=false.",
    )
    yield (
        projection.name == "learned" and projection.prune_head,
        "projection=learned does not learn the output head; set projection.prune_head=false.",
    )
    if projection.narrow:
        yield from check_narrow(config)
    if projection.prune_embedding:
        yield from check_embedding(config)


def _search(config: Config) -> Check:
    sweep, runs = config.sweep, not (config.dry_run or config.inspect)
    yield (
        runs and config.search.method == "genetic" and not (sweep.job or sweep.genomes),
        "search=genetic runs as a sweep; leave hydra.mode=MULTIRUN and hydra/sweeper=genetic as "
        "conf/search/genetic.yaml sets them.",
    )


def _recovery(config: Config) -> Check:
    prompt, task = config.recovery.student_prompt, config.task
    if prompt is None:
        return
    yield (
        config.recovery.method == "none",
        "recovery.student_prompt is another prompt for the pruned model, which it must be trained "
        "on, and recovery.method is none; set recovery=bake, or recovery.student_prompt=null.",
    )
    yield (
        prompt != ROW and not names_in(prompt),
        f"recovery.student_prompt is {prompt!r}, expected row or a template that names a {{field}} "
        "of the rows.",
    )
    yield (
        task.kind == "perplexity" or task.lm_eval is not None,
        f"recovery.student_prompt={prompt} needs a task with a prompt of its own, and "
        f"'{task.name}' is a text or a task of lm-evaluation-harness; set "
        "recovery.student_prompt=null.",
    )


def _vocabulary(config: Config) -> Check:
    method, tasks = config.vocabulary.method, (config.task, *config.also.values())
    yield (
        method == "task" and config.calibration.strategy == "stream",
        "vocabulary=task runs the whole model, got calibration.strategy=stream; set "
        "vocabulary=none or calibration.strategy=whole.",
    )
    yield (
        method == "task" and any(task.kind == "perplexity" for task in tasks),
        "vocabulary=task changes the tokens that a perplexity is of, so it cannot be compared with "
        "the dense model's; set vocabulary=none.",
    )
    yield (
        not 0 <= config.vocabulary.fill <= 1,
        f"vocabulary.fill is a share of the model's parameters, got {config.vocabulary.fill}; set "
        "a number from 0 to 1.",
    )
    yield (
        config.vocabulary.min_rows < 1,
        f"vocabulary.min_rows is a number of rows, got {config.vocabulary.min_rows}; set 1 or "
        "more.",
    )


def _outputs(config: Config) -> Check:
    form, method = config.export.format, config.quantization.method
    yield (
        config.logger.artifact and form == "none",
        "logger.artifact=true uploads the export, and export=none writes none; choose another "
        "export, or set logger.artifact=false.",
    )
    yield (
        method != "none" and form not in ("factorized", "none"),
        f"quantization={method} quantizes factors, and export={form} writes no factors; set "
        "export=factorized, or quantization=none (export=onnx_int8 quantizes by itself).",
    )
    storage, own = config.export.storage, config.projection.storage
    yield (
        storage is not None and form not in ("factorized", "none"),
        f"export.storage={storage} is the form of factors, and export={form} writes no factors; "
        "set export=factorized, or export.storage=null.",
    )
    yield (
        storage not in (None, own) and method != "none",
        f"quantization={method} is measured on {own} factors, and export.storage={storage} would "
        f"write others; set projection.storage={storage}, or quantization=none.",
    )
    yield (
        config.export.merge_head and method != "none",
        f"quantization={method} is measured on a head of factors, and export.merge_head=true would "
        "write a dense one; set projection.prune_head=false and projection.prune_embedding=false, "
        "or quantization=none.",
    )
    removes = 0 in config.search.levels or config.projection.narrow
    removes |= config.vocabulary.method == "task"
    yield (
        form == "gguf" and not (removes or config.export.allow_larger),
        "export=gguf has no factors, so these settings make nothing smaller; set "
        "search.alleles=structural, vocabulary=task, export=factorized or "
        "export.allow_larger=true, or add 0 to search.levels.",
    )


def _sharded(config: Config) -> Check:
    for key, value, unsupported, instead in (
        ("projection", config.projection.name, ("learned",), "another projection"),
        ("search", config.search.method, ("genetic",), "another search"),
        ("quantization", config.quantization.method, ("int8", "int4"), "quantization=none"),
        ("vocabulary", config.vocabulary.method, ("task",), "vocabulary=none"),
        ("export", config.export.format, WHOLE, "export=factorized or dense"),
        ("export.storage", config.export.storage, ("plain", "pivoted"), "export.storage=null"),
        ("export.merge_head", config.export.merge_head, (True,), "export.merge_head=false"),
    ):
        yield (
            shards(config.trainer) and value in unsupported,
            f"{key}={value} needs the whole model on one device, and trainer=fsdp shards it over "
            f"ranks; choose {instead}, or trainer=gpu.",
        )
