"""The ledger: `generations.jsonl`, append-only, a line for the search and one per generation.

A line counts when it ends with a line break and was synced: what a killed process left of the last
one is cut off. Resuming is replaying.
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
    """One generation: its genomes, what they were worth, and what that took."""

    genomes: list[Genome]
    evaluations: list[Evaluation]
    evaluated: int  # genomes that were not known before
    jobs: int
    seconds: float

    def to_json(self, number: int) -> dict[str, Any]:
        """The line of the ledger."""
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
        """What `to_json` gave."""
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
    """What has happened so far, on disk and in memory."""

    path: Path
    header: dict[str, Any] = field(default_factory=dict)
    generations: list[Generation] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)  # solutions whose last job is done

    @classmethod
    def open(cls, folder: Path) -> "Ledger":
        """The ledger of a sweep directory, empty where there is none.

        Raises ValueError when the directory cannot be written or the file is none of ours.
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
                f"the sweep directory {folder} cannot be written ({error.strerror}); "
                "set hydra.sweep.dir to one that can."
            ) from error
        ledger._read(whole)
        return ledger

    @property
    def jobs(self) -> int:
        """Jobs launched so far: the number of the next."""
        prepared = int(self.header.get("prepare_jobs", 0))
        return prepared + sum(generation.jobs for generation in self.generations)

    def begin(self, header: dict[str, Any]) -> None:
        """Write the first line, or see that the search is still the same.

        Raises ValueError that names what differs.
        """
        header = json.loads(json.dumps({"format": FORMAT} | header))
        if not self.header:
            self.header = header
            self._append(header)
            return
        if changes := _changes(self.header["settings"], header["settings"]):
            raise ValueError(
                f"{self.path} was begun with other settings: {'; '.join(changes[:3])}. Set them "
                "back to go on with it, or set another hydra.sweep.dir to begin anew."
            )

    def append(self, generation: Generation) -> None:
        """Add a finished generation."""
        self.generations.append(generation)
        self._append(generation.to_json(len(self.generations)))

    def finish(self, solution: str) -> None:
        """Note that the last job of a solution is done."""
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
                f"{self.path} is no ledger of this sweeper; set another hydra.sweep.dir."
            ) from error


def _changes(old: Any, new: Any, key: str = "") -> list[str]:
    """What differs between two JSON values, as `key: old -> new`."""
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
