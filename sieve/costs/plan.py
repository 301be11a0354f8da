"""A run in numbers: its settings, model, task and device, and what parts of it cost."""

from dataclasses import astuple, dataclass, field
from functools import cached_property

from sieve.bank.genome import Sizing
from sieve.calibration.schedule import needs_of
from sieve.config import Config, shards
from sieve.costs.lengths import Lengths
from sieve.costs.passes import Rows, activation_bytes, logit_bytes, pass_flops
from sieve.costs.probe import Device
from sieve.costs.searching import Sweeper
from sieve.costs.shape import Shape
from sieve.costs.solving import QR, Flops
from sieve.model.matrices import Matrix, siblings
from sieve.projections.moments import BY_GRADIENT, FLOAT32, Needs, weighting_for

KEPT = 0.5  # kept fraction of the pruned model, which only the search can tell
ITEMSIZE = {"float64": 8, "float32": FLOAT32, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Work:
    """What some part of a run takes."""

    flops: float = 0.0
    seconds: float = 0.0
    tokens: float = 0.0
    examples: float = 0.0  # scored
    written: float = 0.0  # bytes on disk

    def __add__(self, other: "Work") -> "Work":
        """One after the other."""
        return Work(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, times: float) -> "Work":
        """Several times."""
        return Work(*(value * times for value in astuple(self)))


@dataclass(frozen=True)
class Part:
    """Bytes that a stage holds."""

    name: str
    size: float
    sharded: bool = False  # devices divide it among them with trainer=fsdp
    gathered: float = 0.0  # bytes of a sharded part that each device holds while it computes
    host: bool = False  # in the memory of the processor


@dataclass(frozen=True)
class Stage:
    """What one stage costs."""

    name: str
    work: Work
    parts: tuple[Part, ...]
    evaluations: tuple[float, float] | None = None  # genomes scored, expected and at most
    most_seconds: float = 0.0  # if that is more than `work.seconds`
    remark: str = ""

    def peak(self, device: Device, ranks: int = 1) -> float:
        """Bytes of each of `ranks` devices that share the sharded parts."""
        parts = [part for part in self.parts if device.on_cpu or not part.host]
        return device.overhead + sum(
            part.size / ranks + part.gathered if part.sharded and ranks > 1 else part.size
            for part in parts
        )


@dataclass(frozen=True)
class Plan:
    """A run's settings, model, task and device in numbers."""

    config: Config
    shape: Shape
    lengths: Lengths
    device: Device
    compute: str = "float32"  # dtype that the model computes in
    stored: str = "float32"  # dtype of the checkpoint
    devices: int = 1  # that share the batches
    sweeper: Sweeper = field(default_factory=dict)
    others: tuple[Lengths, ...] = ()  # tasks of `also`, whose test rows are scored too

    @property
    def workers(self) -> int:
        """Processes of a genetic search, each on one device."""
        genetic = self.config.search.method == "genetic"
        return int(self.sweeper.get("n_workers") or 1) if genetic else 1

    @cached_property
    def needs(self) -> Needs:
        """Which moments the run collects."""
        return needs_of(self.config.projection)

    @property
    def by_gradient(self) -> bool:
        """Whether gradients weight the tokens."""
        return weighting_for(self.config.calibration.weighting, self.needs) in BY_GRADIENT

    @property
    def shards(self) -> int:
        """Number of devices that share the model's weights."""
        return self.devices if shards(self.config.trainer) else 1

    @cached_property
    def sizing(self) -> Sizing:
        """How levels become ranks."""
        projection = self.config.projection
        affine = projection.name.endswith("affine")
        return Sizing(projection.storage, projection.rank_multiple, fits_bias=affine)

    def ranks(self, level: float) -> list[tuple[Matrix, int]]:
        """Each matrix and its rank at a level."""
        return [(matrix, self.sizing.rank(matrix, level) or 0) for matrix in self.shape.matrices]

    @property
    def bank_dtype(self) -> str:
        """Name of the dtype of the bank's factors."""
        name = self.config.projection.dtype
        return self.stored if name == "auto" else name

    @property
    def itemsize(self) -> int:
        """Bytes of a number that the model computes with."""
        return ITEMSIZE[self.compute]

    @property
    def block_bytes(self) -> float:
        """Prunable weights of a block."""
        return sum(m.size for m in self.shape.blocks) / self.shape.layers * self.itemsize

    @property
    def embedding_bytes(self) -> float:
        """The embedding, or the output head."""
        return self.shape.hidden * self.shape.vocabulary * self.itemsize

    @property
    def weights(self) -> Part:
        """The dense model. While it computes, FSDP gathers two blocks or the embedding."""
        size = self.shape.parameters * self.itemsize
        return Part("weights", size, True, max(2 * self.block_bytes, self.embedding_bytes))

    @cached_property
    def bank(self) -> Part:
        """The factors of every matrix up to break-even, in the memory of the processor."""
        matrices = self.shape.matrices
        if self.config.projection.joint:
            matrices += tuple(siblings(self.shape.blocks))
        numbers = sum(self.sizing.top_rank(m) * (m.d_out + m.d_in) for m in matrices)
        return Part("bank", numbers * ITEMSIZE[self.bank_dtype], host=True)

    def factors(self, copies: float = 1, sharded: bool = False) -> Part:
        """Factors in the dtype of the model; none on a CPU that can use the bank's own."""
        size = copies * self.bank.size * self.itemsize / ITEMSIZE[self.bank_dtype]
        if self.device.on_cpu and self.compute == self.bank_dtype:
            size = 0.0
        return Part("factors", size, sharded, gathered=2 * size / self.shape.layers)

    @property
    def pruned(self) -> tuple[Part, ...]:
        """The dense model, the factors of one genome as they are stored, and the bank."""
        return self.weights, Part("factors", KEPT * self.shape.prunable * self.itemsize), self.bank

    def kept_parameters(self, kept: float) -> float:
        """The fraction of all parameters that stays."""
        return 1 - (1 - kept) * self.shape.prunable / self.shape.parameters

    def calibration_rows(self, tokens: int) -> Rows:
        """Calibration rows of so many tokens, or all rows if there are fewer."""
        lengths = self.lengths
        count = min(lengths.rows["calibration"], tokens / lengths.calibration)
        return Rows(count, lengths.calibration, lengths.answer)

    def run(
        self,
        rows: Rows,
        kept: float = 1.0,
        batches: float | None = None,
        backward: int = 0,
        again: bool = False,
    ) -> Work:
        """Passes over rows, whose batches the devices share; options as `pass_flops`."""
        spec, flops = self.device.spec, pass_flops(self.shape, rows, kept, backward, again)
        if batches is None:
            batches = max(1.0, rows.padding * rows.tokens / self.config.batch_tokens)
        read = self.weights.size * self.kept_parameters(kept) / ((spec.bandwidth_gb or 0) * 1e9)
        least = max(read, self.shape.layers * spec.layer_ms / 1e3)
        least *= batches * (3 if backward else 1)
        seconds = max(self.device.product_seconds(flops, self.compute), least)
        return Work(flops, seconds / self.devices, rows.tokens)

    def score(self, examples: float, kept: float = KEPT, lengths: Lengths | None = None) -> Work:
        """Examples scored; written answers are run through twice more."""
        lengths = lengths or self.lengths
        length = lengths.scored - lengths.shared
        rows = Rows(examples * lengths.passes, length, lengths.answer)
        work = self.run(rows, kept) + Work(examples=examples)
        if lengths.written:
            tokens = Rows(examples, lengths.written, lengths.written)
            whole = rows.tokens + tokens.tokens
            batches = max(1.0, whole / self.config.batch_tokens)
            work += self.run(rows, kept) * 2 + self.run(tokens, kept, batches * lengths.written)
        return work

    @property
    def scoring_parts(self) -> tuple[Part, ...]:
        """What a pass over scoring batches holds beside weights and factors."""
        tokens, lengths, shape = self.config.batch_tokens, self.lengths, self.shape
        activations = activation_bytes(shape, tokens, self.itemsize)
        if lengths.written:  # Keys and values of all blocks.
            activations += 2 * self.itemsize * tokens * shape.keys * shape.layers
        positions = tokens / (lengths.scored + lengths.written) * lengths.answer
        logits = logit_bytes(shape, positions, self.itemsize)
        return Part("activations", activations), Part("logits", logits)

    def products(self, flops: float) -> Work:
        """Products in float32, which the devices share."""
        return Work(flops, self.device.product_seconds(flops, "float32") / self.devices)

    def solves(self, flops: list[Flops]) -> Work:
        """Closed forms in float64."""
        products, decompositions = map(sum, zip(*flops, strict=True))
        spec = self.device.spec
        slower = spec.utilization / spec.solver_utilization
        seconds = self.device.product_seconds(products + decompositions * slower, "float64")
        return Work(products + decompositions, seconds)

    def pivots(self, times: float = 1) -> Work:
        """Pivot rows of a genome, chosen by the processor: pivoted QR of (r, d_out)."""
        if self.sizing.storage != "pivoted":
            return Work()
        flops = times * sum(r**2 * ((QR + 2) * m.d_out + 2 * m.d_in) for m, r in self.ranks(KEPT))
        return Work(flops, flops / (self.device.spec.host_gflops * 1e9))

    def write(self, size: float) -> Work:
        """Bytes written to disk, and kept there."""
        return Work(seconds=size / (self.device.spec.disk_gb * 1e9), written=size)
