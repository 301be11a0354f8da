"""Moments: what calibration keeps of the activations, one entry per distinct input.

For y = W x either E[x xᵀ] (side "input") or E[y yᵀ] (side "output", the bias left out) is enough
to solve for every rank; the smaller side is kept, and always the mean and the token count.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sieve.artifacts import written_beside
from sieve.matrices import Matrix

FORMAT = 1
Side = Literal["input", "output"]


@dataclass(frozen=True)
class Moment:
    """First and second moment of one stream of vectors z, averaged over `count` tokens.

    second: E[z zᵀ] (n, n); mean: E[z] (n,); z is x for side "input", W x for side "output".
    """

    side: Side
    second: Tensor
    mean: Tensor
    count: int

    @property
    def covariance(self) -> Tensor:
        """E[z zᵀ] − E[z] E[z]ᵀ (n, n), in float64."""
        mean = self.mean.double()
        return self.second.double() - torch.outer(mean, mean)

    def to(self, device: torch.device) -> "Moment":
        """The same moment on a device."""
        return replace(self, second=self.second.to(device), mean=self.mean.to(device))

    def output_mean(self, weight: Tensor) -> Tensor:
        """Mean of W x (d_out,), in float64."""
        mean = self.mean.double()
        return weight.double() @ mean if self.side == "input" else mean


@dataclass(frozen=True)
class Moments:
    """The moments of a model's matrices, by the name of the stream they belong to.

    A stream is named after the matrix that reads it (input side) or writes it (output side).
    """

    entries: dict[str, Moment]
    fingerprint: str = ""

    def of(self, matrix: Matrix) -> Moment:
        """The moment that serves a matrix: its own outputs, else the input it shares.

        Raises ValueError when there is none, or none of the matrix's size.
        """
        moment = self.entries.get(matrix.name)
        if moment is None or (moment.side == "input" and matrix.source != matrix.name):
            moment = self.entries.get(matrix.source)
        if moment is None:
            raise ValueError(
                f"the moments hold nothing for {matrix.name}: they were taken from another model; "
                "calibrate this model first."
            )
        size = matrix.d_in if moment.side == "input" else matrix.d_out
        if moment.second.shape != (size, size):
            raise ValueError(
                f"the moments of {matrix.name} are of {tuple(moment.second.shape)}, expected "
                f"({size}, {size}): they were taken from another model; calibrate this model first."
            )
        return moment

    @property
    def tokens(self) -> int:
        """Tokens seen (the same for every stream of a dense model)."""
        return max(moment.count for moment in self.entries.values())

    def save(self, path: Path) -> None:
        """Write one safetensors file, whole or not at all."""
        tensors = {}
        for name, moment in self.entries.items():
            tensors[f"{name}|second"] = moment.second.cpu().contiguous()
            tensors[f"{name}|mean"] = moment.mean.cpu().contiguous()
        index = {name: {"side": m.side, "count": m.count} for name, m in self.entries.items()}
        header = {"format": FORMAT, "fingerprint": self.fingerprint, "entries": index}
        with written_beside(path) as partial:
            save_file(tensors, partial, metadata={"sieve_moments": json.dumps(header)})

    @classmethod
    def load(cls, path: Path) -> "Moments":
        """Read what `save` wrote; ValueError when the file is something else."""
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {}).get("sieve_moments", "null"))
                if not header or header["format"] != FORMAT:
                    raise ValueError(f"{path} holds no moments; delete it and run again.")
                entries = {
                    name: Moment(
                        entry["side"],
                        file.get_tensor(f"{name}|second"),
                        file.get_tensor(f"{name}|mean"),
                        entry["count"],
                    )
                    for name, entry in header["entries"].items()
                }
                return cls(entries, header["fingerprint"])
        except (SafetensorError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}); delete it and run again.") from error


def plan_streams(matrices: list[Matrix]) -> dict[str, tuple[Side, int]]:
    """Which moments to keep: stream name -> (side, n), at least memory per distinct input.

    An input is kept when one of its readers is at least as tall as wide (d_in ≤ d_out), or when
    it costs no more than the outputs of all its readers; else each reader's own outputs are.
    """
    readers: dict[str, list[Matrix]] = {}
    for matrix in matrices:
        readers.setdefault(matrix.source, []).append(matrix)
    streams: dict[str, tuple[Side, int]] = {}
    for source, group in readers.items():
        d_in = group[0].d_in
        outputs = sum(matrix.d_out**2 for matrix in group)
        if d_in**2 <= outputs or any(d_in <= matrix.d_out for matrix in group):
            streams[source] = ("input", d_in)
        else:
            streams |= {matrix.name: ("output", matrix.d_out) for matrix in group}
    return streams
