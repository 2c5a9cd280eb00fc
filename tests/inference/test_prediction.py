import math

import numpy as np
import pytest
from scipy.stats import norm

import analysis_helpers as ah
from analysis_helpers import Runs
from analysis_helpers._checks import FloatArray, RunWarning
from analysis_helpers.estimators import ESTIMATORS, Estimator, FullBatch
from analysis_helpers.inference.prediction import agreement_of, pooled_err_rel, predict
from tests.building import ETAS, altered, pilot, random_run
from tests.calibration.drawing import shifted

ETA = 1.6e-6
THREE = {f"run_0{k}": random_run(40, seed=k) for k in (1, 2, 3)}


def test_interval_pit_and_density_are_those_of_one_distribution() -> None:
    predicted = predict(pilot([0.3, -1.2, 2.0, 0.4]), 2)
    low, high = predicted.interval(0.8)
    assert (predicted.pit(low), predicted.pit(high)) == pytest.approx((0.1, 0.9))
    grid = np.linspace(low, high, 2001)
    density = predicted.density(grid)
    assert np.sum((density[1:] + density[:-1]) / 2 * np.diff(grid)) == pytest.approx(0.8, abs=1e-6)
    assert predicted.probability_within(0.7) == pytest.approx(predicted.pit(0.7) - predicted.pit(-0.7))


def test_many_runs_that_agree_predict_by_the_normal_distribution() -> None:
    scores = norm.ppf((np.arange(400) + 0.5) / 400) * 0.2  # less than their SE of 1: tau is near 0
    predicted = predict(pilot(scores.tolist()), 4)
    assert predicted.interval(0.9)[1] == pytest.approx(1.6449 * math.sqrt(1 / 4), rel=0.02)


def test_a_larger_batch_is_never_predicted_worse() -> None:
    known = pilot([0.3, -1.2, 2.0, 0.4])
    for level in (0.5, 0.9, 0.99):
        widths = [np.subtract(*predict(known, n).interval(level)[::-1]) for n in (1, 2, 8, 100, math.inf)]
        assert (np.diff(widths) < 0).all()


def test_a_spread_between_runs_enters_the_prediction() -> None:
    total = ah.reference_true_totals(THREE)[ETAS[0]]
    apart = {name: shifted(run, k * 5 * total / ETAS[0]) for k, (name, run) in enumerate(THREE.items())}
    together, scattered = ah.predict_err_rel(THREE, ETAS[0], 40), ah.predict_err_rel(apart, ETAS[0], 40)
    assert scattered.tau > 4
    assert scattered.mean == pytest.approx(together.mean + 5, abs=1.0)


def test_one_run_predicts_with_its_own_sampling_only() -> None:
    run = random_run(40)
    predicted = ah.predict_err_rel({"run_01": run}, ETAS[0], 40)
    assert (predicted.tau, predicted.num_runs) == (0.0, 1)
    assert predicted.sd == pytest.approx(np.sqrt(2) * ah.err_rel_standard_error(run, ETAS[0]))
    assert all(map(math.isnan, predict(pooled_err_rel({"run_01": run}, ETAS[0]), math.inf).interval(0.9)))


def test_actual_runs_stand_beside_their_prediction(large_runs: Runs, small_runs: Runs) -> None:
    table = ah.check_prediction(large_runs, small_runs, ETA)
    predicted = ah.predict_err_rel(large_runs, ETA, 256)
    for run, row in zip(small_runs.values(), table.to_dict("records"), strict=True):
        total = (ETA * run.delta_h_per_lr - run.measurement(ETA).delta_h_true) / predicted.reference
        se = ah.err_rel_standard_error(run, ETA, reference=predicted.reference)
        expected = [total, se, (total - predicted.mean) / predicted.sd, predicted.pit(total)]
        assert [row[name] for name in ("err_rel", "se", "z", "pit")] == pytest.approx(expected, rel=1e-9)
    one, other = (ah.check_prediction(large_runs, small_runs, ETA, reference=r)["pit"] for r in (-1e-3, -2e-3))
    assert other.to_numpy() == pytest.approx(one.to_numpy(), rel=1e-9)  # a scale changes no percentile


def test_actual_runs_as_predicted_agree_and_runs_elsewhere_do_not() -> None:
    known, sizes = pilot([0.3, -1.2, 1.1, 0.4]), np.full(4, 0.25)
    near = agreement_of(known, np.array([2.0, -1.5, 0.5, -2.2]), sizes)
    assert (near.num_runs, near.smallest_p) == (4, 0.125)
    assert min(near.p_spread, near.p_mean) > 0.1
    assert agreement_of(known, np.array([9.0, 8.0, 10.0, 9.5]), sizes).p_mean < 0.01
    scattered = agreement_of(known, np.array([12.0, -12.0, 11.0, -11.0]), sizes)
    assert scattered.p_spread < 0.01 < scattered.p_mean


def test_shared_error_of_the_mean_is_not_taken_for_a_misfit() -> None:
    # Nine actual runs of the size of the one large run: all lie off by its error. P-values of the mean below 0.1 in 10
    # % of 400: 40 +- 6; 60 is 3.3 standard errors. Without the shared error it would be in more than a third.
    rng = np.random.default_rng(4)
    p = [agreement_of(pilot([rng.normal()]), rng.normal(size=9), np.ones(9)).p_mean for _ in range(400)]
    assert np.sum(np.array(p) < 0.1) <= 60


def test_an_actual_run_that_is_one_of_the_large_ones_is_skipped() -> None:
    with pytest.warns(RunWarning, match="skipped actual run run_02: same content as large run_02"):
        assert ah.check_prediction(THREE, {"run_02": THREE["run_02"]}, ETAS[0]).empty


def test_a_reference_whose_error_is_not_known_is_taken_as_given(monkeypatch: pytest.MonkeyPatch) -> None:
    def of_sums(sums: FloatArray, full: FullBatch) -> tuple[FloatArray, FloatArray]:
        tokens, w_tokens, w_h_new, g = np.moveaxis(sums, -1, 0)
        return w_h_new / w_tokens - full.base_entropy, full.eta * g / tokens

    without_h_base = Estimator("ratio", ("tokens", "w_tokens", "w_h_new", "g"), 0, of_sums)
    monkeypatch.setitem(ESTIMATORS, "ratio", without_h_base)
    runs = {f"run_{k}": altered(random_run(40, seed=k), h_base=None) for k in range(2)}
    found = pooled_err_rel(runs, ETAS[0])
    assert found.reference_error == 0
    assert np.isfinite(found.spread_interval).all()
