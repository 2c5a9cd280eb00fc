from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from analysis_helpers import (
    Run,
    RunError,
    decompose_err_rel,
    err_rel_standard_error,
    reference_true_totals,
    simulate_err_rel,
    simulate_err_rel_across_runs,
    synthetic_runs,
)
from analysis_helpers.checks import FloatArray
from analysis_helpers.estimators import columns, scores
from analysis_helpers.inference import PARTS, pool_decomposition, typical_standard_error
from analysis_helpers.partial_sum import partial_sum_moments
from tests.building import ETAS, plain_estimate, random_run, totals_only_run

rescaled = pytest.mark.parametrize("estimator", ["ratio", "matched"])


def error_without_each(run: Run, eta: float, estimator: str, reference: float) -> FloatArray:
    batch = columns(run, eta, estimator)
    true, linear = batch.estimate(batch.values.sum(axis=0) - batch.values)
    return (linear - true) / reference


@rescaled
def test_standard_errors_are_those_of_leaving_out_one_sequence_at_a_time(
    large_runs: dict[str, Run], estimator: str
) -> None:
    for run in large_runs.values():
        left_out = error_without_each(run, 1.6e-6, estimator, -1e-3)
        jackknife = np.sqrt(2047 / 2048 * np.sum((left_out - left_out.mean()) ** 2))
        closed = err_rel_standard_error(run, 1.6e-6, reference=-1e-3, estimator=estimator)
        assert closed == pytest.approx(jackknife, rel=0.01)


@rescaled
def test_on_all_subsets_of_a_small_run_the_closed_form_is_nearly_the_spread(estimator: str) -> None:
    # 924 subsets of 6 out of 12; the closed form keeps the first order, and misses a few per cent at n = 6.
    run = random_run()
    every = []
    for chosen in combinations(range(12), 6):
        true, linear = plain_estimate(run, ETAS[0], list(chosen), estimator)
        every.append((linear - true) / -0.5)
    closed = err_rel_standard_error(run, ETAS[0], 6, reference=-0.5, estimator=estimator, population="run")
    assert closed == pytest.approx(np.std(every), rel=0.05)


