"""Factors split over ranks, as `sieve/distributed/sharding.py` splits the dense weights.

Of every pair a rank holds each world-size-th direction, so that a lower rank is a shorter slice of
what it has. Before a block runs, its pairs are put together on every rank, by one collective
operation; after it they are let go. For passes without gradients, such as a search makes.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional
from transformers import PreTrainedModel

from sieve.bank.bank import Bank
from sieve.bank.placed import Placed
from sieve.factorized.modeling_layers import FactorizedLinear
from sieve.model.matrices import block_of


class DealtFactors:
    """The pairs of the matrices within a sharded model's blocks.

    All ranks change to the same ranks of matrices, and run every block as often as the others.
    """

    def __init__(self, model: PreTrainedModel, bank: Bank) -> None:
        from torch.distributed.tensor import DTensor

        self._model = model
        held = next(p for p in model.parameters() if isinstance(p, DTensor))
        # The group of the dense weights: of two groups, one could wait for the other.
        self._group = held.device_mesh.get_group()
        self._world = distributed.get_world_size(self._group)
        own = distributed.get_rank(self._group)
        self._placed = Placed(bank, model.device, model.dtype, own, self._world)
        self._layers: dict[str, FactorizedLinear] = {}
        self._ranks: dict[str, int] = {}
        self._hooks: list[Any] = []

    @staticmethod
    def takes(name: str) -> bool:
        """Whether a matrix is in a block; the head is its own, and no other's hooks reach it."""
        return block_of(name) != name

    def give(self, name: str, layer: FactorizedLinear, rank: int) -> tuple[Tensor, Tensor]:
        """From now on a block puts factors of a rank > 0 into a matrix's layer before it runs.

        Returns what stands for U and V meanwhile, without numbers.
        """
        self._layers[name], self._ranks[name] = layer, rank
        if not self._hooks:
            self._listen()
        return self._bare(name)

    def _listen(self) -> None:
        for path in dict.fromkeys(block_of(n) for n in self._placed.names if self.takes(n)):
            block = self._model.get_submodule(path)
            before, after = self._before(path), self._after(path)
            self._hooks.append(block.register_forward_pre_hook(before))
            self._hooks.append(block.register_forward_hook(after, always_call=True))

    def take(self, name: str) -> None:
        """The layer of a matrix is another's affair again."""
        self._ranks.pop(name, None)
        if not self._ranks:
            for hook in self._hooks:
                hook.remove()
            self._hooks.clear()

    def _of(self, path: str) -> dict[str, int]:
        return {name: rank for name, rank in self._ranks.items() if block_of(name) == path}

    def _before(self, path: str) -> Any:
        def put_together(_module: nn.Module, _given: Any) -> None:
            for name, (u, v) in self._gathered(self._of(path)).items():
                self._put(name, u, v)

        return put_together

    def _after(self, path: str) -> Any:
        def let_go(_module: nn.Module, _given: Any, _made: Any) -> None:
            for name in self._of(path):
                self._put(name, *self._bare(name))

        return let_go

    def _bare(self, name: str) -> tuple[Tensor, Tensor]:
        """Without inputs, so that a layer which is run on its own fails."""
        rank = self._ranks[name]
        d_out = self._placed.of(name, rank).u.shape[0]
        one = torch.zeros(1, 1, device=self._model.device, dtype=self._model.dtype)
        return one.expand(d_out, rank), one.new_empty(rank, 0)

    def _put(self, name: str, u: Tensor, v: Tensor) -> None:
        layer = self._layers[name]
        layer.factor_in.weight = nn.Parameter(v, requires_grad=False)
        layer.factor_out.weight = nn.Parameter(u, requires_grad=False)

    @torch.no_grad()
    def _gathered(self, ranks: Mapping[str, int]) -> dict[str, tuple[Tensor, Tensor]]:
        """U (d_out, r) and V (r, d_in) of matrices, of the directions of all ranks in order."""
        if not ranks:
            return {}
        parts, sizes = [], []
        for name, rank in ranks.items():
            count, own = -(-rank // self._world), self._placed.share(rank)
            held = self._placed.of(name, rank)
            for part in (held.u.T, held.v):
                parts.append(functional.pad(part[:own], (0, 0, 0, count - own)).flatten())
                sizes.append((count, part.shape[1]))
        sent = torch.cat(parts)
        got = sent.new_empty(self._world, len(sent))
        distributed.all_gather(list(got), sent, group=self._group)
        columns = got.split([rows * width for rows, width in sizes], dim=1)
        made = [
            column.view(self._world, *size).transpose(0, 1).reshape(-1, size[1])
            for column, size in zip(columns, sizes, strict=True)
        ]
        return {
            name: (ut[:rank].T, v[:rank])
            for (name, rank), ut, v in zip(ranks.items(), made[::2], made[1::2], strict=True)
        }
