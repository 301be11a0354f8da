"""Genomes that begin with the same decoder blocks share what these blocks compute.

Whoever measures matrices one at a time scores many genomes that differ from one genome in a single
matrix. The hidden states of that genome between its blocks are kept, and another genome runs from
the first block that differs. Every batch is the same, so the scores are the same to the last bit.
"""

import logging
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sieve.bank.bank import Bank
from sieve.data.prefix import PrefixCache
from sieve.model.backbone import replaced_forwards
from sieve.model.matrices import block_of, block_paths

log = logging.getLogger(__name__)
BYTES = 2**30  # of hidden states that are kept; more rows keep them after fewer blocks

Ranks = Mapping[str, int | None]
Run = Callable[[], Tensor]  # one forward pass, which returns logits
Kept = dict[int, Any]  # outputs of blocks in one forward pass, by the number of the block


@dataclass
class Checks:
    """What is known of a model, whatever its genome.

    Some blocks read more of an earlier block than its hidden states, so passes that begin after a
    block are first computed both ways.
    """

    exact: bool = True  # until a pass differs
    after: set[int] = field(default_factory=set)  # blocks after which passes did not differ


class SharedBlocks:
    """The hidden states of one genome between the decoder blocks of a model that no ranks share.

    Args:
        model: computes the genome while its states are recorded.
        ranks: of the genome.
        tokens: that the passes of one genome run.
        checks: of the model; others may have begun them.
    """

    def __init__(
        self, model: PreTrainedModel, bank: Bank, ranks: Ranks, tokens: int, checks: Checks
    ) -> None:
        paths = block_paths(model)
        self.blocks, self.ranks = [model.get_submodule(path) for path in paths], ranks
        width = model.config.get_text_config().hidden_size
        every = math.ceil(len(paths) * tokens * width * model.dtype.itemsize / BYTES)
        self._kept_after = range(every - 1, len(paths), every) if every else range(0)
        self._first = _first_blocks(bank, paths)
        self._passes: list[Kept] = []
        self._checks = checks

    def recording(self) -> PrefixCache:
        """What the passes of the genome are run through to keep its hidden states."""
        return BlockCache(self._record)

    def sharing(self, ranks: Ranks) -> PrefixCache:
        """What the passes of another genome are run through to begin where it differs."""
        differing = (i for name, i in self._first.items() if ranks[name] != self.ranks[name])
        first = min(differing, default=math.inf)
        last = max((i for i in self._kept_after if i < first), default=-1)
        shares = self._checks.exact and last >= 0
        return BlockCache(partial(self._resume, last)) if shares else PrefixCache()

    def _record(self, number: int, run: Run) -> Tensor:
        kept: Kept = {}
        with ExitStack() as stack:
            for index in self._kept_after:
                hook = partial(_keep, kept, index)
                stack.enter_context(self.blocks[index].register_forward_hook(hook))
            logits = run()
        self._passes.append(kept)
        return logits

    def _resume(self, last: int, number: int, run: Run) -> Tensor:
        """Run a pass whose blocks up to `last` are known; the first after each block is checked."""
        checks, passes = self._checks, self._passes
        if not checks.exact or number >= len(passes) or last not in passes[number]:
            return run()
        resumed = partial(self._without, last, number, run)
        if last in checks.after:
            return resumed()
        checks.after.add(last)
        logits, whole = _result(resumed), run()
        if whole.isnan().any():  # NaN equals nothing, so such a genome proves nothing.
            checks.after.remove(last)
            return whole
        checks.exact = logits is not None and torch.equal(logits, whole)
        if not checks.exact:
            self._passes = []
            log.info("The blocks of this model share more than hidden states, so each runs anew.")
        return whole

    def _without(self, last: int, number: int, run: Run) -> Tensor:
        with _replaced(self.blocks[: last + 1], self._passes[number][last]):
            return run()


def _result(run: Run) -> Tensor | None:
    """What a pass returns; None if it fails."""
    try:
        return run()
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        log.debug("a pass failed without its first blocks: %s", error)
        return None


class BlockCache(PrefixCache):
    """A prefix cache whose passes over rows are counted and run by `through`."""

    def __init__(self, through: Callable[[int, Run], Tensor]) -> None:
        super().__init__()
        self.through, self.passes = through, 0

    def run(self, rows: Run) -> Tensor:
        """Run one pass over rows."""
        self.passes += 1
        return self.through(self.passes - 1, rows)


def _first_blocks(bank: Bank, paths: list[str]) -> dict[str, int]:
    """For each name of a bank, the number of the block from which on its rank matters."""
    numbers = {path: number for number, path in enumerate(paths)}

    def block(name: str, layer: int | None, embedding: bool) -> int:
        if layer is None:
            return -1 if embedding else len(paths)  # The output head comes after all blocks.
        return numbers.get(block_of(name), -1)

    first = {m.name: block(m.name, m.layer, m.kind == "embedding") for m in bank.matrices}
    return first | {g.name: first[g.members[0]] for g in bank.groups}  # all in one block


def _keep(kept: Kept, index: int, _block: nn.Module, _args: object, outputs: Any) -> None:
    kept[index] = outputs


def _replaced(blocks: list[nn.Module], outputs: Any) -> AbstractContextManager[None]:
    """Let the last of some blocks return known outputs, and the others what they read."""

    def unchanged(*args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        return (hidden, *outputs[1:]) if isinstance(outputs, tuple) else hidden

    forwards = dict.fromkeys(blocks, unchanged)
    return replaced_forwards(forwards | {blocks[-1]: lambda *_args, **_kwargs: outputs})
