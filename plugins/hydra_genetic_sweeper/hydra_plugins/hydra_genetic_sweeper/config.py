"""The settings of the sweeper. Select it with `override hydra/sweeper: genetic`."""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore


@dataclass
class GeneticSweeperConf:
    """The settings under `hydra.sweeper`."""

    _target_: str = "hydra_plugins.hydra_genetic_sweeper.genetic_sweeper.GeneticSweeper"
    _recursive_: bool = False  # Hydra must not call `space`; the search calls it

    # The search space: settings and their values in Hydra's grammar, such as
    # {lr: "tag(log, interval(1e-5, 1e-1))", layers: "range(1, 5)", act: "choice(relu, gelu)"}.
    # Set either this or `space`.
    params: dict[str, Any] = field(default_factory=dict)
    # A function that builds the search space at run time: {_target_: module.function}. It gets the
    # composed job configuration and, if `prepare` is set, the return value of the `prepare` job.
    # It returns {"variables": [...], "seeds": [...]}.
    space: Any = None
    # Overrides of one job that runs before the search. Its return value, which must be JSON, is
    # passed to `space`.
    prepare: list[str] = field(default_factory=list)

    # `minimize` or `maximize` for keys of the mapping that a job returns. If empty, a job returns
    # one number, which is minimized.
    objectives: dict[str, str] = field(default_factory=dict)
    # Bounds on keys of that mapping, such as {margin: ">= 0"}. A genome within all bounds beats any
    # genome that violates one.
    constraints: dict[str, str] = field(default_factory=dict)

    population: int = 100  # number of genomes that survive a generation
    offspring: int | None = None  # new genomes per generation; null: same as population
    crossover: float = 0.5  # probability that two parents exchange genes
    mutation: float = 0.2  # probability that a gene changes; ordered values change to nearby ones
    down: float = 0.5  # probability that an ordered gene changes to a lower value
    switch: float = 0.0  # probability of raising one gene and lowering another instead
    fill: str = "random"  # rest of the first population: random, or mutate (mutated seeds)
    seed: int = 0  # seeds every random choice of the search

    generations: int | None = 30  # stop after this many generations; null: no limit
    evaluations: int | None = None  # stop after this many evaluated genomes; null: no limit
    seconds: float | None = None  # stop after the generation during which this time passes
    stagnation_generations: int | None = 10  # over this many generations ...
    stagnation_improvement: float = 0.05  # ... stop if the best value improved by less

    n_workers: int = 1  # jobs that run at the same time
    # Genomes per job. 1: one job per genome, which gets the values as overrides. null: a generation
    # is split evenly over the workers. Unless it is 1, set `shard_key`.
    shard_size: int | None = 1
    shard_key: str | None = None  # the application's setting for the path of a chunk of genomes
    # Extra overrides of each job; {worker} is 0 to n_workers - 1: ["device={worker}"]
    worker_overrides: list[str] = field(default_factory=list)
    max_failure_rate: float = 0.0  # stop if a larger fraction of a generation fails
    # How many launches in a row may bring no result before genomes of dead workers count as failed.
    # 0: never launch them again.
    retries: int = 1
    # The application's settings and groups that cannot change a result, such as ["launcher"]. They
    # may differ when a search is resumed.
    free: list[str] = field(default_factory=list)

    # Overrides of one last job for the best genome. {solution} is the path of the file with this
    # genome, {ledger} the path of generations.jsonl. Without `shard_key` the job also gets the
    # values of the genome as overrides.
    finalize: list[str] = field(default_factory=list)
    finalize_front: bool = False  # run one last job per genome of the Pareto front

    view: bool = True  # show a live table on a terminal; false: log one line per generation


ConfigStore.instance().store(
    group="hydra/sweeper", name="genetic", node=GeneticSweeperConf, provider="genetic_sweeper"
)
