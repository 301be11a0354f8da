"""Moments: what calibration keeps of activations and of the loss's gradients.

For y = W x either E[x xᵀ] (side "input") or E[y yᵀ] (side "output", the bias left out) is enough
to solve for every rank; the smaller side is kept, and always the mean and the token count. The
same holds for the gradient g of the loss at y: E[g gᵀ] or E[Wᵀg gᵀW], the smaller side.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
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
# How a token counts in moments of activations; the last two ask for its gradient.
WEIGHTINGS = ("none", "answer", "gradient", "position")
BY_GRADIENT = WEIGHTINGS[2:]
Side = Literal["input", "output"]


@dataclass(frozen=True)
class Needs:
    """Which statistics a projection asks of calibration beside the least that `output` needs."""

    input: bool = False  # E[x xᵀ] even where the outputs are fewer
    magnitude: bool = False  # E|x|
    gradient: bool = False  # second moments of the loss's gradient at the outputs

    @property
    def weighting(self) -> str:
        """How tokens count by default: by their gradients where those are taken anyway."""
        return "gradient" if self.gradient else "none"


PLAIN = Needs()


def weighting_for(weighting: str, needs: Needs) -> str:
    """How tokens count: as `calibration.weighting` says, or as the projection needs for "auto"."""
    return needs.weighting if weighting == "auto" else weighting


@dataclass(frozen=True)
class Gradient:
    """Second moment of the gradient g of an example's loss at y, summed over its tokens.

    second: Σ_t E[g gᵀ] (d_out, d_out) for side "output"; that of Wᵀ g (d_in, d_in) for "input".
    power: Σ_t E‖g‖², which side "input" does not tell; examples: how many E averages over. Its
    product with a squared error of y has the unit of the loss: nats per example.
    """

    side: Side
    second: Tensor
    power: float
    examples: int


@dataclass(frozen=True)
class Moment:
    """First and second moment of one stream of vectors z, averaged over `count` tokens.

    second: E[z zᵀ] (n, n); mean: E[z] (n,); z is x for side "input", W x for side "output".
    magnitude: E|x| (d_in,) and gradient: of the loss at y, where a projection asked for them.
    """

    side: Side
    second: Tensor
    mean: Tensor
    count: int
    magnitude: Tensor | None = None
    gradient: Gradient | None = None

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

    def output_second(self, weight: Tensor, centred: bool = False) -> Tensor:
        """E[y yᵀ] of y = W x (d_out, d_out), or its covariance, in float64."""
        second = self.covariance if centred else self.second.double()
        weight = weight.double()
        return weight @ second @ weight.T if self.side == "input" else second

    def input_second(self) -> Tensor:
        """E[x xᵀ] (d_in, d_in) in float64; ValueError where only the outputs' was kept."""
        if self.side != "input":
            raise ValueError("the projection needs moments of the inputs; calibrate for it again.")
        return self.second.double()


@dataclass(frozen=True)
class Moments:
    """The moments of a model's matrices, by the name of the stream they belong to.

    A stream is named after the matrix that reads it (input side) or writes it (output side).
    gradients: by matrix; magnitudes: of inputs, by stream.
    """

    entries: dict[str, Moment]
    fingerprint: str = ""
    gradients: dict[str, Gradient] = field(default_factory=dict)
    magnitudes: dict[str, Tensor] = field(default_factory=dict)

    def of(self, matrix: Matrix) -> Moment:
        """The moment that serves a matrix: its own, else the input it shares.

        Raises ValueError when there is none, or none of the matrix's size.
        """
        moment = self.entries.get(matrix.name) or self.entries.get(matrix.source)
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
        return replace(
            moment,
            gradient=self.gradients.get(matrix.name),
            magnitude=self.magnitudes.get(matrix.source),
        )

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
        """Read what `save` wrote; ValueError when the file is something else.

        only: names of the streams and matrices to read, in place of all.
        """
        try:
            with safe_open(path, framework="pt") as file:
                return cls._read(file, _header(file, path), only)
        except (SafetensorError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}); delete it and run again.") from error

    @classmethod
    def _read(
        cls, file: Any, header: dict[str, Any], only: tuple[str, ...] | None = None
    ) -> "Moments":
        read = file.get_tensor
        if only is not None:
            header = header | {
                part: {name: header[part][name] for name in only if name in header[part]}
                for part in ("entries", "gradients")
            }
            header["magnitudes"] = [name for name in only if name in header["magnitudes"]]
        entries = {
            name: Moment(
                entry["side"], read(f"{name}|second"), read(f"{name}|mean"), entry["count"]
            )
            for name, entry in header["entries"].items()
        }
        gradients = {
            name: Gradient(
                entry["side"], read(f"{name}|gradient"), entry["power"], entry["examples"]
            )
            for name, entry in header["gradients"].items()
        }
        magnitudes = {name: read(f"{name}|magnitude") for name in header["magnitudes"]}
        return cls(entries, header["fingerprint"], gradients, magnitudes)


