from __future__ import annotations

import numpy as np
import pytest

from analysis_helpers.inference.random_effects import Pool, normal_quantile, pool, tau_interval

EXACT = 1e-9  # sampling variance of values that scatter by themselves


def half_width(found: Pool) -> float:
    """Return half of the 90 % interval of the mean, in standard errors."""
    low, high = found.interval(0.9)
    return (high - low) / 2 / found.se


def test_without_spread_of_their_own_values_are_weighted_by_inverse_variance() -> None:
    # Weights 1 and 1/4: mean (1 + 2/4) / (5/4) = 1.2, variance 4/5. Q = (0.2^2 + 0.8^2 / 4) = 0.2 < 1, so tau is 0.
    found = pool(np.array([1.0, 2.0]), np.array([1.0, 4.0]))
    assert found.tau == 0.0
    assert found.mean == pytest.approx(1.2)
    assert found.se**2 == pytest.approx(0.8)


def test_tau_is_where_the_weighted_squares_are_as_many_as_the_degrees_of_freedom() -> None:
    values, variances = np.array([0.1, 1.4, -0.7, 0.9]), np.array([0.1, 0.2, 0.1, 0.3])
    found = pool(values, variances)
    weights = 1 / (variances + found.tau**2)
    assert found.tau > 0
    assert weights @ (values - found.mean) ** 2 == pytest.approx(3, rel=1e-9)
    # With equal variances it is the difference of the observed one, 4, and the known one.
    assert pool(np.array([0.0, 2.0, 4.0]), np.full(3, 1.5)).tau ** 2 == pytest.approx(2.5, rel=1e-9)


def test_one_value_has_no_spread_and_keeps_its_own_error() -> None:
    found = pool(np.array([0.3]), np.array([0.04]))
    assert (found.mean, found.se, found.tau) == pytest.approx((0.3, 0.2, 0.0))
    assert tau_interval(np.array([0.3]), np.array([0.04]), 0.9) == (0.0, np.inf)


def test_values_known_exactly_are_averaged_and_their_spread_is_all_between() -> None:
    found = pool(np.array([1.0, 3.0]), np.zeros(2))
    assert (found.mean, found.tau) == pytest.approx((2.0, np.sqrt(2.0)))
    equal = pool(np.array([1.0, 1.0]), np.zeros(2))
    assert (equal.mean, equal.se, equal.tau) == pytest.approx((1.0, 0.0, 0.0), abs=1e-100)


def test_where_values_scatter_by_themselves_an_interval_is_that_of_t() -> None:
    # One degree of freedom less than values: t at 90 % is 6.31 for 1 and 2.3534 for 3; for many it is the normal's.
    assert half_width(pool(np.array([0.0, 4.0]), np.full(2, EXACT))) == pytest.approx(6.3138, rel=1e-3)
    assert half_width(pool(np.array([0.0, 3.0, -4.0, 9.0]), np.full(4, EXACT))) == pytest.approx(2.3534, rel=1e-3)
    many = np.random.default_rng(0).normal(size=500)
    assert half_width(pool(many, np.full(500, EXACT))) == pytest.approx(normal_quantile(0.9), rel=0.01)
    assert normal_quantile(0.95) == pytest.approx(1.959963984540054, rel=1e-12)


def test_known_sampling_noise_raises_the_degrees_of_freedom_of_a_prediction_which_never_fall_below_two_less() -> None:
    found = pool(np.array([0.0, 1.0, 0.5, -0.4]), np.full(4, 0.3))
    assert 2 <= found.predictive_freedom(0.4) < found.predictive_freedom(40.0)
    assert found.predictive_freedom(1e-6) == 2


def test_the_interval_of_tau_holds_it_as_often_as_it_says() -> None:
    # 1,000 replicates: 0.9 +- 0.03 is 3.2 standard errors; fails with probability 0.0015.
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(1000):
        low, high = tau_interval(rng.normal(0, np.sqrt(1 + 0.8**2), 5), np.ones(5), 0.9)
        held += low <= 0.8 <= high
    assert held / 1000 == pytest.approx(0.9, abs=0.03)
