import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from analysis_helpers import (
    Run,
    RunError,
    Runs,
    entropy_trend,
    load_runs,
    nonlinearity,
    run_health,
    synthetic_runs,
    verdict,
)
from analysis_helpers._checks import RunWarning
from analysis_helpers.inference.trend import MODEL_ERROR, disagreement, fit_trend, fit_trends, nonlinearity_estimates
from analysis_helpers.synthetic.policy import entropy_change, entropy_derivative
from analysis_helpers.synthetic.runs import update_directions
from tests.building import ETAS, altered, random_run, refused, totals_only_run
from tests.calibration.drawing import batch_of, exact_change, short_policy, world

FIVE = [0.8e-6, 1.6e-6, 3.2e-6, 6.4e-6, 12.8e-6]


def curved_run(size: int, curvature: float, seed: int = 0, etas: tuple[float, ...] = (1e-6, 2e-6, 4e-6)) -> Run:
    """Return a run whose entropy per token is 1 - 1e5 eta + curvature eta^2, exactly, on every sequence."""
    tokens = np.random.default_rng(seed).integers(5, 20, size).astype(float)
    per_token = {eta: 1 - 1e5 * eta + curvature * eta**2 for eta in etas}
    noise = np.random.default_rng(seed + 1).normal(1, 0.1, size)
    return Run.from_arrays(
        token_counts=tokens,
        h_base=tokens,
        h_new={eta: tokens * (1 + (change - 1) * noise) for eta, change in per_token.items()},
        log_weights={eta: np.zeros(size) for eta in etas},
        delta_h_per_lr=0.0,
    )


def test_a_parabola_without_noise_in_its_shape_is_found_exactly() -> None:
    found = fit_trend(curved_run(50, 3e9))
    scale = found.slope.value / -1e5  # the mean of the noise, by which every change is multiplied
    assert found.curvature.value == pytest.approx(3e9 * scale, rel=1e-6)
    assert found.chi2 == pytest.approx(0, abs=1e-6)
    # Curvature and slope are proportional on every sequence, so their relative errors from sampling are the same.
    slope, curvature = found.slope.estimate, found.curvature.estimate
    assert curvature.z == pytest.approx(abs(slope.z), rel=1e-6)
    assert found.slope.se == pytest.approx(math.hypot(slope.se, found.slope.model_sd), rel=1e-12)


