"""An application that reads shards: the sum of genes, none of which may fall below its index."""

import json
import os
import time
from pathlib import Path

import hydra
from omegaconf import DictConfig


def space(config: DictConfig) -> dict:
    """Genes of 0 to 9, and a seed of nines."""
    names = [f"g{i}" for i in range(config.genes)]
    variables = [{"name": n, "values": list(range(10)), "costs": list(range(10))} for n in names]
    return {"variables": variables, "seeds": [[9] * config.genes]}


def evaluate(genome: list[int]) -> dict[str, float]:
    """Size, and how far the least gene is above its floor."""
    return {"size": float(sum(genome)), "margin": float(min(g - i for i, g in enumerate(genome)))}


@hydra.main(version_base="1.3", config_path=".", config_name="shards")
def main(config: DictConfig) -> None:
    """One shard, a line as each genome is done."""
    if config.last:
        Path("last.txt").write_text(config.last)
        return
    shard = json.loads(Path(config.shard).read_text())
    results = Path(shard["results"])
    done = {json.loads(line)["index"] for line in results.read_text().splitlines()}
    for index, genome in enumerate(shard["genomes"]):
        if index not in done:
            time.sleep(config.seconds)
            with results.open("a") as file, open(config.log, "a") as log:
                file.write(json.dumps({"index": index} | evaluate(genome)) + "\n")
                log.write(f"{os.getpid()} {genome}\n")


if __name__ == "__main__":
    main()
