"""The tables of the real model: cells, sizes that were asked for, verdicts by rule."""

from pathlib import Path
from typing import Any

import pytest

from experiments import real_verdicts
from experiments.claims import real
from experiments.jobs import composed_raw
from experiments.verdicts import NO, PART, YES


def cell(kept: float, drop: float = 0.0, **more: Any) -> dict[str, Any]:
    ends = {"value": drop, "low": drop - 0.01, "high": drop + 0.01}
    number = {"value": kept, "low": kept, "high": kept}
    base = {"kept": number, "drop": ends, "within": drop <= 0.02, "certified": True}
    points = {".75": {"value": 0.9}}
    return base | {"model": kept, "dense": 0.9, "bytes": kept, "curve": points} | more


def task(**methods: dict[str, Any]) -> dict[str, Any]:
    return {"methods": methods, "tolerance": 0.02, "metric": "accuracy"}


def test_a_cell_shows_size_drop_interval_and_what_holds() -> None:
    assert real.kept_cell(cell(0.5, 0.01)) == "50.0 (1.0; 0.0 to 2.0) ✓"
    missed = cell(0.5, 0.03, certified=False)
    assert real.kept_cell(missed) == "50.0 (3.0; 2.0 to 4.0) †"
    assert real.kept_cell(None) == ""
    assert real.kept_cell(cell(1.0)) == "100"


def test_a_size_of_the_curve_is_the_largest_genome_below_it() -> None:
    points = [
        {"kept_fraction": size, "accuracy": score} for size, score in ((0.74, 0.9), (0.49, 0.8))
    ]
    result = {"examples": 100, "metric": "accuracy", "curve": points}
    found = real.curve(result)
    assert {size: point["value"] for size, point in found.items()} == {".75": 0.9, ".5": 0.8}
    assert real.curve_cell({"curve": found}) == "90.0 / 80.0"
    perplexity = real.curve(result | {"metric": "perplexity"})
    assert real.curve_cell({"curve": perplexity}) == "0.9 / 0.8"


@pytest.mark.parametrize(
    ("scores", "verdict"), [((0.9, 0.86), YES), ((0.9, 0.7), PART), ((0.8, 0.7), NO)]
)
def test_a_quarter_must_go_for_five_points(scores: tuple[float, float], verdict: str) -> None:
    tasks = {
        str(score): task(paper=cell(1.0, dense=0.9, curve={".75": {"value": score}}))
        for score in scores
    }
    assert real_verdicts.removed(tasks)[1] == verdict


def test_a_level_per_matrix_and_training_must_be_smaller_on_every_task() -> None:
    better = {"a": task(sieve=cell(0.4), loss_aware=cell(0.8), trained=cell(0.2))}
    worse = {"b": task(sieve=cell(0.9), loss_aware=cell(0.8), trained=cell(0.9))}
    for rule in (real_verdicts.levels, real_verdicts.trained):
        assert rule(better)[1] == YES
        assert rule(better | worse)[1] == PART
        assert rule(worse)[1] == NO


def test_eight_bits_must_be_cheap_save_the_bytes_and_stay_within_the_tolerance() -> None:
    def judged(drop: float, cost: float, saved: float) -> str:
        own = cell(0.4, drop, eight_bits={"cost": cost, "saved": saved})
        return real_verdicts.quantized({"a": task(int8=own)})[1]

    assert judged(0.01, 0.004, 0.95) == YES  # nine tenths of the bytes in 16 bits
    assert judged(0.03, 0.004, 0.95) == PART
    assert judged(0.01, 0.05, 0.95) == NO
    assert judged(0.01, 0.004, 0.9) == NO


def test_a_claim_that_no_run_can_judge_has_no_row() -> None:
    tasks = {"a": task(paper=cell(0.5)), "b": task(paper=cell(0.5)) | {"metric": "perplexity"}}
    table = real_verdicts.real_verdicts({"real": {"tasks": tasks}})
    assert "20 to 75 %" in table and "fine-tuning" not in table and "8 bits" not in table
    assert "a 0.0;" in table and "b 0.0" not in table


def test_a_certified_run_that_misses_on_test_rows_shows_both() -> None:
    assert real.kept_cell(cell(0.4, 0.03)) == "40.0 (3.0; 2.0 to 4.0) ✓ †"


