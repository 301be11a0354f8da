"""Factors of a bank where a model computes: on its device and in its dtype, as far as asked for."""

import torch

from sieve.bank.bank import Bank, BankFactors

SPARE = 1.25  # what is brought, over what is asked for: the next genome may ask for some more


class Placed:
    """The factors of a bank on a device, of each matrix the first directions that were asked for.

    What stands there in that dtype already is a view of the bank's, and nothing is copied.
    own, world: of the directions only those that are `own` modulo `world`. spare: how many are
    brought for one that is asked for.
    """

    def __init__(
        self, bank: Bank, device: torch.device, dtype: torch.dtype, own: int = 0, world: int = 1,
        spare: float = SPARE,
    ) -> None:  # fmt: skip
        self._bank, self._device, self._dtype = bank, device, dtype
        self._own, self._world, self._spare = own, world, spare
        self._held: dict[str, BankFactors] = {}
        self._replaced: dict[str, BankFactors] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the matrices, without groups of them."""
        return tuple(matrix.name for matrix in self._bank.matrices)

    def share(self, rank: int) -> int:
        """How many of the first `rank` directions are among its own."""
        return len(range(self._own, rank, self._world))

    def of(self, name: str, rank: int) -> BankFactors:
        """Its own of at least `rank` directions; ValueError where the bank holds fewer."""
        held = self._held.get(name)
        if held is not None and self.share(rank) <= held.rank:
            return held
        whole = self._replaced.get(name, self._bank.factors[name])
        if not 0 <= rank <= whole.rank:
            raise ValueError(f"{name}: got rank {rank}, the bank holds 0 to {whole.rank}.")
        if self._world == 1 and whole.u.device == self._device and whole.u.dtype == self._dtype:
            found = whole
        else:
            cut = whole.cut(min(int(self._spare * rank), whole.rank))
            own = slice(self._own, None, self._world)
            offset = None if cut.offset is None else cut.offset[own]
            found = BankFactors(cut.u[:, own], cut.v[own], cut.energy, cut.mean, offset)
        self._held[name] = found.to(self._device, self._dtype)
        return self._held[name]

    def replace(self, name: str, factors: BankFactors) -> None:
        """Hold factors that are not the bank's for one matrix."""
        self._replaced[name] = factors
        self._held.pop(name, None)
