"""Run the test applications from the command line."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from apps import slurm

JOBLIB = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweeper.n_workers=2")
SUBMITIT = ("hydra/launcher=submitit_local", "hydra.launcher.timeout_min=60")
SLURM = ("hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=60")
RAY = (
    "hydra/launcher=ray",
    "hydra.launcher.ray.init.address=local",
    "+hydra.launcher.ray.init.num_cpus=3",
    "+hydra.launcher.ray.init.include_dashboard=false",
)
HERE = Path(__file__).parent
APPS = HERE / "apps"
CHUNKS = APPS / "chunks.py"
BOWL = HERE.parent / "example" / "bowl.py"
Result = subprocess.CompletedProcess[str]


def command(app: Path, *overrides: str) -> list[str]:
    """The command line of a multirun."""
    return [sys.executable, str(app), "-m", *overrides]


def environment() -> dict[str, str]:
    """The environment of this process, with the applications importable."""
    paths = [str(APPS), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}


def run(folder: Path, app: Path, *overrides: str) -> Result:
    """Run a search in a folder and wait for its end."""
    folder.mkdir(exist_ok=True)
    variables = environment()
    if SLURM[0] in overrides:
        variables |= with_slurm(folder)
    return subprocess.run(
        command(app, *overrides),
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def with_slurm(folder: Path) -> dict[str, str]:
    """Environment variables of a fake Slurm cluster, with its states in a folder."""
    states = folder / "states"
    states.mkdir()
    return {
        "PATH": f"{slurm.install(folder / 'slurm')}:{os.environ['PATH']}",
        "SLURM_STATES": str(states.absolute()),
    }


def results(folder: Path) -> str:
    """The results file of a search."""
    return (folder / "sweep" / "optimization_results.yaml").read_text()


def log(folder: Path) -> list[str]:
    """The log lines of the jobs of `chunks.py`, without process ids."""
    path = folder / "log.txt"
    return [x.split(" ", 1)[1] for x in path.read_text().splitlines()] if path.exists() else []


def evaluated(folder: Path) -> list[str]:
    """The evaluated genomes, one entry per evaluation."""
    return sorted(line for line in log(folder) if line.startswith("["))


def begin(folder: Path, notes: int, *overrides: str) -> "subprocess.Popen[str]":
    """Start a search over chunks, and return after its jobs have logged `notes` more lines."""
    folder.mkdir(exist_ok=True)
    notes += len(log(folder))
    process = subprocess.Popen(
        command(CHUNKS, *overrides),
        cwd=folder,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=_accept_ctrl_c,
    )
    while len(log(folder)) < notes:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    return process


def _accept_ctrl_c() -> None:
    """Handle Ctrl-C even if this process was started in the background and ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
