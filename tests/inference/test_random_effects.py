from __future__ import annotations

import numpy as np
import pytest

from analysis_helpers.inference.random_effects import normal_quantile, pool, tau_interval


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


def test_equal_variances_give_the_difference_of_the_observed_and_the_known_variance() -> None:
    values = np.array([0.0, 2.0, 4.0])  # variance 4
    assert pool(values, np.full(3, 1.5)).tau ** 2 == pytest.approx(2.5, rel=1e-9)


def test_one_value_has_no_spread_and_keeps_its_own_error() -> None:
    found = pool(np.array([0.3]), np.array([0.04]))
    assert (found.mean, found.se, found.tau) == pytest.approx((0.3, 0.2, 0.0))
    assert tau_interval(np.array([0.3]), np.array([0.04]), 0.9) == (0.0, np.inf)


def test_values_known_exactly_are_averaged_and_their_spread_is_all_between() -> None:
    found = pool(np.array([1.0, 3.0]), np.zeros(2))
    assert (found.mean, found.tau) == pytest.approx((2.0, np.sqrt(2.0)))
    equal = pool(np.array([1.0, 1.0]), np.zeros(2))
    assert (equal.mean, equal.se, equal.tau) == pytest.approx((1.0, 0.0, 0.0), abs=1e-100)


def test_few_values_give_few_degrees_of_freedom_and_many_give_the_normal_distribution() -> None:
    # Two values of equal variance: df = 1, so the 90 % interval is 6.31 standard errors either way.
    few = pool(np.array([0.0, 4.0]), np.full(2, 1e-9))
    low, high = few.interval(0.9)
    assert (high - low) / 2 / few.se == pytest.approx(6.3138, rel=1e-3)
    rng = np.random.default_rng(0)
    many = pool(rng.normal(size=500), np.full(500, 1e-9))
    low, high = many.interval(0.9)
    assert (high - low) / 2 / many.se == pytest.approx(normal_quantile(0.9), rel=0.01)


def test_known_sampling_noise_raises_the_degrees_of_freedom_of_a_prediction() -> None:
    found = pool(np.array([0.0, 1.0, 0.5, -0.4]), np.full(4, 0.3))
    narrow, wide = found.predictive_freedom(0.4), found.predictive_freedom(40.0)
    assert 2 <= narrow < wide


def test_the_interval_of_tau_holds_it_as_often_as_it_says() -> None:
    # 1,000 replicates: 0.9 +- 0.03 is 3.2 standard errors; fails with probability 0.0015.
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(1000):
        low, high = tau_interval(rng.normal(0, np.sqrt(1 + 0.8**2), 5), np.ones(5), 0.9)
        held += low <= 0.8 <= high
    assert held / 1000 == pytest.approx(0.9, abs=0.03)


def test_the_normal_quantile_is_the_one_of_tables() -> None:
    assert normal_quantile(0.95) == pytest.approx(1.959963984540054, rel=1e-12)


def test_where_values_scatter_by_themselves_an_interval_has_one_degree_less_than_values() -> None:
    # t with 3 degrees of freedom: 2.3534 at 90 %.
    found = pool(np.array([0.0, 3.0, -4.0, 9.0]), np.full(4, 1e-9))
    low, high = found.interval(0.9)
    assert (high - low) / 2 / found.se == pytest.approx(2.3534, rel=1e-3)


def test_degrees_of_freedom_never_fall_below_two_less_than_values() -> None:
    found = pool(np.array([0.0, 1.0, 0.5, -0.4, 2.0]), np.full(5, 0.6))
    assert found.predictive_freedom(1e-6) == 3
