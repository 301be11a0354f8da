"""What a run logs: readable line by line, mirrored to W&B offline, and never with a secret."""

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from logged import GENERATIONS, lines, metrics, mirrored, offline_run, records

from sieve.config import LoggerConfig
from sieve.tracking.logger import RunLogger

QUIET = LoggerConfig(wandb=False)
SETTINGS = {"tolerance": 0.02, "task": {"name": "sst2", "labels": ["good", "bad"]}}
# As long as W&B and the Hub want theirs; no real ones.
SECRETS = {"WANDB_API_KEY": "5ec2e7" * 7, "HF_TOKEN": "hf_" + "NotForAnyLog" * 3}


def test_every_line_can_be_read_while_the_run_goes_on(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path / "new" / "run", QUIET, {}, "title")
    assert lines(logger.run_dir) == []
    logger.log_metrics({"fit/seconds": 1.5})
    assert metrics(logger.run_dir) == [{"fit/seconds": 1.5}]
    logger.log_metrics({"search/kept": 0.25, "search/accuracy": 1}, step=0)
    logger.log_metrics({"search/kept": 0.2}, step=1)
    assert metrics(logger.run_dir) == [
        {"fit/seconds": 1.5},
        {"step": 0, "search/kept": 0.25, "search/accuracy": 1},
        {"step": 1, "search/kept": 0.2},
    ]
    times = [line["time"] for line in lines(logger.run_dir)]
    assert times == sorted(times) and times[0] > 1e9
    logger.close()


def test_numbers_of_any_library_become_json_and_what_is_not_finite_null(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path, QUIET, {}, "title")
    logger.log_metrics({"a": torch.tensor(0.5), "b": np.float32(0.25), "c": np.int64(3)})
    logger.log_metrics({"a": float("nan"), "b": float("inf"), "c": np.float64("-inf")})
    logger.log_metrics({"a": torch.tensor(float("nan")), "b": torch.tensor(2), "c": -0.5})
    logger.close()
    assert metrics(tmp_path) == [
        {"a": 0.5, "b": 0.25, "c": 3},
        {"a": None, "b": None, "c": None},
        {"a": None, "b": 2, "c": -0.5},
    ]


def test_a_run_that_goes_on_appends(tmp_path: Path) -> None:
    for value in (1, 2):
        logger = RunLogger(tmp_path, QUIET, {}, "title")
        logger.log_metrics({"value": value})
        logger.close()
    assert metrics(tmp_path) == [{"value": 1}, {"value": 2}]


def test_lightning_finds_the_run_by_its_title_and_directory(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path / "today", QUIET, {}, "title")
    assert (logger.name, logger.version) == ("title", "today")
    logger.log_hyperparams({"lr": 1})
    logger.finalize("success")  # after every loop: the run goes on
    logger.log_metrics({"value": 1})
    logger.close()
    assert metrics(tmp_path / "today") == [{"value": 1}]


def test_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    monkeypatch.setattr(rank_zero_only, "rank", 1)
    config = LoggerConfig(mode="offline", artifact=True)
    logger = RunLogger(tmp_path / "run", config, SETTINGS, "title")
    log_everything(logger)
    logger.close()
    left = [path.name for path in tmp_path.rglob("*")]
    assert sorted(left) == ["export", "run", "weights"]  # of the test, not of the logger


@pytest.mark.slow
def test_without_wandb_it_is_not_even_imported(tmp_path: Path) -> None:
    program = """if True:
        import sys
        from pathlib import Path
        sys.modules["wandb"] = None  # importing it now raises
        from sieve.config import LoggerConfig
        from sieve.tracking.logger import RunLogger
        logger = RunLogger(Path(sys.argv[1]), LoggerConfig(wandb=False), {"a": 1}, "title")
        logger.log_metrics({"value": 1.0}, step=2)
        logger.log_summary({"kept": 0.5})
        logger.log_figures({"curve": object()})
        logger.log_table("genome", [{"name": "q"}])
        logger.close()
        assert not [name for name in sys.modules if name.startswith("wandb.")]
    """
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert metrics(tmp_path) == [{"step": 2, "value": 1.0}, {"step": 0, "genome/name": "q"}]


