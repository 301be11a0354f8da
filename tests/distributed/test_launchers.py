"""Presets of launchers: what they choose, how many jobs run, and that the plugins are found."""

from pathlib import Path

import pytest
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from omegaconf import OmegaConf
from test_conf_groups import CONF, compose_raw

from sieve.conversion import to_config

LAUNCHERS = {
    "basic": "BasicLauncher",
    "joblib": "JoblibLauncher",
    "submitit_local": "LocalLauncher",
    "slurm": "SlurmLauncher",
    "ray": "RayLauncher",
}


def test_every_preset_is_tested() -> None:
    assert {path.stem for path in (CONF / "launcher").glob("[!_]*.yaml")} == set(LAUNCHERS)


def test_the_plugins_of_all_presets_are_found() -> None:
    found = {plugin.__name__ for plugin in Plugins.instance().discover(Launcher)}
    assert set(LAUNCHERS.values()) <= found


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_preset_chooses_its_launcher_and_how_many_jobs_run(name: str) -> None:
    given = ["+task=sst2", "search=genetic", f"launcher={name}", "launcher.workers=3"]
    raw = compose_raw(*given, "+sweep.job=prepare", return_hydra_config=True)
    launcher, sweeper = raw.hydra.launcher, raw.hydra.sweeper
    assert launcher._target_.rpartition(".")[2] == LAUNCHERS[name]
    assert sweeper.n_workers == 3 and sweeper.free == ["launcher"]
    width = {"joblib": "n_jobs", "slurm": "array_parallelism"}.get(name)
    assert width is None or launcher[width] == 3
    OmegaConf.set_struct(raw, False)
    del raw["hydra"]
    assert to_config(raw).launcher.workers == 3


def test_a_launcher_of_hydra_s_own_can_be_chosen_without_a_preset() -> None:
    raw = compose_raw("+task=sst2", "hydra/launcher=joblib", return_hydra_config=True)
    assert raw.hydra.launcher._target_.endswith("JoblibLauncher")


def test_ray_s_preset_says_nothing_that_a_cluster_which_runs_refuses() -> None:
    given = ["+task=sst2", "launcher=ray", "hydra.launcher.ray.init.address=auto"]
    init = compose_raw(*given, return_hydra_config=True).hydra.launcher.ray.init
    # Hydra's launcher sets a size where none is said, and Ray refuses any but its own.
    assert "object_store_memory" in init and init.object_store_memory is None
    assert set(init) == {"address", "include_dashboard", "object_store_memory"}


@pytest.mark.parametrize("workers", ["0", "-1"])
def test_no_worker_at_all_is_refused(workers: str) -> None:
    with pytest.raises(ValueError, match=rf"launcher\.workers is {workers}, expected at least 1"):
        to_config(compose_raw("+task=sst2", f"launcher.workers={workers}"))


def test_presets_say_where_their_extra_is() -> None:
    for name in set(LAUNCHERS) - {"basic"}:
        text = Path(CONF / "launcher" / f"{name}.yaml").read_text()
        extra = "ray" if name == "ray" else "cluster"
        assert f"pip install 'sieve-llm[{extra}]'" in text