def test_for_the_partial_sum_the_closed_form_is_exact() -> None:
    run = random_run()
    for n in (1, 5, 12):
        closed = err_rel_standard_error(run, ETAS[0], n, estimator="partial_sum", population="run")
        assert closed == pytest.approx(partial_sum_moments(run, ETAS[0], n)[1], rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("n", [16, 32, 64, 128, 256, 512, 1024])
def test_the_closed_form_is_the_spread_of_draws(large_runs: dict[str, Run], n: int) -> None:
    # The SD of 20,000 draws is known to 0.5 %, so 2 % is four standard errors: eight of them fail with probability
    # 5e-4.
    references = reference_true_totals(large_runs)
    draws = simulate_err_rel_across_runs(
        large_runs, [1.6e-6], n, num_samples=20_000, seed=n, estimator="ratio", references=references
    )
    found = draws.groupby("run")["err_rel"].std()
    for name, run in large_runs.items():
        closed = err_rel_standard_error(run, 1.6e-6, n, reference=references[1.6e-6], population="run")
        assert closed / found[name] == pytest.approx(1, abs=0.03 if n < 32 else 0.02)


@pytest.mark.parametrize("n", [100, 256, 1024, 1500])
def test_disjoint_subsets_have_the_spread_of_the_closed_form(large_runs: dict[str, Run], n: int) -> None:
    # Groups are correlated by -1 / (K - 1), so the SD of 20,000 is known to 0.5 % times sqrt(K / (K - 1)), 0.7 % at K =
    # 2; 3 % fails with probability 2e-5 each.
    run = large_runs["run_02"]
    for estimator in ("ratio", "matched", "partial_sum"):
        draws = simulate_err_rel(
            run, 1.6e-6, n, num_samples=20_000, seed=n, estimator=estimator, sampler="disjoint", reference=-1e-3
        )
        closed = err_rel_standard_error(run, 1.6e-6, n, reference=-1e-3, estimator=estimator, population="run")
        assert closed / draws.std(ddof=1) == pytest.approx(1, abs=0.03)


def test_subsets_and_fresh_batches_differ_by_the_finite_population_correction() -> None:
    run = random_run()
    fresh, subset = (err_rel_standard_error(run, ETAS[0], 8, population=p) for p in ("policy", "run"))
    assert subset == pytest.approx(fresh * np.sqrt(1 - 8 / 12), rel=1e-12)
    assert err_rel_standard_error(run, ETAS[0], population="run") == 0.0
    assert err_rel_standard_error(run, ETAS[0]) == pytest.approx(fresh * np.sqrt(8 / 12), rel=1e-12)


def test_a_fresh_batch_may_be_larger_than_the_run() -> None:
    run = random_run()
    four_times = err_rel_standard_error(run, ETAS[0], 48)
    assert four_times == pytest.approx(err_rel_standard_error(run, ETAS[0]) / 2, rel=1e-12)


def test_what_has_no_meaning_is_refused() -> None:
    run = random_run()
    with pytest.raises(ValueError, match="population must be 'run' for estimator 'partial_sum'"):
        err_rel_standard_error(run, ETAS[0], estimator="partial_sum")
    with pytest.raises(ValueError, match="population must be one of 'policy', 'run', got 'batch'"):
        err_rel_standard_error(run, ETAS[0], population="batch")
    with pytest.raises(ValueError, match="n must be at most 12, the number of sequences, got 13"):
        err_rel_standard_error(run, ETAS[0], 13, population="run")
    with pytest.raises(RunError, match="gdotv is needed here and not recorded"):
        err_rel_standard_error(totals_only_run(), 1e-6, reference=-1.0)
    with pytest.raises(RunError, match=r"denom_corr_unscaled.* is needed here and not recorded"):
        err_rel_standard_error(random_run(score=False), ETAS[0], estimator="matched")


def test_the_typical_standard_error_is_the_root_mean_square_over_runs() -> None:
    runs = {"run_01": random_run(seed=1), "run_02": random_run(seed=2)}
    errors = [err_rel_standard_error(run, ETAS[0], 8, reference=-0.5) for run in runs.values()]
    assert typical_standard_error(runs, ETAS[0], 8, reference=-0.5) == pytest.approx(
        np.sqrt(np.mean(np.square(errors)))
    )


@pytest.mark.parametrize("score_adjusted", [False, True])
def test_the_parts_add_up_to_the_error(large_runs: dict[str, Run], score_adjusted: bool) -> None:
    table = decompose_err_rel(large_runs, 1.6e-6, score_adjusted=score_adjusted)
    parts = ("err_rel", "se", *(name for part in PARTS for name in (part, f"{part}_se")))
    assert list(table.columns) == ["run", "eta", *parts, "score_z"]
    assert (table["linear_minus_matched"] + table["matched_minus_true"]).to_numpy() == pytest.approx(table["err_rel"])


def test_each_part_is_a_difference_of_estimates_over_the_reference() -> None:
    run = random_run()
    [row] = decompose_err_rel({"run_01": run}, ETAS[0], reference=-0.5).to_dict("records")
    everything = list(range(12))
    true, linear = plain_estimate(run, ETAS[0], everything, "ratio")
    _, matched = plain_estimate(run, ETAS[0], everything, "matched")
    assert row["linear_minus_matched"] == pytest.approx((linear - matched) / -0.5, rel=1e-9)
    assert row["matched_minus_true"] == pytest.approx((matched - true) / -0.5, rel=1e-9)
    j = scores(run)
    assert row["score_z"] == pytest.approx(j.mean() / j.std(ddof=1) * np.sqrt(12), rel=1e-12)


def test_the_default_reference_is_the_mean_true_total(large_runs: dict[str, Run]) -> None:
    given = decompose_err_rel(large_runs, 1.6e-6, reference=reference_true_totals(large_runs)[1.6e-6])
    pd.testing.assert_frame_equal(decompose_err_rel(large_runs, 1.6e-6), given)


def test_runs_are_pooled_by_inverse_variance() -> None:
    table = pd.DataFrame({"run": ["run_01", "run_02"], "eta": 1e-6, "err_rel": [1.0, 4.0], "se": [1.0, 2.0]})
    for part in PARTS:
        table[part], table[f"{part}_se"] = [0.0, 5.0], [1.0, 1.0]
    table["score_z"] = [3.0, 1.0]
    [row] = pool_decomposition(table).to_dict("records")
    assert (row["run"], row["eta"]) == ("pooled", 1e-6)
    assert row["err_rel"] == pytest.approx((1.0 + 4.0 / 4) / 1.25)
    assert row["se"] == pytest.approx(np.sqrt(1 / 1.25))
    assert row["linear_minus_matched"] == 2.5
    assert row["score_z"] == pytest.approx(4 / np.sqrt(2))


def test_a_control_variate_takes_out_what_it_explains_and_no_more() -> None:
    # Regression of psi on the score leaves a residual that does not correlate with it, and a smaller standard error.
    runs = synthetic_runs(3, 1024, [1.6e-6], seed=2)
    raw, adjusted = (decompose_err_rel(runs, 1.6e-6, score_adjusted=flag) for flag in (False, True))
    assert (adjusted["se"] < raw["se"]).all()
    assert adjusted["score_z"].equals(raw["score_z"])


def test_scores_of_sequences_from_the_policy_are_standard_normal() -> None:
    # 200 runs: the mean of z is within 4 / sqrt(200), its SD within 4 / sqrt(400) of 1; each fails with probability
    # 6e-5.
    runs = synthetic_runs(200, 256, [1.6e-6], seed=8)
    z = decompose_err_rel(runs, 1.6e-6)["score_z"]
    assert abs(z.mean()) < 4 / np.sqrt(200)
    assert abs(z.std() - 1) < 4 / np.sqrt(400)


def off_policy(temperature: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    runs = synthetic_runs(20, 1024, [1.6e-6], seed=9, sampling_temperature=temperature)
    raw, adjusted = (decompose_err_rel(runs, 1.6e-6, score_adjusted=flag) for flag in (False, True))
    return raw, adjusted


def mean_and_error(values: pd.Series[float]) -> tuple[float, float]:
    return float(values.mean()), float(values.std() / np.sqrt(len(values)))


def test_on_policy_the_adjustment_changes_nothing_but_noise() -> None:
    # Both means are zero within 4 standard errors (6e-5 each); the exact change and derivative differ by 0.03 % here.
    for table in off_policy(1.0):
        mean, error = mean_and_error(table["err_rel"])
        assert abs(mean) < 4 * error


@pytest.mark.parametrize("temperature", [0.99, 0.98])
def test_slightly_off_policy_the_bias_appears_and_the_adjustment_removes_it(temperature: float) -> None:
    # Scores as far off as on real runs or twice that. Four standard errors: 6e-5 each.
    raw, adjusted = off_policy(temperature)
    mean, error = mean_and_error(raw["linear_minus_matched"])
    assert mean > 4 * error
    left, error = mean_and_error(adjusted["linear_minus_matched"])
    assert abs(left) < 4 * error + 0.02


def test_far_off_policy_the_score_shows_it_and_the_adjustment_removes_nine_tenths_of_the_bias() -> None:
    # At temperature 0.9 the mean score is 20 standard errors from zero, too far for a linear adjustment to be exact.
    raw, adjusted = off_policy(0.9)
    assert raw["score_z"].min() > 10
    assert raw["linear_minus_matched"].mean() > 4
    assert abs(adjusted["linear_minus_matched"].mean()) < 0.15 * raw["linear_minus_matched"].mean()
    assert abs(raw["matched_minus_true"].mean()) < 0.01


def test_runs_without_a_score_cannot_be_split() -> None:
    with pytest.raises(RunError, match=r"denom_corr_unscaled.* is needed here and not recorded"):
        decompose_err_rel({"run_01": random_run(score=False)}, ETAS[0])


def test_a_temperature_must_be_positive() -> None:
    with pytest.raises(ValueError, match="sampling_temperature must be positive, got 0"):
        synthetic_runs(1, 10, sampling_temperature=0)
