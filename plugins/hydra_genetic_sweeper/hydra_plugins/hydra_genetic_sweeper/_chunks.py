"""The files of chunks: genomes for a job, and a line for each that it has evaluated.

A chunk's file is JSON: {"format": 1, "generation", "chunk", "job", "worker", "names": [...],
"genomes": [[value, ...], ...], "genes", "results": path, "prepared": what the first job returned,
"limit": {objective: number} or null}. The application evaluates the genomes and either returns what
it found, in their order, as a list, or appends a line {"index": i, key: number, ...} to `results`
as each is done ({"index": i, "error": text} for one that failed). Lines survive a kill: those that
stand there when the job begins are of genomes that need not be evaluated again. What is sure to be
worse than the limit cannot live on: any number that is worse will do for it, and its evaluation can
end there.
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
    """Genomes of one job, and its number among all jobs and among those of its generation."""

    genomes: list[Genome]
    index: int
    job: int
    worker: int


class ChunkFiles:
    """The folder with the chunks of one generation."""

    def __init__(self, folder: Path, generation: int, space: Space, objectives: Objectives) -> None:
        self.folder = folder / "chunks" / f"{generation:04d}"
        self.generation, self.space, self.objectives = generation, space, objectives

    def path(self, chunk: Chunk) -> Path:
        """A chunk's file; another division of the generation has other names."""
        digest = hashlib.sha256(json.dumps(chunk.genomes).encode()).hexdigest()[:8]
        return self.folder / f"{chunk.index:03d}-{digest}.json"

    def write(
        self, chunk: Chunk, found: Mapping[Genome, Evaluation], extra: Mapping[str, Any]
    ) -> None:
        """Write the file of a chunk, with `extra` entries, and in its results what is known."""
        path = self.path(chunk)
        results = path.with_suffix(".jsonl")
        known = [
            json.dumps(found[g].values | {"index": i}) + "\n"
            for i, g in enumerate(chunk.genomes)
            if g in found and not found[g].failed
        ]
        body = {
            "format": FORMAT,
            "generation": self.generation,
            "chunk": chunk.index,
            "job": chunk.job,
            "worker": chunk.worker,
            "names": [v.name for v in self.space.variables],
            "genomes": [list(self.space.values(g).values()) for g in chunk.genomes],
            "genes": chunk.genomes,  # as the sweeper counts; the application needs them not
            "results": str(results),
            **extra,
        }
        write(results, "".join(known))
        write(path, json.dumps(body))

    def earlier(self) -> Iterator[tuple[Path, int, list[Genome]]]:
        """Chunks that are on disk, of this division of the generation and of others."""
        for path in sorted(self.folder.glob("*.json")):
            body = json.loads(path.read_text(encoding="utf-8"))
            yield path, body["job"], [tuple(map(float, genes)) for genes in body["genes"]]

    def lines(self, path: Path, size: int) -> dict[int, Evaluation]:
        """Results so far of a chunk of `size` genomes, by index; the first counts.

        A line that was cut short is none. Raises ValueError where one is not understood.
        """
        results = path.with_suffix(".jsonl")
        found: dict[int, Evaluation] = {}
        text = results.read_text(encoding="utf-8") if results.exists() else ""
        for line in text[: text.rfind("\n") + 1].split("\n"):
            if not (values := _loaded(line)):
                continue
            index = values.pop("index", None)
            if not isinstance(index, int) or not 0 <= index < size:
                raise ValueError(
                    f"a line of {results} has the index {index!r}, expected 0 to {size - 1}."
                )
            found.setdefault(index, self.objectives.read(values))
        return found

    def count(self) -> int:
        """Lines of all chunks."""
        return sum(path.read_bytes().count(b"\n") for path in self.folder.glob("*.jsonl"))


def _loaded(line: str) -> dict[str, Any] | None:
    try:
        values = json.loads(line)
    except json.JSONDecodeError:
        return None  # Two jobs wrote at a time, or one was killed and another went on.
    return values if isinstance(values, dict) else None
