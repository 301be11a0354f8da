"""Time the ways a factorized layer can compute, each against the dense `nn.Linear`.

    OMP_NUM_THREADS=1 python -m experiments.layer_forms    # about two minutes, one thread

Shapes: SmolLM2-135M at half of the parameters, and the embedded model at rank 1.
For every shape all forms run in turn, many times; a figure is the median over the repeats of the
form's seconds over the dense layer's seconds, so below 1 is faster than dense. The clock counts the
processor time of this thread alone. Writes `layer_forms.json`.

A layer of rank r in pivoted storage has P (r, d_in), T (d_out - r, r) and an index, `order`:

    plain      U (V x): two products, plain storage
    ordered    p = P x, then cat([p, T p]) put in order by `order`
    unfolded   cat([I, T]) put in order by `order` at every call, then times P x
    kept       the same weight, put in order once: r * d_out numbers beside the factors
    buffered   as `ordered`, 256 tokens at a time, into a buffer that is allocated once per call
    merged     one dense product, computed once: d_in * d_out numbers beside the factors
    layer      `sieve.FactorizedLinear` in pivoted storage, with all that it checks

The layer computes as `ordered` for few tokens or large ranks, and as `unfolded` otherwise. The
record also has `layer before`: the layer of an earlier commit, which chose among the five forms
by a model of their costs and kept copies that it renewed when a weight changed.
"""

import json
import logging
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from sieve.bank.genome import STORAGES
from sieve.bank.pivoting import Pivoted
from sieve.bank.switch import pivoted_layer
from sieve.evaluation.speed import describe_machine

SMOLLM2 = ((576, 576), (576, 192), (576, 1536), (1536, 576))  # (d_in, d_out)
EMBEDDED = ((256, 256), (256, 688), (688, 256))
TOKENS = (1, 8 * 128)
KEPT = 0.5  # fraction of the dense layer's parameters
REPEATS = 41
SECONDS = 0.004  # least duration of one timing
CHUNK = 256  # tokens per step of the `buffered` form

Form = Callable[[Tensor], Tensor]


def main() -> None:
    """Measure every shape and write the table."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for shapes, kept in ((SMOLLM2, KEPT), (EMBEDDED, None)):
            for d_in, d_out in shapes:
                for tokens in TOKENS:
                    rows.append(measure(d_in, d_out, kept, tokens, dtype))
                    logging.info(json.dumps(rows[-1]))
    record = {"machine": describe_machine(torch.device("cpu")), "threads": 1, "rows": rows}
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(record, indent=1) + "\n")


def rank_of(storage: str, d_in: int, d_out: int, kept: float | None) -> int:
    """The rank that costs a fraction of the dense parameters; 1 without a fraction."""
    return STORAGES[storage].largest_rank(d_out, d_in, kept * d_in * d_out) if kept else 1


@torch.no_grad()
def measure(
    d_in: int, d_out: int, kept: float | None, tokens: int, dtype: torch.dtype
) -> dict[str, object]:
    """Ratios of every form's seconds to the dense layer's, at one shape."""
    torch.manual_seed(0)
    plain, pivoted = (rank_of(name, d_in, d_out, kept) for name in ("plain", "pivoted"))
    x = torch.randn(tokens, d_in).to(dtype)
    dense = nn.Linear(d_in, d_out, bias=False, dtype=dtype)
    works = {"dense": dense, **forms_of(d_in, d_out, plain, pivoted, dtype)}
    calls = {name: calls_for(work, x) for name, work in works.items()}
    ratios: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(REPEATS):
        seconds = {name: timed(work, x, calls[name]) for name, work in works.items()}
        for name in works:
            ratios[name].append(seconds[name] / seconds["dense"])
    return {
        "d_in": d_in,
        "d_out": d_out,
        "tokens": tokens,
        "dtype": str(dtype).removeprefix("torch."),
        "rank_plain": plain,
        "rank_pivoted": pivoted,
        "ratio_to_dense": {
            name: round(statistics.median(values), 3) for name, values in ratios.items()
        },
    }


def forms_of(
    d_in: int, d_out: int, plain: int, pivoted: int, dtype: torch.dtype
) -> dict[str, Form]:
    """Every form as a function, on random numbers, as speed depends on shapes alone."""
    first = nn.Linear(d_in, plain, bias=False, dtype=dtype)
    second = nn.Linear(plain, d_out, bias=False, dtype=dtype)
    inner = nn.Linear(d_in, pivoted, bias=False, dtype=dtype)
    outer = nn.Linear(pivoted, d_out - pivoted, bias=False, dtype=dtype)
    order = torch.randperm(d_out).int()
    eye = torch.eye(pivoted, dtype=dtype)
    wide = torch.cat([eye, outer.weight]).index_select(0, order)
    product = (wide.double() @ inner.weight.double()).to(dtype)
    layer = pivoted_layer(Pivoted(inner.weight, outer.weight, order, None, None), dtype)

    def ordered(x: Tensor) -> Tensor:
        pivots = inner(x)
        return torch.cat([pivots, outer(pivots)], -1).index_select(1, order)

    def unfolded(x: Tensor) -> Tensor:
        eye = torch.eye(pivoted, dtype=dtype)
        return linear(inner(x), torch.cat([eye, outer.weight]).index_select(0, order))

    def buffered(x: Tensor) -> Tensor:
        y = x.new_empty(len(x), d_out)
        buffer = x.new_empty(min(CHUNK, len(x)), d_out)
        for rows, outputs in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
            pivots, mixtures = buffer[: len(rows)].tensor_split([pivoted], 1)
            torch.mm(rows, inner.weight.T, out=pivots)
            torch.mm(pivots, outer.weight.T, out=mixtures)
            torch.index_select(buffer[: len(rows)], 1, order, out=outputs)
        return y

    return {
        "plain": lambda x: second(first(x)),
        "ordered": ordered,
        "unfolded": unfolded,
        "kept": lambda x: linear(inner(x), wide),
        "buffered": buffered,
        "merged": lambda x: linear(x, product),
        "layer": layer,
    }


def calls_for(work: Form, x: Tensor) -> int:
    """How many calls fill `SECONDS`."""
    work(x)
    return max(1, round(SECONDS / max(timed(work, x, 3), 1e-7)))


def timed(work: Form, x: Tensor, calls: int) -> float:
    """Processor seconds of one call, averaged over several in a row."""
    start = time.thread_time()
    for _ in range(calls):
        work(x)
    return (time.thread_time() - start) / calls


if __name__ == "__main__":
    main()
