"""A chunk is a file of genomes for one job, with a file for its results beside it.

The file is JSON: {"format": 1, "generation", "chunk", "job", "worker", "names": [...], "genomes":
[[value, ...], ...], "genes", "results": path, "prepared": return value of the `prepare` job,
"limit": {objective: number} or null}. The application evaluates the genomes. It either returns a
list of results in the same order, or appends a line to `results` after each genome: {"index": i,
key: number, ...}, or {"index": i, "error": text} if it failed. Lines survive a kill. A job skips
genomes that already have a line. A genome that is worse than the limit cannot survive, so the
application may stop its evaluation early and report any number that is worse than the limit.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ._files import write
from ._objectives import Evaluation, Objectives
from ._space import Genome, Space

FORMAT = 1


@dataclass(frozen=True)
class Chunk:
    """The genomes of one job, and the job's number."""

    genomes: list[Genome]
    index: int  # within the generation
    job: int  # within the search
    worker: int  # 0 to n_workers - 1


class ChunkFiles:
    """Writes and reads the chunks of one generation."""

    def __init__(self, folder: Path, generation: int, space: Space, objectives: Objectives) -> None:
        self.folder = folder / "chunks" / f"{generation:04d}"
        self.generation, self.space, self.objectives = generation, space, objectives

    def path(self, chunk: Chunk) -> Path:
        """The file of a chunk. Its name has a hash: a resumed search may split differently."""
        digest = hashlib.sha256(json.dumps(chunk.genomes).encode()).hexdigest()[:8]
        return self.folder / f"{chunk.index:03d}-{digest}.json"

    def write(
        self, chunk: Chunk, evaluations: Mapping[Genome, Evaluation], extra: Mapping[str, Any]
    ) -> None:
        """Write the file of a chunk, and the results of genomes that are already evaluated."""
        path = self.path(chunk)
        results = path.with_suffix(".jsonl")
        known = [
            json.dumps(evaluations[g].values | {"index": i}) + "\n"
            for i, g in enumerate(chunk.genomes)
            if g in evaluations and not evaluations[g].failed
        ]
        body = {
            "format": FORMAT,
            "generation": self.generation,
            "chunk": chunk.index,
            "job": chunk.job,
            "worker": chunk.worker,
            "names": [v.name for v in self.space.variables],
            "genomes": [list(self.space.values(g).values()) for g in chunk.genomes],
            "genes": chunk.genomes,  # the sweeper's encoding, for `earlier`
            "results": str(results),
            **extra,
        }
        write(results, "".join(known))
        write(path, json.dumps(body))

    def earlier(self) -> Iterator[tuple[Path, int, list[Genome]]]:
        """Path, job number and genomes of every chunk on disk, however the generation was split."""
        for path in sorted(self.folder.glob("*.json")):
            body = json.loads(path.read_text(encoding="utf-8"))
            yield path, body["job"], [tuple(map(float, genes)) for genes in body["genes"]]

    def lines(self, path: Path, size: int) -> dict[int, Evaluation]:
        """The results so far of a chunk of `size` genomes, by index.

        If an index occurs twice, the first line counts. Incomplete lines are ignored. Raises
        ValueError for an index out of range or a missing number.
        """
        results = path.with_suffix(".jsonl")
        evaluations: dict[int, Evaluation] = {}
        text = results.read_text(encoding="utf-8") if results.exists() else ""
        for line in text[: text.rfind("\n") + 1].split("\n"):
            if not (values := _loaded(line)):
                continue
            index = values.pop("index", None)
            if not isinstance(index, int) or not 0 <= index < size:
                raise ValueError(
                    f"a line of {results} has the index {index!r}; expected 0 to {size - 1}."
                )
            evaluations.setdefault(index, self.objectives.read(values))
        return evaluations

    def count(self) -> int:
        """The number of results in all chunks."""
        return sum(path.read_bytes().count(b"\n") for path in self.folder.glob("*.jsonl"))


def _loaded(line: str) -> dict[str, Any] | None:
    try:
        values = json.loads(line)
    except json.JSONDecodeError:
        return None  # Two jobs wrote at the same time, or a killed job left half a line.
    return values if isinstance(values, dict) else None
