"""A run in numbers: its settings, model, task and device, and what parts of it cost."""

import math
from dataclasses import dataclass, field
from functools import cached_property

from sieve.bank.genome import Sizing
from sieve.calibration.schedule import groups_of, needs_of
from sieve.config import Config, DeviceConfig
from sieve.costs.batches import calibration_bytes, fitting_tokens
from sieve.costs.lengths import Lengths
from sieve.costs.probe import GIB
from sieve.costs.searching import Sweeper
from sieve.costs.shape import Rows, Shape
from sieve.model.groups import narrowed, siblings
from sieve.model.matrices import Matrix
from sieve.projections import get_projection
from sieve.projections.moments import BY_GRADIENT, FLOAT32, Needs, moment_bytes, weighting_for

# Kept fractions of the pruned model: guesses, since the search decides. Memory is forecast with
# more than most models keep, times with what a model keeps that is not tuned: mostly a tenth to a
# half (experiments/README.md).
KEPT, TYPICAL = 0.5, 0.35
ITEMSIZE = {"float64": 8, "float32": FLOAT32, "bfloat16": 2, "float16": 2}
HOST = " (host)"  # ends the name of a part in host memory, beside a GPU
Parts = dict[str, float]  # bytes that each device holds, by name


@dataclass(frozen=True)
class Stage:
    """What one stage costs."""

    name: str
    seconds: float
    parts_bytes: Parts
    written_bytes: float = 0.0  # on disk
    genomes: tuple[float, ...] = ()  # scored, expected and at most
    most_seconds: float = 0.0  # if that is more than `seconds`
    remark: str = ""

    @property
    def host(self) -> float:
        """Bytes of host memory, beside a GPU."""
        return sum(size for name, size in self.parts_bytes.items() if name.endswith(HOST))

    def peak(self, device: DeviceConfig) -> float:
        """Bytes of memory on each device."""
        return device.overhead_gib * GIB + sum(self.parts_bytes.values()) - self.host


