"""The figures of the claims: edges, overlaps, exponents, verdicts, fresh models."""

import json
from pathlib import Path
from typing import Any

import pytest
from models import tiny_llama, tiny_tokenizer

from experiments import fresh, verdicts
from experiments.claims import bottlenecks, curve, transfer
from experiments.jobs import Job, composed
from experiments.reproduce import CLAIMS, module, seeded
from sieve.model.backbone import Backbone, count_parameters


def points(drops: dict[float, float]) -> list[dict[str, Any]]:
    return [
        {"kept_fraction": size, "drop": {"point": d, "low": d - 0.01, "high": d + 0.01}}
        for size, d in drops.items()
    ]


def test_the_edge_is_the_smallest_size_before_two_points_are_lost() -> None:
    edge = curve.edge(points({0.5: 0.0, 0.2: 0.015, 0.1: 0.025, 0.05: 0.01}))
    assert edge == {"value": 0.2, "low": 0.05, "high": 0.5}


def test_half_the_accuracy_above_chance_is_lost_between_two_sizes() -> None:
    half = curve.half(points({0.4: 0.0, 0.1: 0.4}), dense=0.9, chance=0.5)
    assert half["value"] == pytest.approx(0.2, abs=1e-3)  # halfway on a logarithmic scale
    assert curve.half(points({0.4: 0.0, 0.1: 0.1}), 0.9, 0.5)["value"] == 0.1


def test_equal_bottleneck_maps_correlate_and_reversed_ones_anticorrelate() -> None:
    one = {"need": {f"m{i:02}": i / 20 for i in range(20)}}
    other = {"need": {f"m{i:02}": 1 - i / 20 for i in range(20)}}
    assert bottlenecks.similar(one, one) == {
        "spearman": 1.0,
        "shared": 2,
        "of": 2,
        "by_chance": 0.2,
    }
    assert bottlenecks.similar(one, other) == {
        "spearman": -1.0,
        "shared": 0,
        "of": 2,
        "by_chance": 0.2,
    }


def test_a_data_set_is_inside_the_domain_outside_or_the_own_one() -> None:
    place = transfer._place
    assert place("almanac", "almanac_medicine", "almanac_medicine_alternate") == "inside"
    assert place("almanac", "almanac_medicine", "almanac_reviews") == "outside"
    assert place("sentiment", "sst2", "imdb") == "inside"
    assert place("sentiment", "sst2", "trec") == "outside"
    assert place("sentiment", "sst2", "sst2") == "own"


@pytest.mark.parametrize("claim", CLAIMS)
def test_the_jobs_of_a_claim_compose(claim: str, tmp_path: Path) -> None:
    jobs = module(claim).jobs()
    assert len({job.folder(tmp_path) for job in jobs}) == len(set(jobs))
    for job in (jobs[0], jobs[-1]):
        if job.kind == "run" and not job.rows_of:
            assert composed(job.overrides(tmp_path), tmp_path).paths.cache_dir


def test_a_second_run_has_another_seed_and_the_same_name(tmp_path: Path) -> None:
    run, call = Job("kept", (("subject", "trec"),)), Job("kept", (("step", "tune"),), "call")
    again = seeded(run, 3)
    assert again.name == run.name and seeded(run, None) == run and seeded(call, 3) == call
    assert composed(again.overrides(tmp_path), tmp_path).seed == 3


def test_a_job_may_take_its_row_budget_from_another_job(tmp_path: Path) -> None:
    job = Job("kept", (("subject", "trec"), ("method", "random")), rows_of="adaptive/trec-.02")
    folder = tmp_path / "adaptive/trec-.02/sweep/result"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({"search": {"examples": 1234}}))
    assert "search.examples=1234" in job.overrides(tmp_path)
    assert job.lane == "adaptive/trec"  # the lane of the job that it waits for


def test_a_verdict_follows_the_figures() -> None:
    def results(kept: float, within: bool) -> dict[str, Any]:
        cell = {"kept": {"value": kept}, "within": within}
        return {"kept": {"at": {t: {"paper": {"a": cell}} for t in ("0.01", "0.05")}}}

    assert verdicts.removed(results(0.3, True))[1] == verdicts.YES
    assert verdicts.removed(results(0.3, False))[1] == verdicts.PART
    assert verdicts.removed(results(0.9, True))[1] == verdicts.NO
    assert "(uniform) 70 % at ε = .01" in verdicts.removed(results(0.3, True))[0]


def test_an_unmeasured_claim_is_marked_as_such() -> None:
    rows = verdicts.verdicts({}).splitlines()[2:]
    assert len(rows) == len(verdicts.ROWS)
    assert sum(verdicts.LATER in row for row in rows) == len(rows) - 1
    assert sum(verdicts.OPEN in row for row in rows) == 1


def test_a_fresh_model_is_the_widest_within_the_parameter_limit() -> None:
    backbone = Backbone(tiny_llama(hidden_size=64), tiny_tokenizer(), "tiny", "f", None)  # type: ignore[call-arg]
    limit = count_parameters(fresh._shaped(backbone, 32, 2, 100))
    model = fresh.fresh_model(backbone, limit)
    assert model.config.num_hidden_layers == 2 and model.config.hidden_size >= 32
    assert 0.97 * limit < count_parameters(model) <= limit
    least = count_parameters(fresh._shaped(backbone, fresh.STEP, 1, 22))
    assert fresh.fresh_model(backbone, least).config.num_hidden_layers == 1
    with pytest.raises(RuntimeError, match="at most 10 parameters"):
        fresh.fresh_model(backbone, 10)