class MomentSource(Protocol):
    """Where a matrix's moments come from: memory, or files."""

    @property
    def fingerprint(self) -> str:
        """The key that banks are made under."""
        ...

    def of(self, matrix: Matrix) -> Moment:
        """The moment that serves a matrix."""
        ...


class StoredMoments:
    """Moments in one or more files, read from the disk for one matrix at a time."""

    def __init__(self, paths: Sequence[Path], fingerprint: str = "") -> None:
        self.fingerprint = fingerprint
        self._path_of: dict[str, Path] = {}
        for path in paths:
            try:
                with safe_open(path, framework="pt") as file:
                    self._path_of |= dict.fromkeys(_header(file, path)["entries"], path)
            except (SafetensorError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path} is damaged ({error}); delete it and run again."
                ) from error

    def of(self, matrix: Matrix) -> Moment:
        """The moment that serves a matrix; errors as `Moments.of` and `Moments.load`."""
        names = (matrix.name, matrix.source)
        path = next((self._path_of[name] for name in names if name in self._path_of), None)
        return (Moments({}) if path is None else Moments.load(path, names)).of(matrix)


def _header(file: Any, path: Path) -> dict[str, Any]:
    header: dict[str, Any] | None = json.loads((file.metadata() or {}).get("sieve_moments", "null"))
    if not header or header["format"] != FORMAT:
        raise ValueError(f"{path} holds no moments; delete it and run again.")
    return header


def plan_streams(
    matrices: list[Matrix], needs: Needs = PLAIN, shared: bool = True
) -> dict[str, tuple[Side, int]]:
    """Which second moments to keep: stream name -> (side, n), at least memory.

    An input is kept when it costs less than the outputs of all its readers; else each reader's own
    outputs are, which of two equals say more directly what is solved for.
    shared: false where every reader weights the tokens of a common input its own way.
    """
    readers: dict[str, list[Matrix]] = {}
    for matrix in matrices:
        readers.setdefault(matrix.source if shared else matrix.name, []).append(matrix)
    streams: dict[str, tuple[Side, int]] = {}
    for source, group in readers.items():
        d_in = group[0].d_in
        outputs = sum(matrix.d_out**2 for matrix in group)
        if needs.input or d_in**2 < outputs:
            streams[source] = ("input", d_in)
        else:
            streams |= {matrix.name: ("output", matrix.d_out) for matrix in group}
    return streams


def gradient_side(matrix: Matrix) -> tuple[Side, int]:
    """The smaller side for gradients: (side, n)."""
    if matrix.d_out <= matrix.d_in:
        return "output", matrix.d_out
    return "input", matrix.d_in


@dataclass(frozen=True)
class MomentBytes:
    """Bytes of what calibration keeps: of activations, and of gradients."""

    activations: int
    gradients: int

    @property
    def total(self) -> int:
        """Both."""
        return self.activations + self.gradients


def moment_bytes(matrices: list[Matrix], needs: Needs, by_gradient: bool) -> MomentBytes:
    """What `Moments` of some matrices weigh, in memory and on disk.

    by_gradient: whether tokens are weighted by gradients, so that no two matrices share a stream.
    """
    streams = plan_streams(matrices, needs, shared=not by_gradient).values()
    activations = sum(n * n + n for _, n in streams)
    if needs.magnitude:
        activations += sum({m.source: m.d_in for m in matrices}.values())
    sides = [gradient_side(m)[1] for m in matrices] if needs.gradient else []
    return MomentBytes(FLOAT32 * activations, FLOAT32 * sum(n * n for n in sides))
