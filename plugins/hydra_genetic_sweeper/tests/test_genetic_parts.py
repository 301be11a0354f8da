"""The parts of the sweeper, without Hydra jobs."""

import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra_plugins.hydra_genetic_sweeper._evolution import Evolution
from hydra_plugins.hydra_genetic_sweeper._ledger import Generation, Ledger
from hydra_plugins.hydra_genetic_sweeper._objectives import Evaluation, Objectives
from hydra_plugins.hydra_genetic_sweeper._operators import Mutate, first_population, moved
from hydra_plugins.hydra_genetic_sweeper._search import check
from hydra_plugins.hydra_genetic_sweeper._space import (
    Continuous,
    Discrete,
    Space,
    from_mapping,
    from_params,
)
from hydra_plugins.hydra_genetic_sweeper._stopping import Stopping
from hydra_plugins.hydra_genetic_sweeper.config import GeneticSweeperConf
from hydra_plugins.hydra_genetic_sweeper.genetic_sweeper import GeneticSweeper

PARSER = OverridesParser.create()
SIZE = Objectives({"size": "minimize"}, {"margin": ">= 0"})


def grid(genes: int, values: int = 6) -> Space:
    return Space(
        tuple(
            Discrete(f"g{i}", tuple(range(values)), costs=tuple(range(values)))
            for i in range(genes)
        )
    )


def settings(**changes: Any) -> GeneticSweeperConf:
    return GeneticSweeperConf(**{"params": {"x": "range(2)"}, "population": 8} | changes)


def evolve(evolution: Evolution, generations: int, judge: Any) -> list[list[Any]]:
    asked = []
    for _ in range(generations):
        asked.append(evolution.ask())
        evolution.tell([judge(genome) for genome in asked[-1]])
    return asked


def judged(genome: tuple[float, ...]) -> Evaluation:
    return Evaluation({"size": sum(genome), "margin": min(genome) - 1})


def test_hydra_discovers_the_sweeper() -> None:
    found = [plugin.__qualname__ for plugin in Plugins.instance().discover(Sweeper)]
    assert GeneticSweeper.__qualname__ in found


