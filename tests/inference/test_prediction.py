from __future__ import annotations

import math

import numpy as np
import pytest

import analysis_helpers as ah
from analysis_helpers._checks import RunWarning
from analysis_helpers.inference.prediction import Prediction, pilot_of, pooled_check, predict
from analysis_helpers.synthetic.validation import shifted
from tests.building import ETAS, Runs, random_run
from tests.calibration.records import coverage_table, pit_records

ETA = 1.6e-6
THREE = {f"run_0{k}": random_run(40, seed=k) for k in (1, 2, 3)}


def test_mean_and_variance_are_those_of_the_formula(large_runs: Runs) -> None:
    reference = ah.reference_true_totals(large_runs)[ETA]
    predicted = ah.predict_err_rel(large_runs, ETA, 256)
    table = ah.decompose_err_rel(large_runs, ETA)
    weights = 1 / (table["se"] ** 2 + predicted.tau**2)
    errors = [ah.err_rel_standard_error(run, ETA, 256, reference=reference) for run in large_runs.values()]
    assert predicted.reference == reference
    assert predicted.mean == pytest.approx((weights * table["err_rel"]).sum() / weights.sum())
    assert predicted.se_mean == pytest.approx(weights.sum() ** -0.5)
    assert predicted.sampling_sd == pytest.approx(np.sqrt(np.mean(np.square(errors))))
    assert predicted.sd**2 == pytest.approx(predicted.sampling_sd**2 + predicted.se_mean**2 + predicted.tau**2)


def test_interval_pit_and_density_are_those_of_one_distribution() -> None:
    scales, freedoms = np.array([0.5]), np.array([7.0])
    predicted = Prediction(1e-6, 64, -1.0, 0.2, 0.5, 0.1, 0.1, 0.48, 7.0, 4, scales, freedoms)
    low, high = predicted.interval(0.8)
    assert (predicted.pit(low), predicted.pit(high)) == pytest.approx((0.1, 0.9))
    assert predicted.pit(0.2) == pytest.approx(0.5)
    grid = np.linspace(low, high, 2001)
    density = predicted.density(grid)
    assert np.sum((density[1:] + density[:-1]) / 2 * np.diff(grid)) == pytest.approx(0.8, abs=1e-6)
    assert predicted.probability_within(0.7) == pytest.approx(predicted.pit(0.7) - predicted.pit(-0.7))


def test_a_spread_between_runs_enters_the_prediction() -> None:
    total = ah.reference_true_totals(THREE)[ETAS[0]]
    apart = {name: shifted(run, k * 5 * total / ETAS[0]) for k, (name, run) in enumerate(THREE.items())}
    together, scattered = ah.predict_err_rel(THREE, ETAS[0], 40), ah.predict_err_rel(apart, ETAS[0], 40)
    assert scattered.tau > 4
    assert scattered.mean == pytest.approx(together.mean + 5, abs=1.0)
    assert scattered.df < together.df


def test_one_run_predicts_with_its_own_sampling_only() -> None:
    run = random_run(40)
    predicted = ah.predict_err_rel({"run_01": run}, ETAS[0], 40)
    assert (predicted.tau, predicted.num_runs) == (0.0, 1)
    assert predicted.sd == pytest.approx(np.sqrt(2) * ah.err_rel_standard_error(run, ETAS[0]))


def test_an_infinite_batch_leaves_what_no_batch_size_takes_away() -> None:
    predicted = predict(pilot_of(THREE, ETAS[0]), math.inf)
    assert predicted.sampling_sd == 0.0
    assert predicted.sd == pytest.approx(math.hypot(predicted.se_mean, predicted.tau))


def test_a_larger_batch_is_never_predicted_worse(large_runs: Runs) -> None:
    pilot = pilot_of(large_runs, ETA)
    sizes = [*(2.0 ** np.arange(4, 30, 0.5)), math.inf]
    for level in (0.5, 0.9, 0.99):
        widths = [np.subtract(*predict(pilot, n).interval(level)[::-1]) for n in sizes]
        assert (np.diff(widths) <= 1e-12).all()
    within = [predict(pilot, n).probability_within(0.5) for n in sizes]
    assert (np.diff(within) >= -1e-12).all()
    wide = predict(pilot, 4096)
    assert wide.pit(wide.interval(0.9)[1]) == pytest.approx(0.95)  # where the best of several sizes counts


