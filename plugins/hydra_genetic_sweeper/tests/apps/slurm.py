"""Fakes of the Slurm commands that submitit calls: sbatch, srun and sacct.

`install` writes them into a folder. A job is a process in its own session; its state is a file.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = ("sbatch", "srun", "sacct")


def install(folder: Path) -> Path:
    """Write the commands; return the folder, which belongs first in PATH."""
    folder.mkdir(parents=True)
    for name in COMMANDS:
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {name} "$@"\n')
        script.chmod(0o755)
    return folder


def states() -> Path:
    """The folder with one state file per job."""
    return Path(os.environ["SLURM_STATES"])


def sbatch(script: str) -> None:
    """Start a job, or every job of an array, and print its number."""
    number = str(time.time_ns())
    array = re.search(r"--array=0-(\d+)", Path(script).read_text())
    tasks = [f"{number}_{i}" for i in range(int(array[1]) + 1)] if array else [number]
    for task in tasks:
        (states() / task).write_text("RUNNING")
        subprocess.Popen(
            [sys.executable, __file__, "job", script, task],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    sys.stdout.write(f"Submitted batch job {number}\n")


def job(script: str, task: str) -> None:
    """Run a batch script and write its final state."""
    variables = {
        "SLURM_JOB_ID": task,
        "SLURM_NTASKS": "1",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_NODEID": "0",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_JOB_NODELIST": "node",
    }
    if "_" in task:
        variables["SLURM_ARRAY_JOB_ID"], variables["SLURM_ARRAY_TASK_ID"] = task.split("_")
    done = subprocess.run(["bash", script], env=os.environ | variables, check=False)
    (states() / task).write_text("FAILED" if done.returncode else "COMPLETED")


def srun(*arguments: str) -> None:
    """Replace this process by the command, with its output in a file."""
    task = os.environ["SLURM_JOB_ID"]
    whole, _, index = task.partition("_")
    start = next(i for i, word in enumerate(arguments) if word.endswith(Path(sys.executable).name))
    for name, number in (("--output", 1), ("--error", 2)):
        path = arguments[arguments.index(name) + 1]
        for mark, value in (("%j", task), ("%A", whole), ("%a", index), ("%t", "0")):
            path = path.replace(mark, value)
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.execv(arguments[start], arguments[start:])


def sacct(*arguments: str) -> None:
    """Print the table of the requested jobs."""
    requested = [arguments[i + 1] for i, word in enumerate(arguments) if word == "-j"]
    rows = [
        f"{path.name}|{path.read_text()}|node"
        for path in sorted(states().iterdir())
        if path.name.split("_")[0] in requested
    ]
    sys.stdout.write("\n".join(["JobID|State|NodeList", *rows]) + "\n")


if __name__ == "__main__":
    {"sbatch": sbatch, "srun": srun, "sacct": sacct, "job": job}[sys.argv[1]](*sys.argv[2:])
