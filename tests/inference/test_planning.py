import math

import numpy as np
import pytest

import analysis_helpers as ah
from analysis_helpers import Runs, inference
from analysis_helpers.inference.planning import smallest_within
from analysis_helpers.inference.prediction import pooled_err_rel, predict
from analysis_helpers.inference.random_effects import ConfidenceDistribution
from tests.building import ETAS, in_prompts, known, random_run
from tests.calibration.drawing import short_policy

ETA = 1.6e-6


def width(runs: Runs, reference: float | None = None) -> float:
    """Return upper over lower end of the interval of S, which holds S."""
    spread, low, high = pooled_err_rel(runs, ETA, reference=reference).spread_interval
    assert low < spread < high
    return high / low


@pytest.mark.parametrize(("tolerance", "probability"), [(0.6, 0.9), (1.0, 0.7), (0.8, 0.95)])
def test_the_batch_for_an_error_or_a_tolerance_is_the_smallest(
    large_runs: Runs, tolerance: float, probability: float
) -> None:
    pilot = pooled_err_rel(large_runs, ETA)
    n = known(ah.required_batch_size(large_runs, ETA, target_sd=0.3))
    assert predict(pilot, n).sampling_sd <= 0.3 < predict(pilot, n - 1).sampling_sd
    n = known(ah.required_batch_size(large_runs, ETA, tolerance=tolerance, probability=probability))
    assert predict(pilot, n).probability_within(tolerance) >= probability
    assert predict(pilot, n - 1).probability_within(tolerance) < probability


def test_a_tolerance_below_what_no_batch_takes_away_is_unreachable(large_runs: Runs) -> None:
    assert ah.required_batch_size(large_runs, ETA, tolerance=0.1) is None
    limit = predict(pooled_err_rel(large_runs, ETA), math.inf).probability_within(0.1)
    assert limit < 0.9
    assert ah.required_batch_size(large_runs, ETA, tolerance=0.1, probability=limit * 0.99) is not None


def test_with_mean_and_spread_known_the_plan_is_that_of_the_normal_distribution() -> None:
    # P(|x| <= 0.5) = 0.9 at an SD of 0.5 / 1.6449 = 0.30398; S = 3: n = (3 / 0.30398)^2 = 97.4.
    certain, off, scattered = (
        ConfidenceDistribution(np.array([tau]), np.array([mean]), np.array([0.0]))
        for mean, tau in ((0.0, 0.0), (0.6, 0.0), (0.0, 0.4))
    )
    assert [smallest_within(each, 9.0, 0.5, 0.9) for each in (certain, off, scattered)] == [98, None, None]
    assert smallest_within(certain, 9.0, 100.0, 0.9) == 64  # no plan is smaller


def test_more_sequences_than_a_table_can_hold_are_no_plan(large_runs: Runs) -> None:
    certain = ConfidenceDistribution(*np.zeros((3, 1)))
    assert smallest_within(certain, 1.0, 1.6449 * 2**-30, 0.9) == pytest.approx(2**60, rel=1e-4)
    assert smallest_within(certain, 1.0, 1.6449 * 2**-32, 0.9) is None
    assert ah.required_batch_size(large_runs, ETA, target_sd=1e-12) is None
    assert ah.required_batch_size(large_runs, ETA, target_sd=1e-200) is None
    assert inference.estimator_table(large_runs, ETA, tolerance=1e-15)["sequences"].isna().all()
    assert ah.verdict_map(large_runs, [ETA], tolerance=1e-12)["recorded_required_n"].tolist() > [2**61]


def test_a_plan_has_an_interval_that_a_smaller_pilot_widens(large_runs: Runs, small_runs: Runs) -> None:
    assert width(small_runs) > 1.1 * width(large_runs)
    one, two, other = (inference.plan_batch_sizes(large_runs, [ETA], tolerance=0.8, seed=s) for s in (1, 1, 2))
    assert one.equals(two)
    assert one["n"].equals(other["n"])
    assert not one.equals(other)


def test_errors_fall_with_the_root_of_n_to_what_no_batch_takes_away(large_runs: Runs) -> None:
    table = inference.error_by_size(large_runs, ETA, [64, 256, 10**9], tolerance=0.5).set_index("n")
    pilot = pooled_err_rel(large_runs, ETA)
    spreads = pilot.spread_interval
    for n in (64, 256):
        assert list(table.loc[n, ["se", "se_low", "se_high"]]) == pytest.approx(
            [each / math.sqrt(n) for each in spreads]
        )
    rest = predict(pilot, math.inf).interval(0.9)
    assert (table["low"][10**9], table["high"][10**9]) == pytest.approx(rest, abs=1e-3)


def test_a_budget_is_all_the_same_without_spread_between_runs_and_else_better_split() -> None:
    runs = {f"run_{k}": random_run(40, seed=k) for k in range(4)}
    pilot = pooled_err_rel(runs, ETAS[0])
    table = inference.budget_table(runs, ETAS[0], sequences=80, counts=(1, 4))
    assert table["sequences_each"].tolist() == [80, 20]
    sampling = pilot.mean_square_spread / 80
    taus = pilot.pooled.tau, pilot.pooled.tau_low, pilot.pooled.tau_high
    for name, tau in zip(("se", "se_low", "se_high"), taus, strict=True):
        assert table[name].to_numpy() == pytest.approx(np.sqrt(sampling + tau**2 / np.array([1, 4])))
    assert table["se_low"].nunique() == 1  # without spread between runs


def test_a_reference_that_is_an_estimate_makes_a_plan_less_sure() -> None:
    # Eight runs of 32: S is known to 9 % or so, and their mean true change to 6 %.
    runs = ah.synthetic_runs(8, 32, policy=short_policy(), seed=3)
    reference = ah.reference_true_totals(runs)[ETA]
    assert width(runs) > 1.015 * width(runs, reference)


def test_the_table_of_estimators_gives_what_each_takes(large_runs: Runs) -> None:
    table = inference.estimator_table(large_runs, ETA, 256, tolerance=0.05)
    found = {row["estimator"]: row for row in table.to_dict("records")}
    assert found["matched"]["se"] < found["adjusted"]["se"] < found["ratio"]["se"]
    assert found["ratio"]["se"] == pytest.approx(math.sqrt(pooled_err_rel(large_runs, ETA).mean_square_spread / 256))
    assert found["ratio"]["sequences"] == pytest.approx((1.6449 * found["ratio"]["se"] * 16 / 0.05) ** 2, rel=1e-3)
    bare = {f"run_{k}": random_run(40, seed=k, score=False) for k in range(2)}
    assert inference.estimator_table(bare, ETAS[0])["estimator"].tolist() == ["trend", "ratio"]


def test_plans_are_stated_in_prompts_too_where_these_are_recorded() -> None:
    runs = {f"run_{k}": in_prompts(random_run(80, seed=k), 8) for k in range(3)}
    table = inference.plan_batch_sizes(runs, [ETAS[0]], tolerance=20.0)
    assert table["prompts"].tolist() == [math.ceil(table["n"].iloc[0] / 8)]
    assert "prompts" not in inference.plan_batch_sizes({"run_0": random_run(80)}, [ETAS[0]], tolerance=20.0)
