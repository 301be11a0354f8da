"""Every check of settings that spans several of them or needs no data."""

import math
from dataclasses import asdict

from sieve.bank.genome import get_storage
from sieve.config import (
    ALLELES,
    ANSWERS,
    COUNTS,
    DTYPES,
    EXPORTS,
    GROUP_SIZES,
    HIDDEN,
    INITS,
    JOBS,
    JUDGES,
    LOSSES,
    QUANTIZATIONS,
    RECOVERIES,
    SEARCHES,
    SEEDS,
    SIDES,
    STRATEGIES,
    TARGETS,
    TRAINER_KEYS,
    Config,
    SearchConfig,
    shards,
)
from sieve.projections import get_projection
from sieve.projections.moments import WEIGHTINGS
from sieve.search.waterfill import NORMALIZATIONS


def check(config: Config) -> None:
    """Every check that spans settings or needs no data; ValueError says what to do."""
    if not 0 <= config.tolerance < 1:
        raise ValueError(
            f"tolerance is {config.tolerance}, expected a fraction of accuracy from 0 to below 1 "
            "(0.02 is two points); set tolerance=0.02."
        )
    if bad := [fraction for fraction in config.curve if not 0 <= fraction <= 1]:
        raise ValueError(
            f"curve names {bad[0]}, expected fractions of the prunable parameters from 0 to 1, "
            "such as curve=[.5,.1,.02]."
        )
    if not config.model.path:
        raise ValueError("model.path is empty; choose model=... or set model.path=<directory>.")
    _check_names(config)
    _check_counts(config)
    if stray := [key for key in config.trainer if key not in TRAINER_KEYS]:
        raise ValueError(
            f"trainer.{stray[0]} is not a setting of a run, expected one of "
            f"{', '.join(TRAINER_KEYS[1:])}; for a dtype set model.dtype, for fewer tokens "
            "calibration.tokens, for fewer rows task.max_rows."
        )
    if config.logger.artifact and config.export.format == "none":
        raise ValueError(
            "logger.artifact=true keeps the export, and export=none writes none; choose another "
            "export, or set logger.artifact=false."
        )
    _check_projection(config)
    _check_levels(config.search.levels)
    if not (config.dry_run or config.inspect):
        _check_job(config.search)
    _check_search(config.search)
    _check_quantization(config)
    if shards(config.trainer):
        _check_sharded(config)
    config.task.validate()
    _check_others(config)


def _check_names(config: Config) -> None:
    """Settings that are one of some words."""
    for key, value, allowed in (
        ("model.dtype", config.model.dtype, DTYPES),
        ("projection.dtype", config.projection.dtype, DTYPES),
        ("search.method", config.search.method, SEARCHES),
        ("projection.refit_target", config.projection.refit_target, TARGETS),
        ("projection.learning.init", config.projection.learning.init, INITS),
        ("search.normalize", config.search.normalize, NORMALIZATIONS),
        ("search.judge", config.search.judge, JUDGES),
        ("search.alleles", config.search.alleles, ALLELES),
        ("search.job", config.search.job, JOBS),
        *(("search.seeds", seed, SEEDS) for seed in config.search.seeds),
        ("calibration.answers", config.calibration.answers, ANSWERS),
        ("calibration.strategy", config.calibration.strategy, STRATEGIES),
        ("calibration.hidden", config.calibration.hidden, HIDDEN),
        ("recovery.method", config.recovery.method, RECOVERIES),
        ("recovery.factors", config.recovery.factors, SIDES),
        ("recovery.loss", config.recovery.loss, LOSSES),
        ("quantization.method", config.quantization.method, QUANTIZATIONS),
        ("calibration.weighting", config.calibration.weighting, ("auto", *WEIGHTINGS)),
        ("export.format", config.export.format, EXPORTS),
        ("logger.mode", config.logger.mode, ("auto", "online", "offline")),
    ):
        if value not in allowed:
            raise ValueError(f"{key} is {value!r}, expected one of {', '.join(allowed)}.")


def _check_others(config: Config) -> None:
    """Tasks beside the run's own, and their weights."""
    for task in (*config.calibration.mix.values(), *config.also.values()):
        task.validate()
    weights, known = config.calibration.weights, {"self", *config.calibration.mix}
    if stray := sorted(set(weights) - known):
        raise ValueError(
            f"calibration.weights.{stray[0]} is of no task of calibration.mix, expected one of "
            f"{', '.join(sorted(known))}; add +task@calibration.mix.{stray[0]}=..."
        )
    shares = [weights.get(name, 1.0) for name in known]
    if min(shares) < 0 or not 0 < sum(shares) < math.inf:
        raise ValueError(
            f"calibration.weights is {weights}, expected numbers of at least 0, one of them above."
        )


