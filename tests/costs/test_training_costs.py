"""The forecast of training: short prompts, and the hidden states of the dense model."""

import pytest
from forecasting import forecast, stage


@pytest.mark.slow
def test_a_short_prompt_costs_the_pruned_model_less_and_the_dense_model_the_same(tmp_path):
    def seconds(*overrides: str) -> dict[str, float]:
        base = ("+task=almanac_reviews", "task.shots=4", "task.chat=never", "device=h100")
        record = forecast(tmp_path, *base, *overrides)  # The rates of the device are stated.
        lengths = {"scored": record["task"]["scored"]}
        return lengths | {row["name"]: row["seconds"] for row in record["stages"]}

    whole, baked = seconds("recovery=full"), seconds("recovery=bake")
    assert 3 * baked["scored"] < whole["scored"]
    alone = ("recovery.loss=task", "recovery.hidden=0")
    taught = baked["recover"] - seconds("recovery=bake", *alone)["recover"]
    short = whole["recover"] - seconds("recovery=full", *alone)["recover"]
    assert taught > 0 < short


@pytest.mark.slow
def test_hidden_states_beyond_the_room_for_them_are_computed_at_every_step(tmp_path, monkeypatch):
    def forecasted(hidden: float) -> tuple[float, float]:
        base = ("+task=almanac_reviews", "recovery=full", "recovery.loss=kl", "device=h100")
        record = forecast(tmp_path, *base, f"recovery.hidden={hidden}")
        recover = stage(record, "recover")
        return recover["seconds"], recover["parts_bytes"]["hidden states (host)"]

    answers, kept = forecasted(0), forecasted(1)
    assert kept[0] == pytest.approx(answers[0]) and kept[1] > answers[1] == 0
    monkeypatch.setattr("sieve.costs.training.STATE_BYTES", kept[1] / 2)
    half = forecasted(1)
    assert half[0] > kept[0] and half[1] == kept[1] / 2