def changing_run(size: int, changes: dict[float, float], seed: int = 0, *, noise: float = 0.1) -> Run:
    """Return a run with nearly these changes of entropy (nats per token), whose errors are common to all etas."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(20, 40, size).astype(float)
    common = rng.normal(1, noise, size)
    return Run.from_arrays(
        token_counts=tokens,
        h_base=tokens,
        h_new={
            eta: tokens * (1 + change * (common + rng.normal(0, noise / 50, size))) for eta, change in changes.items()
        },
        log_weights={eta: np.zeros(size) for eta in changes},
        delta_h_per_lr=0.0,
    )


GENTLE = {1.25e-4: -16.31, 2.5e-4: -16.52, 5e-4: -16.86, 1e-3: -17.22}  # changes per eta that no parabola fits exactly


def test_precise_runs_that_a_parabola_describes_to_one_percent_keep_their_slope_and_have_no_fault() -> None:
    runs = Runs({f"run_{k}": changing_run(512, {eta: slope * eta for eta, slope in GENTLE.items()}, k) for k in (1, 2)})
    for run in runs.values():
        found = fit_trend(run)
        smallest = run.measurement(1.25e-4).delta_h_true / 1.25e-4
        assert found.slope.value == pytest.approx(smallest, rel=0.01)  # not outside all changes per eta
        assert found.slope.se > 0.005 * abs(smallest)
        assert found.chi2 < 4.6  # p = 0.1 on 2 df
        assert not found.is_offset
    assert fit_trends(runs).left_out == ()
    assert not run_health(runs).query("check == 'offset_z'")["flag"].any()


def test_the_model_error_is_common_to_runs_and_no_number_of_them_takes_it_away() -> None:
    changes = {eta: -10 * eta for eta in (1e-3, 2e-3, 4e-3)}
    runs = {f"run_{k}": changing_run(200, changes, k, noise=1e-4) for k in range(16)}
    few, many = (entropy_trend(dict(list(runs.items())[:count])).iloc[-1] for count in (2, 16))
    assert many["curvature_se"] == pytest.approx(few["curvature_se"], rel=0.02)
    model = fit_trends(Runs(runs)).curvature.common_error
    assert many["curvature_se"] == pytest.approx(model, rel=0.02)
    assert model > MODEL_ERROR * 10 / 4e-3 / 10


def test_where_a_parabola_does_not_fit_the_largest_etas_are_left_out_for_all_runs() -> None:
    bent = {1e-3: -1e-2, 2e-3: -2e-2, 4e-3: -4e-2, 8e-3: -8e-2, 16e-3: -0.4}
    runs = Runs({f"run_{k}": changing_run(400, bent, k) for k in range(2)})
    trends = fit_trends(runs)
    assert (trends.up_to, trends.left_out) == (8e-3, (16e-3,))
    assert entropy_trend(runs)["up_to"].tolist() == [8e-3] * 3
    assert nonlinearity(runs)["eta"].tolist() == [1e-3, 2e-3, 4e-3, 8e-3]
    assert trends.curvature.pooled.mean * 8e-3 == pytest.approx(0, abs=0.2)  # on 10: a straight line


@pytest.mark.parametrize(("share", "at_least"), [(0.005, 100), (0.002, 90)])
def test_entropies_that_are_too_large_after_the_step_are_an_offset_and_no_misfit(share: float, at_least: int) -> None:
    runs = synthetic_runs(100, 256, FIVE, policy=short_policy(), seed=4)
    flagged = healthy = 0
    for run in runs.values():
        too_large = altered(run, h_new=lambda sums: sums * (1 + share))
        off = [
            dataclasses.replace(
                m, delta_h_true=float(m.weights @ m.h_new / (m.weights @ run.token_counts)) - m.base_entropy
            )
            for m in too_large.measurements
        ]
        flagged += fit_trend(dataclasses.replace(run, measurements=tuple(off))).is_offset
        healthy += fit_trend(run).is_offset
    assert flagged >= at_least
    assert healthy == 0


def test_a_totals_only_run_has_a_trend_and_one_eta_has_none() -> None:
    table = entropy_trend({"run_01": curved_run(30, 1e9)})
    assert table["run"].tolist() == ["run_01", "pooled"]
    with pytest.warns(RunWarning, match="skipped run_01"), pytest.raises(ValueError, match="at least two etas"):
        entropy_trend({"run_01": totals_only_run()})
    assert nonlinearity({"run_01": totals_only_run()}).empty


def test_a_run_without_base_entropies_is_refused_by_name() -> None:
    with pytest.warns(RunWarning, match="skipped"), pytest.raises(RunError, match=r"run_01: .*h_base"):
        entropy_trend({"run_01": altered(random_run(), h_base=None)})


def test_two_sequences_are_needed_and_said_to_be() -> None:
    single = {"one": random_run(1, seed=1)}
    with pytest.warns(RunWarning, match="skipped"), refused("one", "at least two sequences", error=RunError):
        verdict(single, ETAS[0], 64)


def test_with_two_etas_there_is_a_curvature_but_no_test_of_fit() -> None:
    found = fit_trend(random_run(40))
    assert (found.df, math.isnan(found.chi2), math.isnan(found.offset_z)) == (0, True, True)
    # Two points fix both coefficients.
    (one, two) = random_run(40).measurements
    curvature = (two.delta_h_true / two.eta - one.delta_h_true / one.eta) / (two.eta - one.eta)
    assert found.curvature.value == pytest.approx(curvature, rel=1e-5)


def test_the_same_content_twice_counts_once() -> None:
    run = random_run(40)
    with pytest.warns(RunWarning, match="skipped copy: same content as run_01"):
        assert entropy_trend({"run_01": run, "copy": run}).equals(entropy_trend({"run_01": run}))


def test_where_all_sequences_are_the_same_only_the_model_error_is_left() -> None:
    h_new = {eta: [3.3 - 1e5 * eta] * 20 for eta in (1e-6, 2e-6, 4e-6)}
    run = Run.from_arrays(
        token_counts=[7] * 20,
        h_base=[3.3 + 1 / 7] * 20,
        h_new=h_new,
        log_weights={eta: [0.0] * 20 for eta in h_new},
        delta_h_per_lr=0.0,
    )
    found = fit_trend(run)
    assert (found.slope.estimate.se, found.curvature.estimate.se) == (0, 0)
    assert not found.is_offset
    checks = run_health({"run_01": run}).set_index("check")
    assert not checks["flag"]["offset_z"]


def test_nonlinearity_by_trend_grows_with_eta_and_both_methods_stand_in_units_of_the_true_change(
    large_runs: Runs,
) -> None:
    table = nonlinearity(large_runs).pivot_table(index="eta", columns="method", values="nonlinearity")
    assert table["trend"].iloc[1] == pytest.approx(2 * table["trend"].iloc[0], rel=1e-9)
    trend = entropy_trend(large_runs).iloc[-1]
    assert table["trend"].iloc[0] == pytest.approx(-trend["curvature"] * 1.6e-6 / trend["slope"], rel=1e-9)
    by = nonlinearity_estimates(large_runs, 1.6e-6)
    off, z = disagreement(by["trend"], by["matched"])
    assert off == pytest.approx(by["trend"].pooled.mean - by["matched"].pooled.mean, abs=2e-3)
    assert abs(z) < 3


def test_on_known_truth_the_slope_is_the_derivative_and_the_curvature_half_the_second_derivative() -> None:
    # Five etas, 4096 sequences, three updates: each within 4 of its standard errors; fails with probability 4e-4.
    policy = short_policy()
    directions = update_directions(policy, 3, seed=11)
    for name, run in synthetic_runs(3, 4096, FIVE, policy=policy, seed=11).items():
        found = fit_trend(run)
        h = 1e-6
        second = (entropy_change(policy, directions[name], h) + entropy_change(policy, directions[name], -h)) / h**2
        exact = entropy_derivative(policy, directions[name])
        assert found.slope.value == pytest.approx(exact, abs=4 * found.slope.se)
        assert found.curvature.value == pytest.approx(second / 2, abs=4 * found.curvature.se)


@pytest.mark.slow  # a thousand batches
@pytest.mark.parametrize("n", [256, 1024])
def test_intervals_of_the_curvature_hold_the_truth_as_often_as_they_say(n: int) -> None:
    # 600 batches: 0.90 +- 0.012; the bounds are 0.88 and 0.92 with 1.5 binomial errors of room on either side.
    count = 600
    made = world(count * n, 3, etas=tuple(FIVE))
    h = 1e-6
    truth = (exact_change(h) + exact_change(-h)) / h**2 / 2
    fits = [fit_trend(batch_of(made, k * n, n)) for k in range(count)]
    # The step of this world is a parabola to far better than the model error, so sampling alone is held to the truth.
    z = np.array([(fit.curvature.value - truth) / fit.curvature.estimate.se for fit in fits])
    assert np.mean(np.abs(z) <= 1.6449) == pytest.approx(0.90, abs=0.02 + 1.5 * 0.012)


def test_the_published_runs_have_the_trend_that_was_measured(research_root: Path) -> None:
    small, large = (entropy_trend(load_runs(research_root / name)) for name in ("E_256", "E_2048"))
    for table, name, expected in (  # in 1e-3 nats a token, for eta in units of 1e-6
        (small, "slope", [-0.3877, -0.3929, -0.7697, -0.2057]),
        (small, "slope_se", [0.1651, 0.1722, 0.2346, 0.1913]),
        (large, "slope", [-0.9295, -0.8869, -0.8435, -0.5781]),
        (small, "curvature", [0.00121, -0.00422, -0.00069, 0.00093]),
        (small, "curvature_se", [0.00317, 0.00370, 0.00590, 0.00446]),
        (large, "curvature", [0.01968, 0.01686, 0.04723, 0.02589]),
    ):
        unit, digits = (1e-3, 3e-4) if name.startswith("slope") else (1e-9, 2e-5)
        assert (table[name].iloc[:-1] * unit).tolist() == pytest.approx(expected, abs=digits)
    assert small["chi2"].iloc[:-1].tolist() == pytest.approx([3.4, 6.4, 0.1, 0.9], abs=0.06)
    assert small["offset_z"].iloc[:-1].tolist() == pytest.approx([-1.52, 0.74, 0.02, 0.65], abs=0.006)
    assert (small["up_to"] == 1.28e-5).all()
    for root, value, error in (("E_256", -0.0025, 0.0080), ("E_2048", 0.054, 0.026)):
        estimate = nonlinearity_estimates(load_runs(research_root / root), 1.6e-6)["trend"]
        assert (estimate.pooled.mean, estimate.fixed_effect_error) == pytest.approx((value, error), abs=6e-4)