def _check_counts(config: Config) -> None:
    for key, number in (
        ("calibration.tokens", config.calibration.tokens),
        ("batch_tokens", config.batch_tokens),
        ("projection.rank_multiple", config.projection.rank_multiple),
        ("projection.refit_tokens", config.projection.refit_tokens),
        ("projection.refit_tries", config.projection.refit_tries),
        ("projection.learning.tokens", config.projection.learning.tokens),
        ("projection.learning.batch_tokens", config.projection.learning.batch_tokens),
        ("projection.learning.epochs", config.projection.learning.epochs),
        ("search.candidates", config.search.candidates),
        ("search.rounds", config.search.rounds),
        *((f"recovery.{key}", getattr(config.recovery, key)) for key in COUNTS),
        ("search.evaluations", config.search.evaluations),
        ("search.examples", 1 if config.search.examples is None else config.search.examples),
        ("launcher.workers", config.launcher.workers),
        *((f"speed.{key}", n) for key, n in asdict(config.speed).items() if key != "enabled"),
    ):
        if number < 1:
            raise ValueError(f"{key} is {number}, expected at least 1.")
    if not config.share_prefix > 0:
        raise ValueError(
            f"share_prefix is {config.share_prefix}, expected a part of a row above 0; set 2 for "
            "never."
        )
    for key, size in (
        ("projection.learning_rate", config.projection.learning_rate),
        ("recovery.learning_rate", config.recovery.learning_rate),
        ("recovery.max_norm", config.recovery.max_norm),
    ):
        if not 0 < size < math.inf:
            raise ValueError(f"{key} is {size}, expected a number above 0.")


def _check_stream(config: Config) -> None:
    """What goes with one block in memory at a time."""
    if config.projection.name == "learned":
        raise ValueError(
            "projection=learned trains through the whole model, got calibration.strategy=stream; "
            "set calibration.strategy=whole, or choose another projection."
        )
    if config.calibration.layers_at_once is not None:
        raise ValueError(
            "calibration.strategy=stream has one block in memory as it is; set "
            "calibration.layers_at_once=null."
        )


def _check_projection(config: Config) -> None:
    """What a projection can be asked for, and together with what."""
    if not 0 < (level := config.projection.learning.level) < 1:
        raise ValueError(
            f"projection.learning.level is {level}, expected a kept fraction between 0 and 1."
        )
    if config.until not in (None, "fit"):
        raise ValueError(f"until is {config.until!r}, expected fit, or null to go to the end.")
    if config.calibration.strategy == "stream":
        _check_stream(config)
    at_once = config.calibration.layers_at_once
    if at_once is not None and at_once < 1:
        raise ValueError(
            f"calibration.layers_at_once is {at_once}, expected null (all) or at least 1."
        )
    if config.projection.joint and (
        config.projection.name == "learned" or config.projection.tune_steps
    ):
        raise ValueError(
            "projection.joint goes with the closed forms; set projection.joint=false for "
            "projection=learned and for projection.tune_steps above 0."
        )
    if config.projection.joint and config.recovery.method != "none":
        raise ValueError(
            "recovery trains factors that matrices have of their own; set projection.joint=false."
        )
    if config.projection.name == "learned" and config.projection.prune_head:
        raise ValueError(
            "projection=learned does not learn the output head; set projection.prune_head=false."
        )
    if (damping := config.projection.damping) is not None and damping < 0:
        raise ValueError(f"projection.damping is {damping}, expected null or at least 0.")
    get_projection(config.projection.name)
    get_storage(config.projection.storage)


def _check_search(search: SearchConfig) -> None:
    if not 0 <= search.confirmation < 1:
        raise ValueError(
            f"search.confirmation is {search.confirmation}, expected a share of the selection rows "
            "from 0 to below 1."
        )


def _check_job(search: SearchConfig) -> None:
    """A genetic search is asked for job by job."""
    led = search.job or search.shard
    if search.method == "genetic" and not led:
        raise ValueError(
            "search=genetic runs as a sweep; leave hydra.mode=MULTIRUN and hydra/sweeper=genetic "
            "as conf/search/genetic.yaml sets them."
        )
    if search.job == "finalize" and not search.ledger:
        raise ValueError("search.job=finalize takes search.ledger, the file of the sweeper.")


def _check_quantization(config: Config) -> None:
    if (size := config.quantization.group_size) not in GROUP_SIZES:
        sizes = ", ".join(map(str, GROUP_SIZES))
        raise ValueError(f"quantization.group_size is {size}, expected one of {sizes}.")
    if config.quantization.method != "none" and config.export.format not in ("factorized", "none"):
        raise ValueError(
            f"quantization={config.quantization.method} is of the factors, which "
            f"export={config.export.format} does not keep; set export=factorized, or "
            "quantization=none (export=onnx_int8 has 8 bits of its own)."
        )


def _check_sharded(config: Config) -> None:
    """What a model that is shared out over ranks cannot do."""
    for asked, instead in (
        (f"projection={config.projection.name}", config.projection.name == "learned"
         and "another projection"),
        (f"search={config.search.method}", config.search.method == "genetic"
         and "another search"),
        (f"quantization={config.quantization.method}", config.quantization.method != "none"
         and "quantization=none"),
        (f"export={config.export.format}", config.export.format.startswith("onnx")
         and "export=factorized or dense"),
    ):  # fmt: skip
        if instead:
            raise ValueError(
                f"{asked} takes a model on one device, which trainer=fsdp shares out over ranks; "
                f"choose {instead}, or trainer=gpu."
            )


def _check_levels(levels: list[float]) -> None:
    if not levels or any(not 0 <= level <= 1 for level in levels) or 1 not in levels:
        raise ValueError(
            f"search.levels is {levels}, expected kept fractions from 0 to 1 with 1 among them."
        )
