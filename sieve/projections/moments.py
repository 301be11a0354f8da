"""Moments: the statistics that calibration collects, and that projections solve with.

For a matrix y = W x, one second moment is enough to solve for every rank: E[x xᵀ] (d_in, d_in), or
E[y yᵀ] (d_out, d_out) with y taken without the layer's bias. The smaller one is kept, with the mean
and the number of tokens. Of the loss's gradient g at y likewise: E[g gᵀ] or E[(Wᵀg)(Wᵀg)ᵀ].
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sieve.model.matrices import Matrix
from sieve.runtime.artifacts import written_beside

FORMAT = 2
FLOAT32 = 4  # bytes
# How much a token counts in the moments of activations; the last two need its gradient.
WEIGHTINGS = ("none", "answer", "gradient", "position")
BY_GRADIENT = WEIGHTINGS[2:]
Side = Literal["input", "output"]  # of a matrix: moments of x, or of y
Header = dict[str, Any]  # of a file of moments: what is not a tensor


@dataclass(frozen=True)
class Needs:
    """The statistics that a projection needs in addition to what `output` needs."""

    input: bool = False  # E[x xᵀ] even where E[y yᵀ] is smaller
    magnitude: bool = False  # E|x|
    gradient: bool = False  # second moments of the loss's gradient at the outputs
    neurons: bool = False  # E[x xᵀ] of matrices that read neurons

    @property
    def weighting(self) -> str:
        """The default weighting of tokens: by gradient where gradients are computed anyway."""
        return "gradient" if self.gradient else "none"


PLAIN = Needs()


def weighting_for(weighting: str, needs: Needs) -> str:
    """The weighting of tokens: `calibration.weighting`, or the projection's default for "auto"."""
    return needs.weighting if weighting == "auto" else weighting


@dataclass(frozen=True)
class Gradient:
    """Second moment of the loss's gradient g at y, summed over the tokens t of an example.

    E is the mean over examples. Times a squared error of y, it has the loss's unit: nats per
    example.
    """

    side: Side
    second: Tensor  # "output": Σ_t E[g gᵀ] (d_out, d_out); "input": the same of Wᵀg (d_in, d_in)
    power: float  # Σ_t E‖g‖², the trace of the "output" side
    examples: int  # that E averages over


@dataclass(frozen=True)
class Moment:
    """First and second moment of a matrix's vectors z: x for side "input", W x for "output"."""

    side: Side
    second: Tensor  # E[z zᵀ] (n, n)
    mean: Tensor  # E[z] (n,)
    count: int  # tokens
    magnitude: Tensor | None = None  # E|x| (d_in,), where the projection needs it
    gradient: Gradient | None = None  # of the loss at y, where the projection needs it

    @property
    def covariance(self) -> Tensor:
        """E[z zᵀ] − E[z] E[z]ᵀ (n, n), in float64."""
        mean = self.mean.double()
        return self.second.double() - torch.outer(mean, mean)

    def to(self, device: torch.device) -> "Moment":
        """The same moment on a device."""
        magnitude, gradient = self.magnitude, self.gradient
        return replace(
            self,
            second=self.second.to(device),
            mean=self.mean.to(device),
            magnitude=None if magnitude is None else magnitude.to(device),
            gradient=gradient and replace(gradient, second=gradient.second.to(device)),
        )

    def output_mean(self, weight: Tensor) -> Tensor:
        """Mean of W x (d_out,), in float64."""
        mean = self.mean.double()
        return weight.double() @ mean if self.side == "input" else mean

    def input_second(self) -> Tensor:
        """E[x xᵀ] (d_in, d_in) in float64; ValueError where E[y yᵀ] was kept instead."""
        if self.side != "input":
            raise ValueError(
                "the moments are of the outputs, expected the inputs; calibrate again with this "
                "projection."
            )
        return self.second.double()