def test_a_genetic_search_is_no_grid(tmp_path: Path) -> None:
    """The sweeper refuses a space beside the grid of the experiment."""
    [search, *_] = [job for job in real.jobs() if job.kind == "sweep"]
    config = composed_raw(search.overrides(tmp_path))
    assert not config.hydra.sweeper.params and config.hydra.sweeper.space


def test_a_tuning_that_is_killed_leaves_no_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = tmp_path / "cache/adapters/trec"

    def tuned(config: Any, folder: Path) -> dict[str, tuple[float, float]]:
        folder.mkdir(parents=True)  # An earlier one's folder would be refused here.
        if not adapter.parent.joinpath("second").exists():
            adapter.parent.joinpath("second").touch()
            raise KeyboardInterrupt
        return {"selection": (0.5, 0.9)}

    monkeypatch.setattr("sieve.tune.tune", tuned)
    with pytest.raises(KeyboardInterrupt):
        real.tune(tmp_path, "smollm2_trec", "tune")
    assert not adapter.exists()
    assert real.tune(tmp_path, "smollm2_trec", "tune")["after"] == 0.9
    assert adapter.exists()


def test_a_task_that_is_only_tuned_so_far_is_left_out() -> None:
    tuned = {"before": 0.5, "after": 0.9, "steps": 150}
    assert real.summarize({"real/smollm2_trec-tune": tuned})["tasks"] == {}


def test_eight_bits_are_compared_on_one_genome() -> None:
    record = {"accuracy_before": 0.938, "accuracy_after": 0.934, "saved": 0.9}
    assert real.eight_bits(record) == {"cost": 0.004, "saved": 0.9}
    assert real.eight_bits(None) is None


def timed_run(projection: str, method: str = "waterfill", **cached: bool) -> dict[str, Any]:
    """A run of half a busy core; every stage that it computed took two minutes."""
    stages = ("calibrate", "fit", "search")
    return {
        "projection": projection,
        "storage": "pivoted",
        "vocabulary": None,
        "search": {"method": method},
        "cached": {stage: cached.get(stage, False) for stage in stages},
        "seconds": {stage: 0.1 if cached.get(stage) else 120.0 for stage in stages},
        "job": {"seconds": 1000.0, "cpu_seconds": 500.0},
    }


def test_a_cached_stage_takes_what_it_took_in_the_run_that_computed_it() -> None:
    shared = timed_run("loss_aware", calibrate=True, fit=True)
    runs = {"real/smollm2_a-sieve": shared, "real/smollm2_b-other": timed_run("loss_aware")}
    assert real.minutes(shared, runs, "a") is None  # Another task has other moments.
    uniform = timed_run("loss_aware", "uniform")
    found = real.minutes(shared, runs | {"real/smollm2_a-loss_aware": uniform}, "a")
    assert found is not None and found["value"] == 3.0


@pytest.mark.parametrize(
    ("stage", "projection", "method", "same"),
    [
        ("calibrate", "output", "waterfill", False),  # needs no gradients
        ("fit", "output", "waterfill", False),
        ("search", "loss_aware", "uniform", False),
        ("fit", "loss_aware", "uniform", True),
        ("calibrate", "loss_aware", "uniform", True),
    ],
)
def test_runs_share_moments_banks_and_searches(
    stage: str, projection: str, method: str, same: bool
) -> None:
    run, other = timed_run("loss_aware"), timed_run(projection, method)
    assert real.alike(run, other, stage) == same
    assert not real.alike(run, other | {"vocabulary": {"kept": 0.1}}, stage)


def test_a_genetic_search_takes_the_time_of_all_its_runs() -> None:
    search = timed_run("loss_aware", "genetic")
    found = real.minutes(search, {"real/smollm2_a-genetic": search}, "a")
    assert found is not None and found["value"] == pytest.approx(500 / 60, abs=0.01)


def test_the_curve_shows_no_method_that_changes_only_a_chosen_size() -> None:
    points = dict.fromkeys(real.SIZES, {"value": 0.9})
    entry = task(**{method: cell(0.5, curve=points) for method in real.METHODS})
    shown = real.tables({"tasks": {"a": entry}})["real-curve"]
    assert real.METHODS["sieve"] in shown
    assert not any(f"| {real.METHODS[method]} |" in shown for method in real.AFTER)