def test_etas_are_found_with_a_tolerance_and_runs_without_them_are_named() -> None:
    less = ah.Run(THREE["run_03"].token_counts, THREE["run_03"].measurements[1:], -1.0)
    with pytest.warns(RunWarning, match="skipped run_03: .*eta 1e-06"):
        predicted = ah.predict_err_rel({**THREE, "run_03": less}, ETAS[0] * (1 + 1e-9), 10)
    assert (predicted.eta, predicted.num_runs) == (ETAS[0], 2)


def test_actual_runs_stand_beside_their_prediction(large_runs: Runs, small_runs: Runs) -> None:
    table = ah.check_prediction(large_runs, small_runs, ETA)
    assert list(table.columns) == ["run", "n", "err_rel", "se", "predicted_mean", "predicted_sd", "z", "pit"]
    predicted = ah.predict_err_rel(large_runs, ETA, 256)
    for row in table.to_dict("records"):
        run = small_runs[row["run"]]
        total = (ETA * run.delta_h_per_lr - run.measurement(ETA).delta_h_true) / predicted.reference
        assert row["err_rel"] == pytest.approx(total, rel=1e-9)
        assert row["se"] == pytest.approx(ah.err_rel_standard_error(run, ETA, reference=predicted.reference))
        assert row["z"] == pytest.approx((total - predicted.mean) / predicted.sd)
        assert row["pit"] == pytest.approx(predicted.pit(total))
    one, other = (ah.check_prediction(large_runs, small_runs, ETA, reference=r)["pit"] for r in (-1e-3, -2e-3))
    assert other.to_numpy() == pytest.approx(one.to_numpy(), rel=1e-9)  # a scale changes no percentile


def test_actual_runs_are_held_against_chi_square_and_their_mean(large_runs: Runs, small_runs: Runs) -> None:
    found = pooled_check(large_runs, small_runs, ETA)
    z = ah.check_prediction(large_runs, small_runs, ETA)["z"]
    # What runs share, the error of the predicted mean, is small here: both are near their plain values.
    assert found.sum_z2 == pytest.approx((z**2).sum(), rel=0.1)
    assert found.mean_z == pytest.approx(z.mean(), rel=0.02)
    assert (found.num_runs, found.smallest_p) == (4, 0.125)


def test_shared_error_of_the_mean_is_not_taken_for_a_misfit() -> None:
    # 100 replicates of one large run and 9 fresh ones of the same size: they all lie off by the error of the one, so z
    # have the correlation 1/2. Below 0.1 in 12 +- 3.3, as S is not known; above 26 with probability 1e-4. Were the z
    # taken as independent, it would be in about 40.
    low = 0
    for k in range(100):
        large, *small = (random_run(30, seed=10 * k + j) for j in range(10))
        small_runs = {f"run_{j}": run for j, run in enumerate(small)}
        low += pooled_check({"large": large}, small_runs, ETAS[0]).p_mean_z < 0.1
    assert low <= 26


def test_a_run_that_is_predicted_from_itself_is_warned_about() -> None:
    with pytest.warns(RunWarning, match="run_02 is the same run as run_02"):
        ah.check_prediction(THREE, {"run_02": THREE["run_02"]}, ETAS[0])


@pytest.mark.slow  # thousands of batches; the stored calibration says the same of 10,000
@pytest.mark.parametrize("num_large", [4, 8])
def test_intervals_cover_as_they_say_with_and_without_spread_between_runs(num_large: int) -> None:
    # 1,000 replicates at tau = 0 and tau = the sampling SD of the fresh run (S = 3.81, n = 64): 3.5 binomial standard
    # errors, which is 5.5, 4.4, 3.3 and 2.4 percentage points at 50, 80, 90 and 95 %. Eight comparisons, of which those
    # at one tau go together: fails with probability 0.002.
    for row in coverage_table(pit_records([0.0, 0.476], num_large=num_large, count=1000, seed=5)).to_dict("records"):
        assert row["covered"] == pytest.approx(row["level"], abs=3.5 * row["error"]), row
