"""The scaling experiment on a tiny model, and the growth figures it computes."""

import math
from pathlib import Path

import pytest
from models import tiny_llama

from experiments import scaling
from experiments.sharing import PARTS, compare_sharing
from sieve.config import DeviceConfig

TFLOPS = {"float32": 0.05, "float64": 0.02}
DEVICE = DeviceConfig("test", "cpu", 8.0, TFLOPS, 10.0)
STAGE = {"seconds", "reckoned_seconds", "peak_mib", "reckoned_peak_mib"}


def test_every_stage_is_measured_and_forecast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling, "EXAMPLES", (2, 4))
    monkeypatch.setattr(scaling, "LONG", 0.0)
    monkeypatch.setattr(scaling, "find_device", lambda *_: DEVICE)
    row = scaling.collect("tiny", 256, tmp_path) | scaling.solve("tiny", 256, tmp_path)
    row |= scaling.search("tiny", 256, tmp_path)
    assert row["prunable"] == 2 * (4 * 32 * 32 + 3 * 32 * 48)
    for stage in ("calibrate", "fit"):
        assert set(row[stage]) >= STAGE
        assert all(math.isfinite(row[stage][name]) for name in STAGE)
        assert row[stage]["seconds"] >= 0 and row[stage]["reckoned_peak_mib"] > 0
    assert row["calibrate"]["tokens"] == sum(b.tokens for b in scaling.calibration(256)) == 256
    assert set(row["search"]["seconds"]) == {"2", "4"} and math.isfinite(row["search"]["slope"])


def test_growth_is_per_parameter_and_per_kind_of_shape() -> None:
    def row(prunable: int, calibrate: float, fit: float) -> dict:
        stages = {"calibrate": {"seconds": calibrate, "tokens": 1000}, "fit": {"seconds": fit}}
        return {"prunable": prunable} | stages

    shapes = {"wide-25": row(10, 1e-6, 2e-6), "wide-100": row(40, 4e-6, 12e-6)}
    shapes["deep-100"] = row(40, 4e-6, 8e-6)
    wide, deep = (scaling.growth(shapes, kind) for kind in ("wide", "deep"))
    assert wide["calibrate"] == {"wide-25": 0.1, "wide-100": 0.1, "spread": 0}
    assert wide["fit"] == {"wide-25": 200, "wide-100": 300, "spread": 0.5}
    assert wide["both"] == {"wide-25": 300, "wide-100": 400, "spread": 0.333}
    assert wide["at_50k"] == {"wide-25": 5200, "wide-100": 5300, "spread": 0.019}
    assert set(deep["fit"]) == {"wide-25", "deep-100", "spread"} and deep["both"]["spread"] == 0


def test_a_shared_prefix_is_computed_once_for_all_rows() -> None:
    sharing = compare_sharing(tiny_llama(max_position_embeddings=512), repeats=1, rows=10)
    assert set(sharing) == {f"{part:g}" for part in PARTS}
    # Half of each of 10 rows of 60 tokens, and 30 tokens that all rows share.
    assert sharing["0.5"]["tokens"] == pytest.approx((10 * 30 + 30) / (10 * 60), abs=5e-4)
