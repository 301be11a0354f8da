"""`dry_run=true` counts the rows of a task, measures their lengths, and forecasts the costs."""

import json
import shutil

import pytest
from forecasting import CPU, forecast, stage, text_of
from models import tiny_tokenizer
from runs import make_world


@pytest.mark.slow
def test_the_embedded_model_s_rows_are_measured(tmp_path):
    record = forecast(tmp_path, "+task=almanac_medicine", *CPU)
    assert record["task"]["source"].startswith("measured on 192 rows") and record["fits"]
    assert record["assumptions"][0] == "Shapes: from its config.json."
    assert record["task"]["rows"] == {"calibration": 3000, "selection": 1000, "test": 1500}
    assert record["parameters"] == 4_812_288
    assert "kept" not in record["verdict"] and "fits" in text_of(record)
    certified = forecast(tmp_path, "+task=almanac_medicine", "confidence=.9", *CPU)
    rows = {"calibration": 2342, "selection": 1658, "test": 1500}
    assert certified["task"]["rows"] == rows and record["certifiable"] == ""
    assert certified["certifiable"].startswith("With 1,658 selection rows and a pruned model")


@pytest.mark.slow
def test_a_shared_prefix_makes_a_row_cheaper_and_is_not_counted_by_calibration(tmp_path):
    shots = ("+task=almanac_reviews", "task.shots=4", "calibration.rows=512", *CPU)
    shared, whole = forecast(tmp_path, *shots), forecast(tmp_path, *shots, "share_prefix=2")
    for name in ("calibrate", "search", "evaluate"):
        assert stage(shared, name)["seconds"] < 0.7 * stage(whole, name)["seconds"]
    task = shared["task"]
    assert task["prefix"] > task["calibration"]
    assert task["prefix"] + task["calibration"] == pytest.approx(whole["task"]["calibration"])
    thrifty = forecast(tmp_path, *shots, "calibration.checkpointing=true")
    plain = forecast(tmp_path, *shots, "calibration.checkpointing=true", "share_prefix=2")
    seconds = [stage(record, "calibrate")["seconds"] for record in (thrifty, plain)]
    assert seconds[0] == pytest.approx(seconds[1], rel=0.01)


@pytest.mark.slow
def test_a_prompt_that_a_run_will_measure_is_the_longest_one_that_fits(tmp_path):
    make_world(tmp_path)  # Its context of 128 tokens has room for 4 shots, not for 8.
    tokenizer = tiny_tokenizer(chat_template="<user>{{ messages[0]['content'] }}")
    tokenizer.save_pretrained(tmp_path / "model")
    paths = (f"task.data_dir={tmp_path / 'data'}", f"model.path={tmp_path / 'model'}")
    own = ("+task=jsonl", *paths, *CPU)
    longest = forecast(tmp_path, *own, "task.shots=auto")["task"]
    assert "with the longest prompt that task.chat and task.shots allow" in longest["source"]
    most = forecast(tmp_path, *own, "task.chat=always", "task.shots=4")["task"]
    bare = forecast(tmp_path, *own, "task.chat=never")["task"]
    assert longest["scored"] == most["scored"] > bare["scored"]


@pytest.mark.slow
def test_rows_without_a_tokenizer_are_counted(tmp_path):
    make_world(tmp_path)
    shutil.rmtree(tmp_path / "model")
    task = ("+task=jsonl", f"task.data_dir={tmp_path / 'data'}", "model=llama3_1_8b", *CPU)
    record = forecast(tmp_path, *task)
    assert record["task"]["rows"] == {"calibration": 120, "selection": 60, "test": 60}
    assert record["task"]["source"].startswith("rows counted, tokens guessed")
    stated = forecast(tmp_path, *task, "+task.typical.tokens=70", "+task.typical.answer=3")["task"]
    assert stated["source"] == "rows counted, lengths stated in task.typical"
    assert (stated["scored"], stated["calibration"], stated["answer"]) == (70, 70, 3)
    assert stated["rows"] == record["task"]["rows"]


@pytest.mark.slow
def test_a_curve_a_bottleneck_map_and_another_task_score_more_rows(tmp_path):
    base = ("+task=almanac_medicine", "model=embedded", "speed.enabled=false", *CPU)
    plain = forecast(tmp_path, *base)
    # Two models more and the dense one, where a plain run scores the dense and the pruned one.
    curve = forecast(tmp_path, *base, "curve=[1,.5]")
    mapped = forecast(tmp_path, *base, "search.bottlenecks=true")
    also = forecast(tmp_path, *base, "+task@also.other=almanac_reviews")
    for record, least, most in ((curve, 2.4, 2.8), (mapped, 2.5, 3.3), (also, 1.5, 2.5)):
        ratio = stage(record, "evaluate")["seconds"] / stage(plain, "evaluate")["seconds"]
        assert least < ratio < most
    assert stage(mapped, "search")["seconds"] > 2 * stage(plain, "search")["seconds"]


@pytest.mark.slow
def test_the_answers_of_the_dense_model_are_forecast_as_its_scores(tmp_path):
    task = ("+task=almanac_reviews", "task.max_rows.calibration=100", *CPU)
    record = forecast(tmp_path, *task, "task.metric=agreement", "curve=[1]")
    assert record["stages"][0]["name"] == "answers"
    once = forecast(tmp_path, *task, "curve=[1]")
    twice = forecast(tmp_path, *task, "curve=[1,1]")
    test_rows = stage(twice, "evaluate")["seconds"] - stage(once, "evaluate")["seconds"]
    rows = record["task"]["rows"]
    expected = test_rows * sum(rows.values()) / rows["test"]
    assert stage(record, "answers")["seconds"] == pytest.approx(expected, rel=0.01)


@pytest.mark.slow
def test_rows_without_labels_are_forecast(tmp_path):
    world = make_world(tmp_path)
    run = ("+task=jsonl", f"model.path={world / 'model'}", f"task.data_dir={world / 'data'}", *CPU)
    before = forecast(tmp_path, *run)
    texts = "".join(json.dumps({"text": f"a text {number}"}) + "\n" for number in range(3_000))
    (world / "data" / "unlabelled.jsonl").write_text(texts)
    after = forecast(tmp_path, *run)
    assert after["task"]["rows"]["unlabelled"] == 3_000
    trained = forecast(tmp_path, *run, "recovery=full", "tolerance=0.1")
    seconds = [stage(record, "evaluate")["seconds"] for record in (before, trained, after)]
    assert seconds == sorted(set(seconds))


@pytest.mark.slow
def test_one_level_for_all_keeps_no_less_than_the_smallest(tmp_path):
    def assumed(*overrides):
        record = forecast(tmp_path, "+task=almanac_medicine", *CPU, *overrides)
        return stage(record, "evaluate")["seconds"], record["assumptions"][-1]

    tenth, tenth_line = assumed("search=uniform", "search.levels=[1,.1]")
    most, most_line = assumed("search=uniform", "search.levels=[1,.9,.6]")
    assert most > tenth and "35% in times and 50% in memory" in tenth_line
    assert "60% in times and 60% in memory" in most_line
    assert assumed("search=uniform", "search.levels=[1]")[1] == tenth_line
    assert assumed("search=waterfill", "search.levels=[1,.6]")[1] == tenth_line
    learned = assumed("search=uniform", "search.levels=[1,.9]", "projection=learned")[1]
    assert "50% in times" in learned
