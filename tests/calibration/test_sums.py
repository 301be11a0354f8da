"""A second moment wide enough for several strips is whole and symmetric."""

import torch

from sieve.calibration.sums import NARROWEST, STRIPS, SumMetric


def test_the_lower_part_is_filled_from_the_upper_one() -> None:
    size = STRIPS * NARROWEST + 7
    z = torch.randn(50, size, generator=torch.Generator().manual_seed(0))
    weights = torch.rand(50, generator=torch.Generator().manual_seed(1))
    metric = SumMetric(size)
    metric.update(z, weights)
    second = metric.sums()["second"]
    torch.testing.assert_close(second, z.T @ (z * weights[:, None]), rtol=1e-4, atol=1e-4)