def test_plugin_discovery_imports_nothing_heavy() -> None:
    code = (
        "import sys, hydra_plugins.hydra_genetic_sweeper.genetic_sweeper; "
        "print([m for m in ('numpy', 'pymoo', 'rich', 'torch', 'sieve') if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert out.strip() == "[]"


def test_params_in_hydras_grammar_become_variables() -> None:
    space, constant = from_params(
        {
            "act": "choice(relu, 2, true, 'a b', 1.5)",
            "n": "range(1, 8, 2)",
            "lr": "tag(log, interval(1e-4, 1e-1))",
            "k": "int(interval(2, 5))",
            "same": "3",
        },
        PARSER,
    )
    act, n, lr, k = space.variables
    assert isinstance(act, Discrete) and not act.ordered and len(act.values) == 5
    assert isinstance(n, Discrete) and n.ordered and n.values == (1, 3, 5, 7)
    assert (
        isinstance(lr, Continuous) and lr.log and lr.decode(lr.encode(1e-2)) == pytest.approx(0.01)
    )
    assert isinstance(k, Discrete) and k.values == (2, 3, 4, 5)
    assert constant == ["same=3"]


def test_overrides_of_a_genome_parse_back_to_its_values() -> None:
    space, _ = from_params({"act": "choice(relu, 2, true, 'a b', 1.5)"}, PARSER)
    values = []
    for position in range(5):
        [override] = PARSER.parse_overrides(space.overrides((float(position),)))
        values.append(override.value())
    assert [str(v) for v in values] == ["relu", "2", "True", "a b", "1.5"]


def test_a_setting_on_the_command_line_is_not_searched() -> None:
    space, _ = from_params({"x": "range(3)", "y": "range(3)"}, PARSER, fixed=("x",))
    assert [v.name for v in space.variables] == ["y"]


@pytest.mark.parametrize(
    ("described", "words"),
    [
        (None, "expected a mapping"),
        ({"variables": []}, "nothing to search"),
        ({"variables": [{"name": "a", "low": 5, "high": 1}]}, "expected low below high"),
        ({"variables": [{"name": "a", "values": []}]}, "no values for a"),
        ({"variables": [{"name": "a", "values": [1]}] * 2}, "more than once"),
        ({"variables": [{"name": "a", "values": [1, 2], "costs": [1]}]}, "1 costs"),
        ({"variables": [{"name": "a", "values": [1]}], "seeds": [[2]]}, "expected one of"),
        ({"variables": [{"name": "a"}]}, 'neither "values"'),
    ],
)
def test_a_malformed_space_is_refused(described: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        from_mapping(described)


def test_swapped_bounds_are_refused() -> None:
    with pytest.raises(ValueError, match="expected low below high"):
        from_params({"x": "interval(5, 1)"}, PARSER)


def test_the_return_value_of_a_job_is_read_or_refused() -> None:
    assert Objectives({}, {}).read(3).values == {"objective": 3.0}
    assert SIZE.read({"size": 1, "margin": 2, "note": "x"}).values == {"size": 1.0, "margin": 2.0}
    assert SIZE.read({"size": float("nan"), "margin": 2}).failed
    for returned, words in ((3, "expected a mapping"), ({"size": 1}, "returned no 'margin'")):
        with pytest.raises(ValueError, match=words):
            SIZE.read(returned)
    with pytest.raises(ValueError, match="expected a number"):
        SIZE.read({"size": "big", "margin": 1})
    with pytest.raises(ValueError, match="minimize or maximize"):
        Objectives({"size": "smallest"}, {})
    with pytest.raises(ValueError, match='such as ">= 0"'):
        Objectives({"size": "minimize"}, {"margin": "> 0"})


def test_a_mutated_gene_differs_and_stays_in_range() -> None:
    random = np.random.default_rng(0)
    variable = grid(1).variables[0]
    for number, down in product(range(6), (0.0, 0.5, 1.0)):
        reached = {moved(variable, float(number), random, down) for _ in range(100)}
        assert number not in reached and reached <= set(range(6))
        if down == 1.0 and number > 0:
            assert max(reached) < number


def test_a_level_switch_keeps_the_sum_of_costs() -> None:
    space, random = grid(5), np.random.default_rng(1)
    mutate = Mutate(space, rate=0.0, switch=1.0)
    row = np.array([3.0, 3, 3, 3, 3])
    for _ in range(50):
        changed = mutate.mutated(row, random)
        assert changed.sum() == row.sum() and (changed != row).sum() == 2


@pytest.mark.parametrize("fill", ["random", "mutate"])
def test_the_first_population_is_the_seeds_filled_up(fill: str) -> None:
    space = Space(grid(3).variables, ((5.0, 5.0, 5.0), (5.0, 5.0, 5.0), (4.0, 4.0, 4.0)))
    genomes = first_population(space, 20, fill, 0.2, np.random.default_rng(0))
    assert genomes[:2] == [(5, 5, 5), (4, 4, 4)] and len(set(genomes)) == 20
    small = first_population(grid(1, 3), 20, "random", 0.2, np.random.default_rng(0))
    assert sorted(small) == [(0,), (1,), (2,)]


def test_the_same_seed_gives_the_same_genomes_and_the_best_never_gets_worse() -> None:
    runs = [Evolution(grid(6), settings(seed=4), SIZE) for _ in range(2)]
    assert evolve(runs[0], 6, judged) == evolve(runs[1], 6, judged)
    evolution, best = Evolution(grid(6), settings(seed=5), SIZE), []
    for _ in range(20):
        evolve(evolution, 1, judged)
        best.append(SIZE.order(evolution.evaluations[evolution.best()[0]]))
    assert best == sorted(best, reverse=True)
    assert evolution.best() == [(1.0,) * 6]


def test_the_least_infeasible_genome_is_reported_if_none_is_feasible() -> None:
    evolution = Evolution(grid(3), settings(), SIZE)
    evolve(evolution, 3, lambda g: Evaluation({"size": sum(g), "margin": -1 - g[0]}))
    assert evolution.best()[0][0] == min(genome[0] for genome in evolution.evaluations)


def test_a_genome_that_failed_dies_out() -> None:
    def judge(genome: tuple[float, ...]) -> Evaluation:
        return Evaluation({}, "broken") if genome[0] > 2 else judged(genome)

    evolution = Evolution(grid(4), settings(population=10), SIZE)
    evolve(evolution, 5, judge)
    assert all(genome[0] <= 2 for genome in evolution.population)
    assert evolution.best()[0][0] <= 2


def test_the_front_of_an_exhaustive_search_is_the_true_front() -> None:
    objectives = Objectives({"size": "minimize", "quality": "maximize"}, {})

    def judge(genome: tuple[float, ...]) -> Evaluation:
        return Evaluation({"size": sum(genome), "quality": genome[0] * 3 + genome[1]})

    evolution = Evolution(grid(2, 4), settings(population=16), objectives)
    evolve(evolution, 1, judge)
    points = {tuple(objectives.costs(judge(g))) for g in product(range(4), repeat=2)}
    front = {p for p in points if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)}
    assert {tuple(objectives.costs(judge(g))) for g in evolution.best()} == front


def generation(sizes: list[float]) -> Generation:
    values = [Evaluation({"size": size, "margin": 0.0}) for size in sizes]
    return Generation([(size,) for size in sizes], values, len(sizes), 1, 2.0)


def test_an_incomplete_last_line_of_a_ledger_is_dropped(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path)
    ledger.begin({"settings": {"seed": 1}, "prepare_jobs": 1, "prepared": None})
    ledger.append(generation([1.0, 2.0]))
    ledger.append(generation([0.5]))
    whole = ledger.path.read_bytes()
    ledger.path.write_bytes(whole[:-9])
    again = Ledger.open(tmp_path)
    assert len(again.generations) == 1 and again.jobs == 2
    assert again.generations[0] == ledger.generations[0]
    again.append(generation([0.5]))
    assert again.path.read_bytes() == whole


def test_changed_settings_are_named_when_a_search_is_resumed(tmp_path: Path) -> None:
    Ledger.open(tmp_path).begin({"settings": {"seed": 1, "space": {"x": [1, 2]}}})
    with pytest.raises(ValueError, match="seed was 1, is 2"):
        Ledger.open(tmp_path).begin({"settings": {"seed": 2, "space": {"x": [1, 2]}}})
    (tmp_path / "generations.jsonl").write_text(json.dumps({"other": 1}) + "\n")
    with pytest.raises(ValueError, match="is not a ledger"):
        Ledger.open(tmp_path)


@pytest.mark.parametrize(
    ("changes", "sizes", "reason"),
    [
        ({"generations": 2}, [9, 5, 1], "2 generations"),
        ({"generations": None, "evaluations": 3}, [9, 5, 1, 1], "3 evaluations"),
        ({"generations": None, "seconds": 5}, [9, 5, 1, 1], "5 seconds"),
        ({"stagnation_generations": 2}, [9, 5, 4.9, 4.8, 1], "less than 5% in 2 generations"),
    ],
)
def test_the_search_stops_at_the_first_limit(
    changes: dict[str, Any], sizes: list[float], reason: str
) -> None:
    stopping = Stopping(settings(**changes), SIZE)
    for size in sizes:
        assert not stopping.reason
        stopping.update(generation([size]))
        if stopping.reason:
            break
    assert reason in stopping.reason


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"params": {}}, "nothing to search"),
        ({"space": {"_target_": "a.b"}}, "both params and space"),
        ({"shard_size": 4}, "shard_key is not set"),
        ({"mutation": 2.0}, "mutation is 2.0"),
        ({"population": 1}, "population is 1"),
        ({"fill": "zeros"}, "fill is 'zeros'"),
        ({"prepare": ["x=1"]}, "prepare needs"),
    ],
)
def test_invalid_settings_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check(settings(**changes))


