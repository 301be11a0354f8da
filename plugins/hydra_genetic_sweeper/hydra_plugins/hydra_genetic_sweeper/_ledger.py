"""The ledger `generations.jsonl`: one line of settings, then one line per generation.

The file is append-only. An incomplete last line, as a killed process leaves it, is removed. To
resume, the search replays the ledger.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ._files import append
from ._objectives import Evaluation
from ._space import Genome

FORMAT = 1
NAME = "generations.jsonl"


@dataclass(frozen=True)
class Generation:
    """The genomes of one generation, their evaluations, and the cost of evaluating them."""

    genomes: list[Genome]
    evaluations: list[Evaluation]
    evaluated: int  # genomes that had not been evaluated before
    jobs: int
    seconds: float

    def to_json(self, number: int) -> dict[str, Any]:
        """The generation as a line of the ledger."""
        return {
            "generation": number,
            "genomes": self.genomes,
            "values": [e.values if not e.failed else {"error": e.error} for e in self.evaluations],
            "evaluated": self.evaluated,
            "jobs": self.jobs,
            "seconds": round(self.seconds, 3),
        }

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> "Generation":
        """The generation that `to_json` wrote."""
        return cls(
            [tuple(map(float, genome)) for genome in line["genomes"]],
            [
                Evaluation({}, str(v["error"])) if "error" in v else Evaluation(dict(v))
                for v in line["values"]
            ],
            line["evaluated"],
            line["jobs"],
            line["seconds"],
        )


@dataclass
class Ledger:
    """The generations so far, on disk and in memory."""

    path: Path
    header: dict[str, Any] = field(default_factory=dict)
    generations: list[Generation] = field(default_factory=list)
    finished: list[str] = field(
        default_factory=list
    )  # file names of solutions whose last job is done

    @classmethod
    def open(cls, folder: Path) -> "Ledger":
        """Open the ledger of a sweep directory, or start an empty one.

        Raises ValueError if the directory cannot be written or the file is not a ledger.
        """
        ledger = cls(folder / NAME)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with ledger.path.open("a+b") as file:
                file.seek(0)
                content = file.read()
                whole = content[: content.rfind(b"\n") + 1]
                if len(whole) < len(content):
                    file.truncate(len(whole))
        except OSError as error:
            raise ValueError(
                f"the sweep directory {folder} cannot be written ({error.strerror}). "
                "Set hydra.sweep.dir to a writable directory."
            ) from error
        ledger._read(whole)
        return ledger

    @property
    def jobs(self) -> int:
        """How many jobs were launched so far; also the number of the next job."""
        prepared = int(self.header.get("prepare_jobs", 0))
        return prepared + sum(generation.jobs for generation in self.generations)

    def begin(self, header: dict[str, Any]) -> None:
        """Write the first line, or check that the first line has the same settings.

        Raises ValueError that names the settings that differ.
        """
        header = json.loads(json.dumps({"format": FORMAT} | header))
        if not self.header:
            self.header = header
            self._append(header)
            return
        if changes := _changes(self.header["settings"], header["settings"]):
            raise ValueError(
                f"{self.path} was started with other settings: {'; '.join(changes[:3])}. Restore "
                "them to resume, or set another hydra.sweep.dir to start a new search."
            )

    def append(self, generation: Generation) -> None:
        """Write a finished generation."""
        self.generations.append(generation)
        self._append(generation.to_json(len(self.generations)))

    def finish(self, solution: str) -> None:
        """Record that the last job of a solution is done."""
        self.finished.append(solution)
        self._append({"finished": solution})

    def _append(self, line: dict[str, Any]) -> None:
        append(self.path, json.dumps(line, separators=(",", ":")))

    def _read(self, content: bytes) -> None:
        try:
            lines = [json.loads(line) for line in content.splitlines()]
            if lines:
                self.header, *rest = lines
                if self.header.get("format") != FORMAT:
                    raise KeyError("format")
                self.generations = [Generation.from_json(x) for x in rest if "generation" in x]
                self.finished = [x["finished"] for x in rest if "finished" in x]
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{self.path} is not a ledger of this sweeper. Set another hydra.sweep.dir."
            ) from error


def _changes(old: Any, new: Any, key: str = "") -> list[str]:
    """The differences between two JSON values, each as `key was old, is new`."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(k for k in new if k not in old)]
        return [
            change
            for k in keys
            for change in _changes(old.get(k), new.get(k), f"{key}.{k}" if key else k)
        ]
    return [] if old == new else [f"{key} was {_short(old)}, is {_short(new)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
