"""The benchmark on tiny models: every part gives a ratio, every stage a forecast."""

import pytest
from models import tiny_llama, tiny_tokenizer

import sieve
from experiments.bench import forecast, parts, timing
from experiments.bench.tables import RATIOS, tables
from sieve.tasks import Example

NUMBER = {"value": 1.5, "low": 1.0, "high": 2.0}


def test_a_ratio_is_the_median_of_work_that_takes_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    spent = iter([3.0, 1.0, 4.0, 2.0, 9.0, 1.0])
    monkeypatch.setattr(timing, "seconds", lambda work: next(spent))
    found = timing.ratio(lambda: None, lambda: None, 3)
    assert found == {"value": 3.0, "low": 2.0, "high": 9.0}


@pytest.mark.slow
def test_every_stage_is_measured_and_forecast() -> None:
    found = forecast.forecasts("tiny", "calibration.tokens=200", "projection.refit_tokens=200")
    assert found["prunable"] == 2 * (4 * 32 * 32 + 3 * 32 * 48)
    assert found["peak_mib"]["value"] > 0 and found["forecast_peak_mib"] > 0
    assert tuple(found["stages"]) == forecast.STAGES
    for stage in found["stages"].values():
        assert stage["seconds"]["value"] > 0 and stage["forecast_seconds"] >= 0


@pytest.mark.slow
def test_parts_give_ratios() -> None:
    model, tokenizer = tiny_llama().requires_grad_(False), tiny_tokenizer()
    examples = [Example(f"number {i} is", (" good", " bad"), i % 2) for i in range(8)]
    batches = sieve.calibration_batches(examples, tokenizer)
    found = parts.calibration_ratios(model, batches, 1)
    moments = sieve.calibrate(model, batches)
    plain, pivoted = (sieve.fit(model, moments, storage=form) for form in ("plain", "pivoted"))
    found["fit"] = parts.fit_ratio(model, batches, 1)
    found["switch"] = parts.switch_ratio(model, plain, tokenizer, examples, 1)
    scoring = sieve.scoring_batches(examples, tokenizer)
    found["shared_blocks"] = parts.shared_blocks_ratio(model, plain, scoring, 1)
    found["storage"] = parts.storage_ratio(model, (pivoted, plain), 0.5, 16, 1)
    assert all(number["value"] > 0 for number in found.values())


def test_a_shared_prefix_is_computed_once_for_all_rows() -> None:
    shared, plain = parts.prefix_batches(tiny_llama(max_position_embeddings=512), 0.5, 10)
    own = sum(b.input_ids.numel() - len(b.input_ids) * len(b.prefix) for b in shared)
    assert own == 10 * parts.OWN and len(shared[0].prefix) == parts.OWN
    assert sum(batch.input_ids.numel() for batch in plain) == 2 * own


def test_the_tables_have_a_row_per_figure() -> None:
    stages = {"calibrate": {"seconds": NUMBER, "forecast_seconds": 1}}
    peak = {"peak_mib": NUMBER, "forecast_peak_mib": 2}
    summary = {
        "ratios": dict.fromkeys(RATIOS, NUMBER),
        "speed": {"embedded": {"0.5": {"prefill": NUMBER, "decode": NUMBER}}},
        "forecast": {"small": {"prunable": 6_000_000, "stages": stages} | peak},
    }
    ratios, speed, forecasts = tables(summary)
    assert len(ratios.splitlines()) == 2 + len(RATIOS)
    assert "1.50 (1.00 to 2.00)" in speed and "6M | 1.5 / 1.0 | 2 / 2" in forecasts