@pytest.fixture
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine without W&B credentials or settings: an empty home, nothing in the environment."""
    import wandb

    home = tmp_path / "home"
    home.mkdir()
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    monkeypatch.chdir(home)
    wandb.teardown()  # It reads the environment once per process.
    yield tmp_path / "run"
    wandb.teardown()


def log_everything(logger: RunLogger) -> None:
    """One of each: metrics, summary, figure and table."""
    logger.log_metrics({"search/kept": 0.25, "search/margin": float("nan")}, step=3)
    logger.log_figures({"curve": go.Figure(go.Scatter(x=[1, 2], y=[0.5, 0.75]))})
    logger.log_table("genome", [{"name": "q", "level": 0.5}, {"level": 1.0, "name": "k"}])
    logger.log_table("empty", [])
    (logger.run_dir / "export").mkdir(parents=True, exist_ok=True)
    (logger.run_dir / "export" / "weights").write_text("1 2 3")
    logger.log_artifact("of mine/tiny", logger.run_dir / "export", logger.run_dir / "metrics.jsonl")
    logger.log_summary({"kept_fraction/prunable": 0.25, "model": "tiny"})


def test_without_a_key_one_offline_run_holds_everything(isolated: Path) -> None:
    config = LoggerConfig(project="pans", group="g")
    logger = RunLogger(isolated, config, SETTINGS, "my title", ["sst2", "tiny"], "search")
    log_everything(logger)
    logger.close()
    folder = offline_run(isolated)
    run = next(r.run for r in records(folder) if r.WhichOneof("record_type") == "run")
    assert (run.project, run.display_name, run.run_group) == ("pans", "my title", "g")
    assert (list(run.tags), run.job_type) == (["sst2", "tiny"], "search")
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert {key: config[key] for key in SETTINGS} == SETTINGS
    history, summary = mirrored(folder, "history"), mirrored(folder, "summary")
    assert history["search/kept"] == 0.25
    assert "search/margin" not in history
    assert summary["kept_fraction/prunable"] == 0.25
    assert summary["model"] == "tiny"
    (table,) = folder.glob("files/media/table/tables/genome_*.table.json")
    body = json.loads(table.read_text())
    assert body == {"columns": ["name", "level"], "data": [["q", 0.5], ["k", 1.0]]}
    (figure,) = folder.glob("files/media/plotly/figures/curve_*.plotly.json")
    assert json.loads(figure.read_text())["data"][0]["type"] == "scatter"
    assert metrics(isolated) == [
        {"step": 3, "search/kept": 0.25, "search/margin": None},
        {"step": 0, "genome/name": "q", "genome/level": 0.5},
        {"step": 1, "genome/name": "k", "genome/level": 1.0},
    ]


@pytest.mark.parametrize("failed", [False, True])
def test_the_run_is_finished_with_its_outcome_and_the_next_is_another(
    isolated: Path, failed: bool
) -> None:
    import wandb

    for name in ("one", "two"):
        logger = RunLogger(isolated / name, LoggerConfig(mode="offline"), {}, name)
        assert wandb.run is not None
        logger.close(failed)
        assert wandb.run is None
        logger.close(failed)  # closing twice is harmless
        ends = [r.exit for r in records(offline_run(isolated / name)) if r.HasField("exit")]
        assert [end.exit_code for end in ends] == [int(failed)]


@pytest.mark.parametrize("mode", ["auto", "offline"])
def test_no_secret_reaches_any_file(
    isolated: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    for name, secret in SECRETS.items():
        monkeypatch.setenv(name, secret)
    if mode == "auto":
        monkeypatch.setenv("WANDB_MODE", "offline")
    remote = f"https://{SECRETS['HF_TOKEN']}:x-oauth-basic@localhost/sieve.git"
    subprocess.run(["git", "init", "--quiet"], check=True)
    subprocess.run(["git", "remote", "add", "origin", remote], check=True)
    logger = RunLogger(isolated, LoggerConfig(mode=mode, artifact=True), SETTINGS, "title")
    log_everything(logger)
    logger.close()
    shutil.rmtree(".git")
    # Records apart from their file: there a block's end may split a secret.
    held = {f"record {i}": str(r).encode() for i, r in enumerate(records(offline_run(isolated)))}
    everything = isolated.parent.rglob("*")  # the home too
    held |= {str(path): path.read_bytes() for path in everything if path.is_file()}
    assert any("metrics.jsonl" in name for name in held) and len(held) > 20
    for name, content in held.items():
        for secret in SECRETS.values():
            assert secret.encode() not in content, name


def test_the_step_of_a_series_reaches_an_offline_run(isolated: Path) -> None:
    logger = RunLogger(isolated, LoggerConfig(mode="offline"), {}, "title")
    logger.log_series("generations", GENERATIONS, step="generation")
    logger.close()
    found = [r.metric for r in records(offline_run(isolated)) if r.HasField("metric")]
    steps = {metric.glob_name or metric.name: metric.step_metric for metric in found}
    assert steps["generations/*"] == "generations/generation"


@pytest.mark.parametrize("asked", [True, False])
def test_an_artifact_is_kept_offline_where_it_is_asked_for(isolated: Path, asked: bool) -> None:
    logger = RunLogger(isolated, LoggerConfig(mode="offline", artifact=asked), {}, "title")
    log_everything(logger)
    logger.close()
    kept = [r.artifact for r in records(offline_run(isolated)) if r.HasField("artifact")]
    found = {one.name: one for one in kept if one.type == "model"}
    if not asked:
        assert found == {}
        return
    files = {
        entry.path: Path(entry.local_path) for entry in found["of-mine-tiny"].manifest.contents
    }
    assert set(files) == {"export/weights", "metrics.jsonl"}
    assert files["export/weights"] == isolated / "export" / "weights"  # and no copy of it
    assert "search/kept" in files["metrics.jsonl"].read_text()


class Started(Exception):
    """Raised in place of starting W&B."""


@pytest.mark.parametrize(
    ("mode", "environment", "key", "expected"),
    [
        ("auto", None, True, "online"),
        ("auto", None, False, "offline"),
        ("auto", "offline", True, "offline"),
        ("auto", "online", False, "online"),
        ("offline", "online", True, "offline"),
        ("online", "offline", False, "online"),
    ],
)
def test_the_mode_is_the_one_asked_for_then_the_environments_then_the_keys(
    isolated: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    environment: str | None,
    key: bool,
    expected: str,
) -> None:
    import wandb

    def init(**options: Any) -> None:
        raise Started(options["mode"])

    if environment is not None:
        monkeypatch.setenv("WANDB_MODE", environment)
    monkeypatch.setattr(wandb, "login", lambda prompt: key)
    monkeypatch.setattr(wandb, "init", init)
    with pytest.raises(Started, match=f"^{expected}$"):
        RunLogger(isolated, LoggerConfig(mode=mode), {}, "title")


def test_a_key_that_is_refused_gives_one_warning_and_an_offline_run(
    isolated: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "short")  # refused before the network is asked
    with caplog.at_level(logging.WARNING, "sieve"):
        logger = RunLogger(isolated, LoggerConfig(), {}, "title")
    logger.close()
    (message,) = [r.getMessage() for r in caplog.records if r.name.startswith("sieve")]
    assert "refused the key" in message and "is logged offline" in message
    assert offline_run(isolated).is_dir()


def test_online_without_a_key_is_refused_with_what_to_do(isolated: Path) -> None:
    with pytest.raises(RuntimeError, match="could not start .*set logger.mode=offline"):
        RunLogger(isolated, LoggerConfig(mode="online"), {}, "title")
