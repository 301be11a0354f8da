"""The applications that are searched, and how a user runs them."""

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
    """The environment with the applications importable, and what this process was told to."""
    paths = [str(APPS), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}


def run(folder: Path, app: Path, *overrides: str) -> Result:
    """Search in a folder, to the end."""
    folder.mkdir(exist_ok=True)
    around = environment()
    if SLURM[0] in overrides:
        around |= with_slurm(folder)
    return subprocess.run(
        command(app, *overrides),
        cwd=folder,
        env=around,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def with_slurm(folder: Path) -> dict[str, str]:
    """An environment with a cluster of this machine, which keeps its states in a folder."""
    states = folder / "states"
    states.mkdir()
    return {
        "PATH": f"{slurm.install(folder / 'slurm')}:{os.environ['PATH']}",
        "SLURM_STATES": str(states.absolute()),
    }


def results(folder: Path) -> str:
    """What a search has written."""
    return (folder / "sweep" / "optimization_results.yaml").read_text()


def log(folder: Path) -> list[str]:
    """What jobs of `chunks.py` noted, without who noted it."""
    path = folder / "log.txt"
    return [x.split(" ", 1)[1] for x in path.read_text().splitlines()] if path.exists() else []


def evaluated(folder: Path) -> list[str]:
    """Genomes that were evaluated, each as often as it was."""
    return sorted(line for line in log(folder) if line.startswith("["))


def begin(folder: Path, notes: int, *overrides: str) -> "subprocess.Popen[str]":
    """Start a search over chunks, and return once its jobs have made so many more notes."""
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
        preexec_fn=_heed_ctrl_c,
    )
    while len(log(folder)) < notes:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    return process


def _heed_ctrl_c() -> None:
    """What a shell runs in the background, such as these tests, passes on that it ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
