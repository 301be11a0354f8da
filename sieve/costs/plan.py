"""What is known of a run beforehand, and what a stage of it will cost."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from sieve.bank.genome import Sizing
from sieve.config import Config, shards
from sieve.costs.devices import Device
from sieve.costs.passes import Rows
from sieve.costs.shape import FLOAT32, BankBytes, Shape, bank_bytes
from sieve.projections import get_projection
from sieve.projections.moments import BY_GRADIENT, Needs, weighting_for

KEPT = 0.5  # of the prunable parameters, until a search has said it


@dataclass(frozen=True)
class Lengths:
    """A task in numbers: rows of each split, and what a row takes.

    calibration: tokens of a row of prompt and answer; passes: rows of tokens that an example is
    scored by, of `scored` tokens each; answer: tokens of an answer; written: tokens that are
    written at most, 0 where answers are chosen; source: where that was taken from, in words;
    shared: of the tokens of a scored row, those that all begin with and that are run once.
    """

    rows: Mapping[str, int]
    calibration: float
    scored: float
    passes: float
    answer: float
    written: int
    source: str
    shared: float = 0.0

    def scoring(self, examples: float) -> Rows:
        """The rows of tokens that so many examples are scored by."""
        return Rows(examples * self.passes, self.scored - self.shared, self.answer)


@dataclass(frozen=True)
class Part:
    """Bytes that a stage holds.

    sharded: devices divide it among them with trainer=fsdp; gathered: of that, what each holds
    beside its share while it computes; host: kept beside the device, which on a processor is one
    memory.
    """

    name: str
    size: float
    sharded: bool = False
    host: bool = False
    gathered: float = 0.0


@dataclass(frozen=True)
class Stage:
    """What one stage takes. rows: scored; evaluations: of genomes, expected and at most."""

    name: str
    flops: float = 0.0
    seconds: float = 0.0
    parts: tuple[Part, ...] = ()
    tokens: float = 0.0
    rows: float = 0.0
    evaluations: tuple[float, float] | None = None
    most_seconds: float | None = None
    written: float = 0.0  # bytes
    remark: str = ""

    def peak(self, device: Device, shards: int = 1) -> float:
        """Bytes of one device, or of each of so many that share out what can be."""
        parts = [part for part in self.parts if device.local or not part.host]
        return device.overhead + sum(
            part.size / shards + part.gathered if part.sharded and shards > 1 else part.size
            for part in parts
        )

    def host(self, device: Device) -> float:
        """Bytes of the memory beside the device."""
        return 0.0 if device.local else sum(part.size for part in self.parts if part.host)


@dataclass(frozen=True)
class Plan:
    """A run's settings, model, task and device in numbers.

    compute, stored: names of dtypes that are computed with and that weights are stored in; devices:
    how many share the batches; workers: processes of a genetic search, on a device each.
    """

    config: Config
    shape: Shape
    lengths: Lengths
    device: Device
    compute: str = "float32"
    stored: str = "float32"
    devices: int = 1
    workers: int = 1
    sweeper: Mapping[str, Any] = field(default_factory=dict)
    others: tuple[Lengths, ...] = ()

    @cached_property
    def needs(self) -> Needs:
        """Which moments the projection asks for."""
        needs = get_projection(self.config.projection.name).needs
        return Needs(needs.input or self.config.projection.joint, needs.magnitude, needs.gradient)

    @property
    def by_gradient(self) -> bool:
        """Whether tokens are weighted by gradients."""
        return weighting_for(self.config.calibration.weighting, self.needs) in BY_GRADIENT

    @property
    def backwards(self) -> bool:
        """Whether calibration goes backwards too."""
        return self.needs.gradient or self.by_gradient

    @cached_property
    def sizing(self) -> Sizing:
        """How levels become ranks."""
        projection = self.config.projection
        fits = projection.name.endswith("affine")
        return Sizing(projection.storage, projection.rank_multiple, fits_bias=fits)

    @cached_property
    def bank(self) -> BankBytes:
        """Bytes of the bank."""
        projection = self.config.projection
        return bank_bytes(
            self.shape, self.sizing, projection.name, self.sizing.fits_bias, projection.joint
        )

    @property
    def bank_dtype(self) -> str:
        """What factors are stored in."""
        name = self.config.projection.dtype
        return self.stored if name == "auto" else name

    @property
    def itemsize(self) -> int:
        """Bytes of a number that is computed with."""
        return ITEMSIZE[self.compute]

    @property
    def weights(self) -> Part:
        """The dense model."""
        shape = self.shape
        # Two blocks are put together at a time, or a table.
        whole = max(2 * shape.block_size, shape.hidden * shape.vocabulary) * self.itemsize
        return Part("weights", shape.parameters * self.itemsize, sharded=True, gathered=whole)

    @property
    def shards(self) -> int:
        """How many devices share out the model."""
        return self.devices if shards(self.config.trainer) else 1

    @property
    def times_speed(self) -> bool:
        """Whether the model's speed is measured: that of one device alone."""
        return self.config.speed.enabled and self.shards == 1

    @property
    def streams(self) -> bool:
        """Whether calibration and fit have one block in memory."""
        return self.config.calibration.strategy == "stream"

    @property
    def stored_weights(self) -> float:
        """Bytes of the model's files."""
        return self.shape.parameters * ITEMSIZE[self.stored]

    @property
    def banked(self) -> float:
        """Bytes of the bank, in memory and on disk."""
        return self.bank.total(ITEMSIZE[self.bank_dtype])

    @property
    def held_bank(self) -> Part:
        """The bank in the memory of the processor."""
        return Part("bank", self.banked, host=True)

    def factors(self, copies: int = 1, share: float = 1.0, dealt: bool = False) -> Part:
        """Factors as they are computed with; none where the bank's own will do.

        dealt: whether devices that share out the model share them out, too, but those of siblings.
        """
        same = self.device.local and self.compute == self.bank_dtype
        size = 0 if same else copies * share * self.bank.numbers * self.itemsize
        siblings = size * self.bank.shared / self.bank.numbers
        whole = siblings + 2 * (size - siblings) / self.shape.layers
        return Part("factors", size, sharded=dealt, gathered=whole)

    @property
    def chosen(self) -> Part:
        """Factors of one genome, as they are stored."""
        if self.sizing.storage == "pivoted":
            return Part("factors", KEPT * self.shape.prunable * self.itemsize)
        return self.factors(share=KEPT)

    def seconds(self, flops: float, rows: Rows, weights: float | None = None) -> float:
        """Seconds of passes over rows, which devices share."""
        batches = rows.batches(self.config.batch_tokens)
        size = self.weights.size if weights is None else weights
        return (
            self.device.passes(flops, self.compute, batches, self.shape.layers, size) / self.devices
        )


ITEMSIZE = {"float64": 8, "float32": FLOAT32, "bfloat16": 2, "float16": 2}
