"""An application that reads chunks: minimize the sum of genes; gene i must be at least i.

Files in the working directory, such as `raise-finish` and `kill-evaluate`, make a job fail.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import hydra
from omegaconf import DictConfig

if "SLURM_STATES" in os.environ:
    # A job of the fake cluster has written its results when it ends, so submitit need not wait for
    # the results of a lost job.
    from submitit import Job

    Job._results_timeout_s = 2


def space(config: DictConfig, prepared: object = None) -> dict:
    """Genes from 0 to 9, and one seed with all genes 9."""
    names = [f"g{i}" for i in range(config.genes)]
    variables = [{"name": n, "values": list(range(10)), "costs": list(range(10))} for n in names]
    return {"variables": variables, "seeds": [[9] * config.genes]}


def evaluate(genome: list[int]) -> dict[str, float]:
    """The sum of the genes, and the smallest distance of a gene to its minimum."""
    return {"size": float(sum(genome)), "margin": float(min(g - i for i, g in enumerate(genome)))}


def note(config: DictConfig, text: str) -> None:
    """Append a line to the log that all jobs share."""
    with open(config.log, "a") as log:
        log.write(f"{os.getpid()} {text}\n")


def go_wrong(config: DictConfig, name: str) -> None:
    """Raise while `raise-<name>` exists; signal this process once if `kill-<name>` exists."""
    if Path(f"raise-{name}").exists():
        raise RuntimeError(f"nothing to {name}")
    for what, number in (("kill", signal.SIGKILL), ("preempt", signal.SIGUSR2)):
        try:
            Path(f"{what}-{name}").unlink()
        except FileNotFoundError:
            continue
        os.kill(os.getpid(), number)


@hydra.main(version_base="1.3", config_path=".", config_name="chunks")
def main(config: DictConfig) -> dict[str, str] | None:
    """Evaluate a chunk and write one line per genome, or run the prepare or finalize job."""
    if config.first:
        note(config, "first")
        go_wrong(config, "prepare")
        return {"prepared": config.first}
    if config.last:
        note(config, "last")
        go_wrong(config, "finish")
        time.sleep(2 * config.seconds)
        Path("last.txt").write_text(config.last)
        return None
    chunk = json.loads(Path(config.chunk).read_text())
    note(config, f"begin {config.device}")
    sys.stderr.write(f"a chunk of {len(chunk['genomes'])} genomes\n")
    results = Path(chunk["results"])
    done = {json.loads(line)["index"] for line in results.read_text().splitlines()}
    for index, genome in enumerate(chunk["genomes"]):
        if index not in done:
            time.sleep(config.seconds)
            with results.open("a") as file:
                file.write(json.dumps({"index": index} | evaluate(genome)) + "\n")
            note(config, str(genome))
            go_wrong(config, "evaluate")
    note(config, f"end {config.device}")
    return None


if __name__ == "__main__":
    main()
