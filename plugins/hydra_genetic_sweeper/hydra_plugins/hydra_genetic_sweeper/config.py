"""Settings of the sweeper, a comment per field; registered as `hydra/sweeper: genetic`."""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore


@dataclass
class GeneticSweeperConf:
    """`hydra.sweeper` of an application that is searched with a genetic algorithm."""

    _target_: str = "hydra_plugins.hydra_genetic_sweeper.genetic_sweeper.GeneticSweeper"
    _recursive_: bool = False  # `space` is called with the job's configuration, not before

    # What is searched: settings and their values in Hydra's grammar, such as
    # {lr: "tag(log, interval(1e-5, 1e-1))", layers: "range(1, 5)", act: "choice(relu, gelu)"} ...
    params: dict[str, Any] = field(default_factory=dict)
    # ... or {_target_: module.function}, which gets the composed job configuration (and what the
    # `prepare` job returned) and returns {"variables": [...], "seeds": [...]}.
    space: Any = None
    # Overrides of one job before the search; what it returns, JSON-able, goes to `space`.
    prepare: list[str] = field(default_factory=list)

    # Keys of what a job returns and `minimize` or `maximize`; none: it returns one number, and the
    # smaller the better.
    objectives: dict[str, str] = field(default_factory=dict)
    # Keys and bounds, such as {margin: ">= 0"}; a genome that meets them beats one that does not.
    constraints: dict[str, str] = field(default_factory=dict)

    population: int = 100  # genomes that live from one generation to the next; the best survive
    offspring: int | None = None  # new genomes per generation; null: as many as the population
    crossover: float = 0.5  # probability that two parents are mixed gene by gene
    mutation: float = 0.2  # probability that a gene moves, to a neighbour where values have order
    down: float = 0.5  # probability that such a gene moves to a lower value; above .5 for sizes
    switch: float = 0.0  # probability that instead one gene is raised and another lowered
    fill: str = "random"  # what seeds are filled up with: random, or mutate (changed seeds)
    seed: int = 0  # of every random choice of the search

    generations: int | None = 30  # stop after so many; null: no limit
    evaluations: int | None = None  # stop after so many genomes were evaluated
    seconds: float | None = None  # stop at the end of the generation that passes this time
    stagnation_generations: int | None = 10  # stop when over so many generations ...
    stagnation_improvement: float = 0.05  # ... the best improved by less than this fraction

    n_workers: int = 1  # jobs that run at a time: chunks per generation
    # Genomes per job. 1: a job per genome, its values as overrides; null: the population split over
    # the workers. Above 1 the application reads them from a file, see `shard_key`.
    shard_size: int | None = 1
    shard_key: str | None = None  # the application's setting that takes the path of such a file
    # Overrides of each job, with {worker} for its number below n_workers: ["device={worker}"]
    worker_overrides: list[str] = field(default_factory=list)
    max_failure_rate: float = 0.0  # fraction of a generation that may fail before the search stops
    # How often in a row genomes of workers that died are launched again without a new result;
    # 0: never.
    retries: int = 1
    # Settings and groups of the application that say where jobs run and not what a genome is worth:
    # ["launcher"]; they may change when a search is resumed.
    free: list[str] = field(default_factory=list)

    # Overrides of one last job with the winner; {solution} is a file that holds it, {ledger} the
    # one of all evaluated genomes. Without a shard_key the winner's values come as overrides too.
    finalize: list[str] = field(default_factory=list)
    finalize_front: bool = False  # one last job for each member of the Pareto front

    view: bool = True  # a live table where the terminal can show one; else a line per generation


ConfigStore.instance().store(
    group="hydra/sweeper", name="genetic", node=GeneticSweeperConf, provider="genetic_sweeper"
)
