"""The search: prepare; ask, evaluate and tell until a stopping rule applies; run the last job."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import CompactHydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from hydra.utils import get_method
from omegaconf import DictConfig, OmegaConf

from . import _results
from ._evolution import Evolution
from ._files import plain
from ._jobs import Evaluator, quoted, run_one
from ._ledger import Generation, Ledger
from ._objectives import Objectives
from ._records import recorded
from ._space import Space, from_mapping, from_params
from ._stopping import Stopping
from ._view import View
from .config import GeneticSweeperConf

log = logging.getLogger(__name__)
# Settings that may differ when a search is resumed, because they change neither the genomes of a
# generation nor their evaluation.
RESUMABLE = tuple(
    """
    _target_ _recursive_ n_workers shard_size worker_overrides retries view finalize
    finalize_front max_failure_rate generations evaluations seconds stagnation_generations
    stagnation_improvement space free
    """.split()
)


def sweep(
    settings: GeneticSweeperConf,
    context: HydraContext,
    config: DictConfig,
    launcher: Launcher,
    arguments: list[str],
) -> dict[str, Any]:
    """Start or resume a search. User errors become a CompactHydraException with one sentence."""
    try:
        with _quiet(launcher):
            return _Search(settings, context, config, launcher, arguments).run()
    except (ValueError, OSError) as error:
        log.debug("failed", exc_info=True)
        raise CompactHydraException(str(error)) from error


class _Search:
    def __init__(
        self,
        settings: GeneticSweeperConf,
        context: HydraContext,
        config: DictConfig,
        launcher: Launcher,
        arguments: list[str],
    ) -> None:
        check(settings)
        self.settings, self.context, self.config = settings, context, config
        self.launcher = launcher
        self.objectives = Objectives(settings.objectives, settings.constraints)
        self.parser = OverridesParser.create(config_loader=context.config_loader)
        self.arguments = self._checked_arguments(arguments)
        self.folder = Path(str(config.hydra.sweep.dir))
        self.stopping = Stopping(settings, self.objectives)
        self.replayed = False

    def run(self) -> dict[str, Any]:
        try:
            return self._run()
        except KeyboardInterrupt:
            self._stopped_by_user()
            raise SystemExit(130) from None

    def _run(self) -> dict[str, Any]:
        self.ledger = Ledger.open(self.folder)
        OmegaConf.save(self.config, self.folder / "multirun.yaml")
        space = self._space()
        self.evolution = Evolution(space, self.settings, self.objectives)
        self.view = View(self.settings, self.stopping)
        self.evaluator = Evaluator(
            self.settings,
            space,
            self.objectives,
            self.launcher,
            self.folder,
            self.arguments,
            self.ledger.header["prepared"],
        )
        self._replay()
        with self.view.shown():
            while not self.stopping.reason:
                self._generation()
        body = self._write_results(self.stopping.reason)
        self._finalize()
        return body

    def _generation(self) -> None:
        """Ask for genomes, evaluate the new ones, write the ledger and tell the results."""
        genomes = self.evolution.ask()
        if (budget := self.stopping.budget) is not None:
            genomes = self._within(genomes, budget)
        if not genomes:
            self.stopping.reason = "all genomes have been evaluated"
            return
        number = len(self.ledger.generations) + 1
        known = self.evolution.evaluations
        new = [g for g in dict.fromkeys(genomes) if g not in known or known[g].failed]
        start = time.monotonic()
        self.view.begin(number, len(new), self.evaluator.progress)
        self.evaluator.limit = self.evolution.limit
        jobs = self.evaluator.evaluate(number, new, self.ledger.jobs) if new else 0
        latest = self.evaluator.evaluations if new else {}
        evaluations = [latest.get(genome) or known[genome] for genome in genomes]
        seconds = time.monotonic() - start
        generation = Generation(genomes, evaluations, len(new), jobs, seconds)
        self.ledger.append(generation)
        self._tell(generation)

    def _tell(self, generation: Generation) -> None:
        self.evolution.tell(generation.evaluations)
        self.stopping.update(generation)
        memo = len(generation.genomes) - generation.evaluated
        self.view.end(self.evolution, memo, generation.seconds)

    def _within(self, genomes: list[Any], budget: int) -> list[Any]:
        """The first genomes, up to `budget` new ones."""
        new = 0
        for position, genome in enumerate(genomes):
            new += genome not in self.evolution.evaluations
            if new > budget:
                return genomes[:position]
        return genomes

    def _replay(self) -> None:
        """Repeat the generations of the ledger; ValueError if they come out differently."""
        for number, generation in enumerate(self.ledger.generations, 1):
            asked = self.evolution.ask()
            if asked[: len(generation.genomes)] != generation.genomes:
                raise ValueError(
                    f"generation {number} of {self.ledger.path} cannot be repeated with these "
                    "versions of pymoo and NumPy. Install the versions that wrote it, or set "
                    "another hydra.sweep.dir to start a new search."
                )
            self._tell(generation)
        self.replayed = True
        if self.ledger.generations:
            log.info("resuming after generation %d", len(self.ledger.generations))

    def _space(self) -> Space:
        """Run the `prepare` job, build the space, and write the first line of the ledger."""
        params = {k: v for k, v in self.settings.params.items() if v is not None}
        keys = {o.get_key_element() for o in self.parser.parse_overrides(self.arguments)}
        if self.settings.space is None:
            space, constant = from_params(params, self.parser, tuple(keys))
            self.arguments += constant
            described: Any = [asdict(variable) for variable in space.variables]
            prepared, jobs = None, 0
        else:
            prepared, jobs = self._prepare()
            described = plain(self._call_space(prepared))
            space = from_mapping(described)
        settings = {k: v for k, v in asdict(self.settings).items() if k not in RESUMABLE}
        self.ledger.begin(
            {
                "settings": {
                    "sweeper": settings,
                    "overrides": sorted(self._relevant_overrides()),
                    "space": described,
                },
                "names": [variable.name for variable in space.variables],
                "prepared": prepared,
                "prepare_jobs": jobs,
            }
        )
        return space

    def _relevant_overrides(self) -> list[str]:
        """The overrides that may change a result."""
        keys = [o.key_or_group for o in self.parser.parse_overrides(self.arguments)]
        free = self.settings.free
        return [
            text
            for text, key in zip(self.arguments, keys, strict=True)
            if not any(key == name or key.startswith(f"{name}.") for name in free)
        ]

    def _prepare(self) -> tuple[Any, int]:
        """The return value of the `prepare` job, and how many such jobs there are (0 or 1)."""
        if self.ledger.header:
            return self.ledger.header["prepared"], self.ledger.header["prepare_jobs"]
        if not self.settings.prepare:
            return None, 0
        overrides = [*self.arguments, *self.settings.prepare]
        done, value = recorded(self.folder, 0, overrides)
        if not done:
            name = "the prepare job"
            value = run_one(self.launcher, self.folder, overrides, 0, name, self.settings.retries)
        return value, 1

    def _call_space(self, prepared: Any) -> Any:
        """Call the `space` function with the configuration that jobs get."""
        node = OmegaConf.to_container(OmegaConf.create(self.settings.space))
        if not isinstance(node, Mapping) or "_target_" not in node:
            raise ValueError(
                "hydra.sweeper.space has no _target_; expected {_target_: module.function}."
            )
        config = self.context.config_loader.load_sweep_config(self.config, list(self.arguments))
        HydraConfig.instance().set_config(config)
        keywords = {str(k): v for k, v in node.items() if k != "_target_"}
        positional = (config, prepared) if self.settings.prepare else (config,)
        return get_method(node["_target_"])(*positional, **keywords)

    def _checked_arguments(self, arguments: Sequence[str]) -> list[str]:
        """The overrides of the command line; ValueError if one of them is a sweep."""
        for override in self.parser.parse_overrides(list(arguments)):
            if override.is_sweep_override():
                raise ValueError(
                    f"{override.input_line} is a sweep, which the genetic sweeper does not accept "
                    "on the command line. Set one value, or search over it with "
                    f"hydra.sweeper.params.{override.get_key_element()}."
                )
        return list(arguments)

    def _write_results(self, reason: str) -> dict[str, Any]:
        body = _results.results(
            self.evolution, len(self.stopping.progress), self.stopping.evaluated, reason
        )
        _results.save(self.folder, body)
        log.info("%s: %s", self.folder / _results.NAME, reason)
        if not body["feasible"]:
            log.warning("No genome meets the constraints; reporting the smallest violation.")
        return body

    def _finalize(self) -> None:
        """Run the last job for the best genome, or for each of the front, unless it is done."""
        if not self.settings.finalize:
            return
        paths = _results.save_solutions(self.folder, self.evolution)
        for number, path in enumerate(paths if self.settings.finalize_front else paths[:1]):
            if path.name in self.ledger.finished:
                continue
            names = {"solution": quoted(path), "ledger": quoted(self.ledger.path.absolute())}
            extra = [text.format(**names, number=number) for text in self.settings.finalize]
            genome = self.evolution.best()[number]
            values = [] if self.settings.shard_key else self.evolution.space.overrides(genome)
            run_one(
                self.launcher,
                self.folder,
                [*self.arguments, *values, *extra],
                self.ledger.jobs + number,
                "the finalize job",
                self.settings.retries,
            )
            self.ledger.finish(path.name)

    def _stopped_by_user(self) -> None:
        """Write the best genome so far, and log how to resume."""
        done = len(self.stopping.progress)
        if done and self.replayed:
            self._write_results(self.stopping.reason or "stopped by the user")
        log.warning(
            "stopped %s; to resume, repeat the command with hydra.sweep.dir=%s",
            "in the finalize job" if self.stopping.reason else f"after {done} generations",
            self.folder,
        )


def check(settings: GeneticSweeperConf) -> None:
    """Raise ValueError for settings that are out of range or contradict each other."""
    if bool(settings.params) == (settings.space is not None):
        raise ValueError(
            "hydra.sweeper has nothing to search. Set params, such as "
            "hydra.sweeper.params.x='range(0, 10)', or space."
            if not settings.params
            else "hydra.sweeper has both params and space. Set only one of them."
        )
    if settings.prepare and settings.space is None:
        raise ValueError("hydra.sweeper.prepare needs hydra.sweeper.space, which is not set.")
    if settings.fill not in ("random", "mutate"):
        raise ValueError(f"hydra.sweeper.fill is {settings.fill!r}; expected random or mutate.")
    for key in ("crossover", "mutation", "down", "switch", "max_failure_rate"):
        if not 0 <= (value := getattr(settings, key)) <= 1:
            raise ValueError(f"hydra.sweeper.{key} is {value}; expected 0 to 1.")
    for key, least in (
        ("population", 2),
        ("offspring", 1),
        ("generations", 1),
        ("evaluations", 1),
        ("stagnation_generations", 1),
        ("n_workers", 1),
        ("shard_size", 1),
        ("retries", 0),
        ("seconds", 0),
    ):
        value = getattr(settings, key)
        if value is not None and value < least:
            raise ValueError(f"hydra.sweeper.{key} is {value}; expected at least {least}.")
    if settings.shard_size != 1 and settings.shard_key is None:
        raise ValueError(
            f"hydra.sweeper.shard_size is {settings.shard_size or 'null'}, but shard_key is not "
            "set. Set it to the setting that takes the path of a chunk, or set shard_size=1."
        )


@contextmanager
def _quiet(launcher: Launcher) -> Iterator[None]:
    """Silence launchers, which log the overrides of every job."""
    module = type(launcher).__module__
    helpers = [f"{module.rpartition('.')[0]}.{name}" for name in ("_core", "_launcher_util")]
    loggers = [logging.getLogger(name) for name in (module, *helpers)]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(max(logging.WARNING, logger.level))
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
