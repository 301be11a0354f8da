"""Trained matrices factorized again compute the same, with their best directions first."""

from dataclasses import replace

import torch
from models import tiny_llama
from sieved import mixed, tokens

from sieve.bank.bank import fit
from sieve.bank.files import BankFactors
from sieve.calibration.calibration import calibrate
from sieve.recovery.further import factorize_again

MODEL = tiny_llama()
MOMENTS = calibrate(MODEL, [{"input_ids": tokens(4, 16, seed)} for seed in (1, 2)])
BANK = fit(MODEL, MOMENTS, "output", storage="pivoted")
GENOME = mixed(BANK, (0.6, 1.0, 0.3, 0.5))


def product(factors: BankFactors, rank: int) -> torch.Tensor:
    return factors.u[:, :rank].double() @ factors.v[:rank].double()


def test_directions_in_any_order_come_back_as_the_closed_form_has_them() -> None:
    ranks = BANK.ranks(GENOME)
    shuffled, generator = dict(BANK.factors), torch.Generator().manual_seed(0)
    for name, rank in ranks.items():
        if rank:
            own, order = BANK.factors[name], torch.randperm(rank, generator=generator)
            parts = own.u[:, order], own.v[order]
            shuffled[name] = BankFactors(*parts, own.energy, own.mean, own.offset)
    trained = replace(BANK, factors=shuffled).only(GENOME)  # without the dense matrices' factors
    again = factorize_again(MODEL, MOMENTS, BANK, (trained, GENOME))
    for name, rank in ranks.items():
        if rank is None:
            assert again.factors[name] is BANK.factors[name]
            continue
        for cut in {rank, rank // 2}:
            expected = product(BANK.factors[name], cut)
            torch.testing.assert_close(
                product(again.factors[name], cut), expected, atol=1e-5, rtol=1e-4
            )