@dataclass(frozen=True)
class Moments:
    """The moments of a model's matrices.

    Matrices that read one input share its moment, which is named after the first of them. A moment
    of outputs is named after its matrix.
    """

    entries: dict[str, Moment]
    fingerprint: str = ""
    gradients: dict[str, Gradient] = field(default_factory=dict)  # by matrix
    magnitudes: dict[str, Tensor] = field(default_factory=dict)  # E|x|, by input

    def of(self, matrix: Matrix) -> Moment:
        """The moment of a matrix itself, or of the input that it shares with other matrices.

        Raises ValueError if neither exists, or if the size does not match.
        """
        moment = self.entries.get(matrix.name) or self.entries.get(matrix.source)
        if moment is None:
            raise ValueError(
                f"the moments have no entry for {matrix.name}: they belong to another model; "
                "calibrate this model first."
            )
        size = matrix.d_in if moment.side == "input" else matrix.d_out
        if moment.second.shape != (size, size):
            raise ValueError(
                f"the moment of {matrix.name} has shape {tuple(moment.second.shape)}, expected "
                f"({size}, {size}): it belongs to another model; calibrate this model first."
            )
        return replace(
            moment,
            gradient=self.gradients.get(matrix.name),
            magnitude=self.magnitudes.get(matrix.source),
        )

    @property
    def tokens(self) -> int:
        """Tokens seen: the same for every matrix, except in experts."""
        return max(moment.count for moment in self.entries.values())

    def save(self, path: Path) -> None:
        """Write one safetensors file, completely or not at all."""
        tensors = {}
        for name, moment in self.entries.items():
            tensors[f"{name}|second"] = moment.second.cpu().contiguous()
            tensors[f"{name}|mean"] = moment.mean.cpu().contiguous()
        for name, gradient in self.gradients.items():
            tensors[f"{name}|gradient"] = gradient.second.cpu().contiguous()
        for name, magnitude in self.magnitudes.items():
            tensors[f"{name}|magnitude"] = magnitude.cpu().contiguous()
        header = {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "entries": {n: {"side": m.side, "count": m.count} for n, m in self.entries.items()},
            "gradients": {
                n: {"side": g.side, "power": g.power, "examples": g.examples}
                for n, g in self.gradients.items()
            },
            "magnitudes": list(self.magnitudes),
        }
        with written_beside(path) as partial:
            save_file(tensors, partial, metadata={"sieve_moments": json.dumps(header)})

    @classmethod
    def load(cls, path: Path, only: tuple[str, ...] | None = None) -> "Moments":
        """Read a file that `save` wrote; ValueError where it is damaged or another kind of file.

        only: names of the entries to read; None reads all.
        """
        with _opened(path) as (file, header):
            read = file.get_tensor

            def wanted(part: str) -> dict[str, Header]:
                return {n: e for n, e in header[part].items() if only is None or n in only}

            entries = {
                n: Moment(e["side"], read(f"{n}|second"), read(f"{n}|mean"), e["count"])
                for n, e in wanted("entries").items()
            }
            gradients = {
                n: Gradient(e["side"], read(f"{n}|gradient"), e["power"], e["examples"])
                for n, e in wanted("gradients").items()
            }
            names = [n for n in header["magnitudes"] if only is None or n in only]
            magnitudes = {name: read(f"{name}|magnitude") for name in names}
            return cls(entries, header["fingerprint"], gradients, magnitudes)


class MomentSource(Protocol):
    """Moments by matrix, in memory or in files."""

    @property
    def fingerprint(self) -> str:
        """The key of the moments, from which a bank's key is made."""
        ...

    def of(self, matrix: Matrix) -> Moment:
        """The moment of a matrix."""
        ...


class StoredMoments:
    """Moments in one or more files, read from disk one matrix at a time."""

    def __init__(self, paths: Sequence[Path], fingerprint: str = "") -> None:
        self.fingerprint = fingerprint
        self._path_of: dict[str, Path] = {}
        for path in paths:
            with _opened(path) as (_, header):
                self._path_of |= dict.fromkeys(header["entries"], path)

    def of(self, matrix: Matrix) -> Moment:
        """The moment of a matrix; errors as in `Moments.of` and `Moments.load`."""
        names = (matrix.name, matrix.source)
        path = next((self._path_of[name] for name in names if name in self._path_of), None)
        return (Moments({}) if path is None else Moments.load(path, names)).of(matrix)


@lru_cache(maxsize=4)  # A fit opens the file once for every matrix.
def _parsed(header: str) -> Header | None:
    parsed: Header | None = json.loads(header)
    return parsed


@contextmanager
def _opened(path: Path) -> Iterator[tuple[safe_open, Header]]:
    """A file of moments and its header; ValueError where it is damaged or another kind of file."""
    try:
        with safe_open(path, framework="pt") as file:
            header = _parsed((file.metadata() or {}).get("sieve_moments", "null"))
            if not header or header["format"] != FORMAT:
                raise ValueError(f"{path} is not a file of moments; delete it and run again.")
            yield file, header
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and run again.") from error


def plan_streams(
    matrices: list[Matrix], needs: Needs = PLAIN, shared: bool = True
) -> dict[str, tuple[Side, int]]:
    """The second moments (n, n) to keep, with the least memory: name -> (side, n).

    An input's moment is kept where it is smaller than the moments of its readers' outputs together.

    Args:
        matrices: to be projected.
        needs: with `input`, all moments are of inputs; with `neurons`, where inputs are neurons.
        shared: False where every matrix weights the tokens of a common input in its own way.
    """
    readers: dict[str, list[Matrix]] = {}
    for matrix in matrices:
        readers.setdefault(matrix.source if shared else matrix.name, []).append(matrix)
    streams: dict[str, tuple[Side, int]] = {}
    for source, group in readers.items():
        d_in = group[0].d_in
        outputs = sum(matrix.d_out**2 for matrix in group)
        neurons = needs.neurons and any(matrix.reads_neurons for matrix in group)
        if needs.input or neurons or d_in**2 < outputs:
            streams[source] = ("input", d_in)
        else:
            streams |= {matrix.name: ("output", matrix.d_out) for matrix in group}
    return streams


def gradient_side(matrix: Matrix) -> tuple[Side, int]:
    """The side of a matrix whose gradients have the smaller moment (n, n): (side, n)."""
    if matrix.d_out <= matrix.d_in:
        return "output", matrix.d_out
    return "input", matrix.d_in


def moment_bytes(matrices: list[Matrix], needs: Needs, by_gradient: bool) -> tuple[int, int]:
    """Bytes of the moments of activations and of gradients of some matrices.

    by_gradient: whether gradients weight the tokens, so that no two matrices share a moment.
    """
    streams = plan_streams(matrices, needs, shared=not by_gradient).values()
    activations = sum(n * n + n for _, n in streams)
    if needs.magnitude:
        activations += sum({m.source: m.d_in for m in matrices}.values())
    sides = [gradient_side(m)[1] for m in matrices] if needs.gradient else []
    return FLOAT32 * activations, FLOAT32 * sum(n * n for n in sides)