@pytest.mark.parametrize("constraints", [{}, {"margin": ">= 0"}])
def test_genomes_worse_than_the_limit_do_not_change_the_search(constraints: dict[str, str]) -> None:
    def run(cut: bool) -> tuple[list[Any], int]:
        objectives = Objectives({"size": "minimize"}, constraints)
        evolution = Evolution(grid(12), settings(seed=3, switch=0.3), objectives)
        asked, count = [], 0
        for _ in range(25):
            limit, genomes = evolution.limit, evolution.ask()
            found = []
            for genome in genomes:
                evaluation = judged(genome)
                if cut and limit is not None and evaluation.values["size"] > limit["size"]:
                    count += 1
                    evaluation = Evaluation({"size": limit["size"] + 1e-6, "margin": -7.0})
                found.append(evaluation)
            evolution.tell(found)
            asked.append(genomes)
        return asked + [evolution.best()], count

    (whole, _), (cut, count) = run(False), run(True)
    assert whole == cut and count > 10


def test_the_limit_is_the_worst_survivor_or_none() -> None:
    evolution = Evolution(grid(4), settings(seed=1), SIZE)
    assert evolution.limit is None
    while evolution.limit is None:
        genomes = evolution.ask()
        evolution.tell([judged(genome) for genome in genomes])
    living = [judged(genome).values for genome in evolution.population]
    assert all(values["margin"] >= 0 for values in living)
    assert evolution.limit == {"size": max(values["size"] for values in living)}
    both = Objectives({"size": "minimize", "margin": "maximize"}, {})
    front = Evolution(grid(4), settings(seed=1), both)
    front.tell([judged(genome) for genome in front.ask()])
    assert front.limit is None


def test_there_is_no_limit_until_the_population_is_complete() -> None:
    evolution = Evolution(grid(4), settings(seed=1), Objectives({"size": "minimize"}, {}))
    evolution.tell([judged(genome) for genome in evolution.ask()[:5]])
    assert len(evolution.population) == 5 and evolution.limit is None
    evolution.tell([judged(genome) for genome in evolution.ask()])
    assert len(evolution.population) == 8 and evolution.limit is not None