@dataclass(frozen=True)
class Plan:
    """A run's settings, model, task and device in numbers."""

    config: Config
    shape: Shape
    lengths: Lengths
    device: DeviceConfig  # with every figure
    compute: str = "float32"  # dtype that the model computes in
    stored: str = "float32"  # dtype of the checkpoint
    devices: int = 1  # that share the batches
    shards: int = 1  # devices that share the model's weights, with trainer=fsdp
    sweeper: Sweeper = field(default_factory=dict)
    others: tuple[Lengths, ...] = ()  # tasks of `also`, whose test rows are scored too
    long: Lengths | None = None  # of the dense model's prompts; None: as `lengths`
    vocabulary: str = ""  # what vocabulary=task leaves of the model, in words

    @property
    def on_cpu(self) -> bool:
        """Whether device and host share one memory."""
        return self.device.accelerator == "cpu"

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

    @cached_property
    def sizing(self) -> Sizing:
        """How levels become ranks."""
        projection = self.config.projection
        affine = projection.name.endswith("affine")
        return Sizing(projection.storage, projection.rank_multiple, fits_bias=affine)

    @cached_property
    def kept(self) -> float:
        """The fraction that the pruned model is assumed to keep in memory."""
        return max(KEPT, self.least)

    @cached_property
    def typical(self) -> float:
        """The fraction that the pruned model is assumed to keep in times."""
        return max(TYPICAL, self.least)

    @property
    def least(self) -> float:
        """The smallest level below 1 of a search of one level for all matrices; 0 of others."""
        search, projection = self.config.search, self.config.projection
        levels = list(search.levels)
        if get_projection(projection.name).learned:
            levels.append(projection.learning.level)
        least = min(levels)
        return least if search.method == "uniform" and least < 1 else 0.0

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

    def on_host(self, name: str, size: float) -> Parts:
        """A part in host memory."""
        return {name + HOST * (not self.on_cpu): size}

    def sharded(self, size: float, gathered: float) -> float:
        """Bytes per device of weights that FSDP shares; it gathers some while it computes."""
        return size / self.shards + gathered if self.shards > 1 else size

    @property
    def streams(self) -> bool:
        """Whether every stage reads the model block by block."""
        return self.config.calibration.strategy == "stream" and self.config.only_runs

    def factor_parts(self, size: float) -> Parts:
        """Memory of factors of `size` bytes. A streamed model holds one block of them at a time.

        On the host they are parts of files, unless the model computes in another dtype.
        """
        if not self.streams:
            return {"factors": size}
        part = self.block_part(size)
        host = part if self.compute == self.bank_dtype else size
        return {"factors": host} if self.on_cpu else {"factors": part, f"factors{HOST}": host}

    def block_part(self, size: float) -> float:
        """The bytes of one block, an embedding and a head if all factors take `size` bytes."""
        inside = sum(m.size for m in self.shape.blocks) / self.shape.prunable
        return size * (inside / self.shape.layers + 1 - inside)

    @property
    def block_bytes(self) -> float:
        """Bytes of the prunable weights of a block."""
        return sum(m.size for m in self.shape.blocks) / self.shape.layers * self.itemsize

    @property
    def weights(self) -> Parts:
        """The dense model. While it computes, FSDP gathers two blocks or the embedding.

        A streamed model that only runs has its ends and one block.
        """
        if self.streams:
            blocks = sum(matrix.size for matrix in self.shape.blocks)
            ends = (self.shape.parameters - blocks) * self.itemsize
            return {"weights": ends + self.block_bytes}
        gathered = max(2 * self.block_bytes, self.shape.embedding * self.itemsize)
        return {"weights": self.sharded(self.shape.parameters * self.itemsize, gathered)}

    @cached_property
    def bank_bytes(self) -> float:
        """The factors of every matrix up to break-even."""
        matrices = self.shape.matrices
        if self.config.projection.joint:
            matrices += tuple(siblings(self.shape.blocks))
        numbers = sum(self.sizing.top_rank(m) * (m.d_out + m.d_in) for m in matrices)
        numbers += sum(group.size for group in self.neurons)
        precise = sum(group.d_in**2 for group in self.neurons)  # what neurons read
        return numbers * ITEMSIZE[self.bank_dtype] + precise * FLOAT32

    @property
    def neurons(self) -> list[Matrix]:
        """The neurons of each MLP, where MLPs may lose some."""
        return narrowed(list(self.shape.matrices)) if self.config.projection.narrow else []

    @property
    def dense(self) -> Parts:
        """The dense model, and the bank in host memory: of a streamed run, a block's part of it."""
        size = self.bank_bytes
        return self.weights | self.on_host("bank", self.block_part(size) if self.streams else size)

    @property
    def pruned(self) -> Parts:
        """`dense`, and the factors of one genome as they are stored."""
        return self.dense | self.factor_parts(self.kept * self.shape.prunable * self.itemsize)

    @property
    def shared(self) -> Parts:
        """`pruned` where the model runs, which ranks of a sharded model share out."""
        factors = self.pruned["factors"]
        held = self.sharded(factors, 2 * factors / self.shape.layers)
        return self.pruned | {"factors": held}

    @property
    def factor_bytes(self) -> float:
        """Bytes of factors in the model's dtype; 0 on a CPU that computes with the bank's own."""
        if self.on_cpu and self.compute == self.bank_dtype:
            return 0.0
        return self.bank_bytes * self.itemsize / ITEMSIZE[self.bank_dtype]

    def activations(
        self, tokens: float, rows: Rows, backward: bool = False, again: bool = False
    ) -> Parts:
        """The memory of a pass over a batch.

        Args:
            tokens: of the batch.
            rows: the batch is a part of them.
            backward: whether a backward pass follows.
            again: the backward pass computes every block again, so that only one is saved.
        """
        saved = backward * (1 if again else self.shape.layers)
        prefix, positions = rows.shared / rows.length, rows.logits / rows.length
        # Logits, their float32 copies, and gradients of both.
        each = self.itemsize + FLOAT32 * (4 if backward else 2)
        return {
            "activations": self.shape.activation_bytes(tokens, self.itemsize, saved, prefix),
            "logits": tokens * positions * self.shape.vocabulary * each,
        }

    @cached_property
    def batch_tokens(self) -> int:
        """Tokens of a pass: the run's setting, or as many as fit beside weights and moments."""
        if self.config.batch_tokens:
            return self.config.batch_tokens
        calibration, lengths = self.config.calibration, self.lengths
        streams, matrices = calibration.strategy == "stream", list(self.shape.matrices)
        blocks = 1 if streams or calibration.checkpointing else self.shape.layers
        groups = groups_of(matrices, 1 if streams else calibration.layers_at_once)
        free = (float(self.device.memory_gib or 0) - self.device.overhead_gib) * GIB
        free -= sum(self.weights.values())
        free -= max(sum(moment_bytes(g, self.needs, self.by_gradient)) for g in groups)

        def pass_bytes(tokens: int) -> float:
            share = min(1.0, lengths.answer / lengths.calibration)
            return calibration_bytes(
                self.shape, tokens, self.itemsize, share, self.on_cpu, saved_blocks=blocks
            )

        return fitting_tokens(pass_bytes, free, self.on_cpu)

    @property
    def scoring(self) -> Parts:
        """The memory of a pass over a scoring batch, beside weights and factors."""
        tokens, lengths = self.batch_tokens, self.lengths
        rows = Rows(1, lengths.scored + lengths.written, lengths.answer)
        parts = self.activations(tokens, rows)
        if lengths.written:
            keys = tokens * self.shape.keys * self.shape.layers
            parts["keys and values"] = 2 * self.itemsize * keys
        return parts

    def calibration_rows(self, tokens: float, shares: bool = True, most: int | None = None) -> Rows:
        """The calibration rows that hold `tokens` tokens, or all rows if there are fewer.

        Args:
            shares: whether the rows' common prefix runs once per batch, which is almost free.
            most: the most rows; None: no limit.
        """
        lengths = self.lengths
        count = min(lengths.rows["calibration"], tokens / lengths.calibration, most or math.inf)
        if shares:
            return Rows(count, lengths.calibration, lengths.answer, shared=lengths.prefix)
        return Rows(count, lengths.calibration + lengths.prefix, lengths.answer)

    def run(
        self,
        rows: Rows,
        kept: float = 1.0,
        batches: float | None = None,
        backward: int = 0,
        again: bool = False,
    ) -> float:
        """Seconds of passes over rows, whose batches the devices share; see `Shape.pass_flops`."""
        flops = self.shape.pass_flops(rows, kept, backward, again)
        if batches is None:
            batches = max(1.0, rows.padding * rows.tokens / self.batch_tokens)
        read = self.shape.kept_parameters(kept) * self.itemsize
        least = read / (float(self.device.bandwidth_gb or 0) * 1e9)
        least = max(least, self.shape.layers * self.device.layer_ms / 1e3)
        least *= batches * (3 if backward else 1)
        return max(self.products(flops, self.compute), least / self.devices)

    def score(
        self, examples: float, kept: float | None = None, lengths: Lengths | None = None
    ) -> float:
        """Seconds to score examples; rows with written answers run three times.

        kept: kept fraction of the model; None means `typical`.
        """
        lengths = lengths or self.lengths
        kept = self.typical if kept is None else kept
        own, count = lengths.scored - lengths.shared, examples * lengths.passes
        rows = Rows(count, own, lengths.answer, shared=lengths.shared)
        seconds = self.run(rows, kept)
        if lengths.written:
            tokens = Rows(examples, lengths.written, lengths.written)
            batches = max(1.0, (rows.tokens + tokens.tokens) / self.batch_tokens)
            seconds += 2 * seconds + self.run(tokens, kept, batches * lengths.written)
        return seconds

    def sums(self, flops: float) -> float:
        """Seconds of sums in float32; a CPU multiplies in bfloat16 if the model does."""
        fast = self.on_cpu and self.compute == "bfloat16"
        return self.products(flops, "bfloat16" if fast else "float32")

    def products(self, flops: float, dtype: str = "float32") -> float:
        """Seconds of large matrix products, which the devices share."""
        rate = self.device.tflops[dtype] * 1e12 * self.device.utilization
        return flops / rate / self.devices

    @property
    def spooled(self) -> float:
        """Bytes of the temporary files with a streamed model's pivoted factors."""
        pivots = self.streams and self.sizing.storage == "pivoted"
        return pivots * self.kept * self.shape.prunable * ITEMSIZE[self.bank_dtype]

    def converted(self, storage: str) -> float:
        """Numbers that another storage form adds to the factors; negative if it saves some."""
        own = self.sizing.storage
        squares = sum(rank**2 for _, rank in self.ranks(self.kept)) if storage != own else 0
        return squares if storage == "plain" else -squares

    def write(self, size: float) -> float:
        """Seconds of writing bytes to disk."""
        return size / (self.device.disk_gb * 1e9)
