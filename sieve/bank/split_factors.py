"""Factors split over ranks, as `sieve/distributed/sharding.py` splits the dense weights.

With n ranks, each stores every n-th direction of a matrix, so a lower rank is a shorter slice of
the same memory. One collective operation gathers the factors of a decoder block on every rank
before the block runs, and they are freed after it. Only passes without gradients work.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from sieve.bank.bank import Bank
from sieve.bank.device_factors import DeviceFactors
from sieve.factorized.modeling_layers import FactorizedLinear
from sieve.model.matrices import block_of


class SplitFactors:
    """The split factors of the matrices in a sharded model's blocks.

    All processes must set the same ranks of matrices, and run every block equally often.
    """

    def __init__(self, model: PreTrainedModel, bank: Bank) -> None:
        from torch.distributed.tensor import DTensor

        self._model = model
        weight = next(p for p in model.parameters() if isinstance(p, DTensor))
        # The process group of the dense weights: two groups could wait for each other.
        self._group = weight.device_mesh.get_group()
        self._world = distributed.get_world_size(self._group)
        position = distributed.get_rank(self._group)
        self._factors = DeviceFactors(bank, model.device, model.dtype, position, self._world)
        names = [matrix.name for matrix in bank.matrices if self.accepts(matrix.name)]
        self._blocks = list(dict.fromkeys(block_of(name) for name in names))
        self._layers: dict[str, FactorizedLinear] = {}
        self._ranks: dict[str, int] = {}
        self._hooks: list[RemovableHandle] = []

    @staticmethod
    def accepts(name: str) -> bool:
        """Whether a matrix is in a block; the head is not, and no hook of a block reaches it."""
        return block_of(name) != name

    def assign(self, name: str, layer: FactorizedLinear, rank: int) -> tuple[Tensor, Tensor]:
        """Let the hooks of its block set the factors of a matrix, at a rank > 0.

        Returns placeholders for U and V between passes, without memory.
        """
        self._layers[name], self._ranks[name] = layer, rank
        if not self._hooks:
            self._add_hooks()
        return self._placeholders(name)

    def release(self, name: str) -> None:
        """Stop setting the factors of a matrix."""
        self._ranks.pop(name, None)
        if not self._ranks:
            for hook in self._hooks:
                hook.remove()
            self._hooks.clear()

    def _add_hooks(self) -> None:
        for path in self._blocks:

            def gather(*_: object, path: str = path) -> None:
                for name, (u, v) in self._gathered(self._ranks_in(path)).items():
                    self._set(name, u, v)

            def free(*_: object, path: str = path) -> None:
                for name in self._ranks_in(path):
                    self._set(name, *self._placeholders(name))

            block = self._model.get_submodule(path)
            self._hooks.append(block.register_forward_pre_hook(gather))
            self._hooks.append(block.register_forward_hook(free, always_call=True))

    def _ranks_in(self, path: str) -> dict[str, int]:
        return {name: rank for name, rank in self._ranks.items() if block_of(name) == path}

    def _placeholders(self, name: str) -> tuple[Tensor, Tensor]:
        """V has no columns, so a layer that runs outside of its block fails."""
        rank = self._ranks[name]
        d_out = self._factors.get(name, rank).u.shape[0]
        one = torch.zeros(1, 1, device=self._model.device, dtype=self._model.dtype)
        return one.expand(d_out, rank), one.new_empty(rank, 0)

    def _set(self, name: str, u: Tensor, v: Tensor) -> None:
        layer = self._layers[name]
        layer.factor_in.weight = nn.Parameter(v, requires_grad=False)
        layer.factor_out.weight = nn.Parameter(u, requires_grad=False)

    @torch.no_grad()
    def _gathered(self, ranks: Mapping[str, int]) -> dict[str, tuple[Tensor, Tensor]]:
        """U (d_out, r) and V (r, d_in) of matrices, from all ranks, in order of direction."""
        if not ranks:
            return {}
        flat, shapes = [], []
        for name, rank in ranks.items():
            count, own = -(-rank // self._world), self._factors.count(rank)
            factors = self._factors.get(name, rank)
            for rows in (factors.u.T, factors.v):
                flat.append(functional.pad(rows[:own], (0, 0, 0, count - own)).flatten())
                shapes.append((count, rows.shape[1]))
        sent = torch.cat(flat)
        received = sent.new_empty(self._world, len(sent))
        distributed.all_gather(list(received), sent, group=self._group)
        columns = received.split([count * width for count, width in shapes], dim=1)
        gathered = [
            column.view(self._world, *shape).transpose(0, 1).reshape(-1, shape[1])
            for column, shape in zip(columns, shapes, strict=True)
        ]
        return {
            name: (ut[:rank].T, v[:rank])
            for (name, rank), ut, v in zip(
                ranks.items(), gathered[::2], gathered[1::2], strict=True
            )
        }
