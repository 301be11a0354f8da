"""Settings of training after pruning, mirroring `conf/recovery`."""

from dataclasses import dataclass

RECOVERIES = ("none", "lora", "full")
SIDES = ("in", "out", "both")  # of a matrix's two factors
LOSSES = ("task", "kl", "both")
COUNTS = (
    "rank", "alpha", "steps", "accumulate", "tokens", "batch_tokens", "check_every", "patience",
)  # fmt: skip


@dataclass
class RecoverySettings:
    """How a pruned model is trained; mirrors `conf/recovery`."""

    method: str = "none"  # none, lora, full
    rank: int = 8  # of the LoRA matrices
    alpha: int = 16  # their product is scaled by alpha / rank
    factors: str = "both"  # which of the two the LoRA matrices are added to: in, out, both
    loss: str = "both"  # task: right answers; kl: the dense model's answers; both: their sum
    steps: int = 400  # of the optimizer, at most
    learning_rate: float = 1e-3  # the largest: warm-up over a tenth, then cosine decay to 0
    accumulate: int = 1  # batches per step
    tokens: int = 200_000  # of the calibration prompts, padding not counted
    batch_tokens: int = 2_048  # of a batch, padding counted
    check_every: int = 50  # steps between two looks at rows it is not trained on
    patience: int = 4  # looks without improvement before it stops
    max_norm: float = 1.0  # of the gradient
