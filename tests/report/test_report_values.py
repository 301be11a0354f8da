"""Numbers as a reader sees them."""

import pytest

from sieve.report import values


@pytest.mark.parametrize(
    ("fraction", "written"),
    [
        (0.35, "35.0 %"),
        (1, "100.0 %"),
        (0, "0.0 %"),
        (0.0004, "under 0.1 %"),
        (0.9996, "over 99.9 %"),
        (None, "–"),
    ],
)
def test_percent_has_one_decimal_and_never_rounds_to_none_or_all(
    fraction: float | None, written: str
) -> None:
    assert values.percent(fraction) == written


def test_points_use_a_true_minus_sign_and_no_negative_zero() -> None:
    assert values.points(-0.004) == "−0.4"
    assert values.points(-0.0001) == "0.0"


@pytest.mark.parametrize(
    ("n_bytes", "written"),
    [
        (512, "512 bytes"),
        (7_200, "7.2 kB"),
        (12_906_872, "12.9 MB"),
        (16_060_522_496, "16.1 GB"),
        (141_000_000_000_000, "141,000.0 GB"),
    ],
)
def test_sizes_are_decimal(n_bytes: int, written: str) -> None:
    assert values.size(n_bytes) == written


def test_memory_in_mib_is_written_in_decimal_bytes() -> None:
    assert values.memory(1000) == "1.0 GB"
    assert values.memory(100) == "104.9 MB"


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0.42, "0.4 s"), (59.9, "59.9 s"), (125, "2 min 5 s"), (7380, "2 h 3 min")],
)
def test_durations_have_two_units_at_most(seconds: float, written: str) -> None:
    assert values.duration(seconds) == written


def test_other_numbers() -> None:
    assert values.count(4350000) == "4,350,000"
    assert values.times(1.2) == "1.20 ×"
    assert values.rate(10800.4) == "10,800"
    assert values.rate(9.87) == "9.9"
    assert values.probability(0.0002) == "under 0.001"
    assert values.ratio(1.0, 0.0) is None


@pytest.mark.parametrize(
    ("bound", "written"),
    [(0.0231, "2.4 %"), (0.024, "2.4 %"), (0.029, "2.9 %"), (0.00004, "0.1 %"), (1.0, "100.0 %")],
)
def test_an_upper_bound_is_never_written_below_itself(bound: float, written: str) -> None:
    assert values.percent(values.rounded_up(bound)) == written


@pytest.mark.parametrize(
    ("ratio", "spread", "written"),
    [
        (1.2, 0.043, "1.20 × ± 4.3 %"),
        (1.2, 0.21, "too noisy to say"),
        (1.2, 0.0, "1.20 ×"),
        (1.2, None, "1.20 ×"),
        (None, None, "–"),
    ],
)
def test_a_speed_is_shown_with_its_spread_unless_that_is_over_a_fifth(
    ratio: float | None, spread: float | None, written: str
) -> None:
    assert values.speed_up(ratio, spread) == written
