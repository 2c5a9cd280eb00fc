import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from scipy.special import chdtri

from analysis_helpers._checks import FloatArray
from analysis_helpers.inference.random_effects import (
    ConfidenceDistribution,
    between_variances,
    confidence_distribution,
    normal_quantile,
    pool,
)


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


def _fractions(values: FloatArray) -> Any:
    return np.array([Fraction(value) for value in values])


def _weighted_squares(values: FloatArray, variances: FloatArray, member: FloatArray, tau2: Fraction) -> float:
    """Return ``Q(tau^2)``, computed without rounding."""
    total = 0.0
    for group in member.T > 0:
        own, weights = _fractions(values[group]), 1 / (_fractions(variances[group]) + tau2)
        mean = (weights * own).sum() / weights.sum()
        total += float((weights * (own - mean) ** 2).sum())
    return total


@pytest.mark.parametrize("exactly", ["none", "one", "some"])
@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
def test_tau_solves_its_equation_in_exact_fractions(exactly: str, alike: bool, groups: int) -> None:
    rng = np.random.default_rng(8)
    for _ in range(200):
        count, scale = rng.integers(2 * groups, 21), 10 ** rng.uniform(-6, 3)
        variances = scale**2 * (np.ones(count) if alike else 10 ** rng.uniform(-16, 0, count))
        variances[: {"none": 0, "one": 1, "some": rng.integers(2, count + 1)}[exactly]] = 0
        values = scale * (rng.choice([0, -12, 1e6]) + rng.normal(0, 10 ** rng.uniform(-1, 2), count))
        values[groups] = rng.choice(values[[0, groups]])  # of one group
        member = np.eye(groups)[np.arange(count) % groups]
        targets = chdtri(count - groups, rng.uniform(0.0025, 0.9975, 3))
        for tau2, target in zip(between_variances(values, variances, targets, member), targets, strict=True):
            # At 0 exact values would weigh without limit.
            squares = _weighted_squares(values, variances, member, max(Fraction(tau2), Fraction(1e-40 * scale**2)))
            assert squares <= target * (1 + 1e-9)
            assert tau2 == 0 or squares >= target * (1 - 1e-9)


def test_tau_does_not_depend_on_what_else_is_solved_for() -> None:
    values = np.array([-13.09058291, -11.4916192, -10.97808353, -11.41243373, -12.16382867])
    variances = np.array([0, *[14.20024687] * 4])
    for targets in ([0.71072302, 0.14486687], [4, 0.71072302, 9.4877, 0.14486687, 16.42]):
        found = dict(zip(targets, between_variances(values, variances, np.array(targets)), strict=True))
        assert (found[0.71072302], found[0.14486687]) == pytest.approx((0.179513, 13.89132), rel=1e-5)


def test_one_value_has_no_spread_keeps_its_own_error_and_has_no_p_value() -> None:
    found = pool(np.array([0.3]), np.array([0.04]))
    assert (found.mean, found.se, found.tau) == pytest.approx((0.3, 0.2, 0.0))
    assert found.interval == pytest.approx((0.3 - 0.2 * 1.64485, 0.3 + 0.2 * 1.64485), rel=1e-4)
    assert math.isnan(found.p_value)
    assert (found.tau_low, found.tau_high) == (0.0, np.inf)


def test_values_known_exactly_are_averaged_and_their_spread_is_all_between() -> None:
    found = pool(np.array([1.0, 3.0]), np.zeros(2))
    assert (found.mean, found.tau) == pytest.approx((2.0, np.sqrt(2.0)))
    equal = pool(np.array([1.0, 1.0]), np.zeros(2))
    assert (equal.mean, equal.se, equal.tau) == pytest.approx((1.0, 0.0, 0.0), abs=1e-100)


def test_intervals_and_p_values_are_those_of_student_on_one_degree_less_than_values() -> None:
    # t on 3 degrees of freedom: 2.3534 at 90 %, and 3.1824 at a two-sided p of 0.05.
    found = pool(np.array([0.0, 3.0, -4.0, 9.0]), np.full(4, 1e-9))
    low, high = found.interval
    assert (high - low) / 2 / found.se == pytest.approx(2.3534, rel=1e-4)
    values = np.array([-1.5, -0.5, 0.5, 1.5])
    shift = 3.18245 * values.std(ddof=1) / 2
    assert pool(values + shift, np.full(4, 1e-9)).p_value == pytest.approx(0.05, rel=1e-4)


def test_the_confidence_distribution_of_tau_has_the_quantiles_of_the_interval_of_tau() -> None:
    # Q(tau^2) falls in tau, so the share of nodes below the lower end of a 90 % interval is 5 %.
    values, variances = np.array([0.1, 1.4, -0.7, 2.9]), np.array([0.1, 0.2, 0.1, 0.3])
    taus = confidence_distribution(values, variances).taus
    found = pool(values, variances)
    assert np.mean(taus < found.tau_low) == pytest.approx(0.05, abs=0.005)
    assert np.mean(taus > found.tau_high) == pytest.approx(0.05, abs=0.005)


def test_quantiles_and_probabilities_are_those_of_one_mixture() -> None:
    known = ConfidenceDistribution(np.array([0.3, 0.4]), np.array([-1.0, 2.0]), np.array([0.4, 0.3]))
    assert known.below(np.array([0.5])) == pytest.approx([0.5], abs=2e-3)  # 3 SDs from either mean
    for probability in (0.05, 0.3, 0.9):
        assert known.below(known.quantiles([probability], 0.2), 0.2) == pytest.approx(probability, abs=1e-9)


def test_confidence_is_certain_where_mean_and_tau_are_known_and_without_tau_that_of_the_mean() -> None:
    # P(|N(0.2, 0.3^2)| <= 0.7) = Phi(5/3) - Phi(-3) = 0.9509; |N(0.1, 0.2^2)| <= 0.5: Phi(2) - Phi(-3) = 0.97590.
    known = ConfidenceDistribution(np.array([0.3]), np.array([0.2]), np.array([0.0]))
    assert [known.confidence_within(0.7, probability) for probability in (0.95, 0.952)] == [1.0, 0.0]
    without = ConfidenceDistribution(np.array([0.0]), np.array([0.1]), np.array([0.2]))
    assert without.confidence_within(0.5, 0.9) == pytest.approx(0.97590, abs=1e-5)
    assert normal_quantile(0.95) == pytest.approx(1.959963984540054, rel=1e-12)
