"""Copies of a bank's factors on the device and in the dtype that a model computes in."""

from collections.abc import Mapping

import torch

from sieve.bank.bank import Bank, BankFactors

SPARE = 1.25  # directions copied for each direction needed: the next genome may need some more


class DeviceFactors:
    """The leading factors of each matrix on a device, copied when a genome first needs them.

    Factors that are on the device in that dtype already are views of the bank's, not copies.

    Args:
        position, world: copy only every `world`-th direction, starting at `position`.
        spare: how many directions to copy for each direction that is needed.
        others: the devices of matrices whose factors are on another one.
    """

    def __init__(
        self,
        bank: Bank,
        device: torch.device,
        dtype: torch.dtype,
        position: int = 0,
        world: int = 1,
        spare: float = SPARE,
        others: Mapping[str, torch.device] | None = None,
    ) -> None:
        self._bank, self._device, self._dtype = bank, device, dtype
        self._others = others or {}
        self._position, self._world, self._spare = position, world, spare
        self._copies: dict[str, BankFactors] = {}
        self._replaced: dict[str, BankFactors] = {}

    def count(self, rank: int) -> int:
        """How many of the first `rank` directions are copied."""
        return len(range(self._position, rank, self._world))

    def get(self, name: str, rank: int) -> BankFactors:
        """Factors of at least `rank` directions; ValueError where the bank has fewer."""
        copied = self._copies.get(name)
        if copied is not None and self.count(rank) <= copied.rank:
            return copied
        factors = self._replaced.get(name, self._bank.factors[name])
        if not 0 <= rank <= factors.rank:
            raise ValueError(f"{name}: got rank {rank}, expected 0 to {factors.rank}.")
        device = self._others.get(name, self._device)
        is_here = factors.u.device == device and factors.u.dtype == self._dtype
        if self._world > 1 or not is_here:
            factors = factors.cut(min(int(self._spare * rank), factors.rank))
            factors = factors.every(self._position, self._world)
        self._copies[name] = factors.to(device, self._dtype)
        return self._copies[name]

    def replace(self, name: str, factors: BankFactors) -> None:
        """Use other factors than the bank's for one matrix."""
        self._replaced[name] = factors
        self._copies.pop(name, None)
