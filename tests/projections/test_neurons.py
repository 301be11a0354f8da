"""The order of an MLP's neurons, and what the ones that stay make up for."""

from dataclasses import replace

import pytest
import torch

from sieve.projections.moments import Gradient, Moment
from sieve.projections.neurons import RIDGE, by_neuron, kept_neurons, neurons

DRAW = torch.Generator().manual_seed(0)
H = torch.randn(400, 12, generator=DRAW).double() @ torch.randn(12, 12, generator=DRAW).double()
H += 0.5
W = torch.randn(5, 12, generator=DRAW).double()
INCOMING = torch.randn(7, 12, generator=DRAW).double()
MOMENT = Moment("input", H.T @ H / len(H), H.mean(0), len(H))
# With a ridge that is no rounding error the closed forms below would differ by it.
CLOSE = {"rtol": 100 * RIDGE, "atol": 100 * RIDGE}


def writer(factors, count):
    """The writer's weight (d_out, d_ff), zero at neurons that are gone."""
    return factors.u[len(INCOMING) :, :count] @ factors.v[:count]


@pytest.mark.parametrize("count", [1, 4, 11, 12])
def test_the_rest_of_the_neurons_does_what_least_squares_can(count):
    factors = neurons(INCOMING, W, MOMENT)
    stay = kept_neurons(factors.v[:count])
    assert len(stay.unique()) == count
    weight = writer(factors, count)
    gone = [i for i in range(12) if i not in stay.tolist()]
    assert (weight[:, gone] == 0).all()
    best = torch.linalg.lstsq(H[:, stay], H @ W.T).solution.T
    torch.testing.assert_close(weight[:, stay], best, **CLOSE)


@pytest.mark.parametrize("count", [0, 3, 8, 12])
def test_the_energies_left_out_are_the_squared_error(count):
    factors = neurons(INCOMING, W, MOMENT)
    lost = (H @ (W - writer(factors, count)).T).square().sum(1).mean()
    torch.testing.assert_close(factors.energy[count:].sum(), lost, **CLOSE)


def test_the_incoming_weights_follow_the_order():
    factors = neurons(INCOMING, W, MOMENT)
    order = kept_neurons(factors.v)
    assert sorted(order.tolist()) == list(range(12))
    assert torch.equal(factors.u[: len(INCOMING)], INCOMING[:, order])
    assert torch.equal(kept_neurons(factors.v[:5]), order[:5])


def test_a_neuron_that_repeats_another_one_costs_nothing():
    doubled = torch.cat([H, H[:, :1]], 1)
    moment = Moment("input", doubled.T @ doubled / len(H), doubled.mean(0), len(H))
    factors = neurons(torch.zeros(1, 13), torch.cat([W, W[:, :1]], 1), moment)
    assert int(kept_neurons(factors.v)[-1]) in (0, 12)
    assert factors.energy[-1] < 1e-3 * factors.energy[:-1].min()


def test_the_gradient_decides_which_outputs_count():
    second = torch.zeros(5, 5).double()
    second[2, 2] = 1.0
    gradient = Gradient("output", second, 1.0, 100)
    order = kept_neurons(neurons(INCOMING, W, replace(MOMENT, gradient=gradient), 1e-9).v)
    one = neurons(INCOMING, W[2:3], MOMENT)
    assert torch.equal(order, kept_neurons(one.v))


def test_the_gradient_of_either_side_gives_the_same_energies():
    second = torch.randn(5, 5, generator=DRAW).double()
    second = second @ second.T
    power = float(second.trace())
    sides = [
        Gradient("output", second, power, 100),
        Gradient("input", W.T @ second @ W, power, 100),
    ]
    a, b = (neurons(INCOMING, W, replace(MOMENT, gradient=side), 0.1) for side in sides)
    torch.testing.assert_close(a.energy, b.energy, rtol=1e-3, atol=1e-6)


def test_a_fitted_bias_is_that_of_least_squares():
    factors = neurons(INCOMING, W, MOMENT, centered=True)
    stay = kept_neurons(factors.v[:4])
    design = torch.cat([H[:, stay], torch.ones(len(H), 1)], 1)
    best = torch.linalg.lstsq(design, H @ W.T).solution
    torch.testing.assert_close(writer(factors, 4)[:, stay], best[:-1].T, **CLOSE)
    torch.testing.assert_close(factors.cut(4).bias(4), best[-1], **CLOSE)


def test_rows_of_a_fused_layer_belong_to_neurons_by_their_position():
    fused = torch.arange(8.0)[:, None]  # two parts of four neurons, one input
    assert by_neuron(fused, 4).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_order_is_by_loss_per_neuron_where_nothing_is_correlated():
    scale = torch.tensor([3.0, 1.0, 2.0]).double()
    moment = Moment("input", torch.eye(3).double(), torch.zeros(3).double(), 10)
    factors = neurons(torch.zeros(1, 3), torch.diag(scale), moment)
    assert kept_neurons(factors.v).tolist() == [0, 2, 1]
    torch.testing.assert_close(factors.energy, torch.tensor([9.0, 4.0, 1.0]).double(), **CLOSE)


def test_of_two_neurons_that_replace_each_other_only_one_goes_early():
    half = torch.randn(2000, 100, generator=DRAW).double()
    pairs = torch.cat([half, half + 0.01 * torch.randn(2000, 100, generator=DRAW)], 1)
    moment = Moment("input", pairs.T @ pairs / 2000, pairs.mean(0), 2000)
    # Both of a pair cost the same, so they are looked at together.
    weight = torch.randn(8, 100, generator=DRAW).double().repeat(1, 2)
    factors = neurons(torch.zeros(1, 200), weight, moment)
    assert len({int(i) % 100 for i in kept_neurons(factors.v[:100])}) == 100
    assert factors.energy[100:].sum() < 1e-3 * factors.energy.sum()
