from __future__ import annotations

import dataclasses
from itertools import combinations

import numpy as np
import pytest

from analysis_helpers import (
    Run,
    RunError,
    err_rel_standard_error,
    reference_true_totals,
    simulate_err_rel,
    simulate_err_rel_across_runs,
)
from analysis_helpers._checks import FloatArray, RunWarning
from analysis_helpers.err_rel import explain_partial_sum
from analysis_helpers.estimators import columns
from analysis_helpers.inference.standard_errors import (
    sizes_around,
    spread_by_size,
    subset_moments,
    typical_standard_error,
)
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
        [exact] = explain_partial_sum({"run_01": run}, [ETAS[0]], n)["partial_sum_sd"]
        assert closed == pytest.approx(exact, rel=1e-9, abs=1e-15)


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


def test_the_moments_over_subsets_are_those_of_draws(large_runs: dict[str, Run]) -> None:
    # 4,000 draws: means within 4 standard errors, plus a ratio bias below 0.01; SDs within 6 % (5 standard errors).
    references = reference_true_totals(large_runs)
    moments = subset_moments(large_runs, [1.6e-6, 3.2e-6], 256, references=references)
    assert len(moments) == 8
    for row in moments.to_dict("records"):
        draws = simulate_err_rel(
            large_runs[row["run"]],
            row["eta"],
            num_samples=4000,
            estimator="ratio",
            reference=references[row["eta"]],
        )
        assert abs(draws.mean() - row["mean"]) < 4 * row["sd"] / np.sqrt(4000) + 0.01
        assert draws.std() == pytest.approx(row["sd"], rel=0.06)


def test_the_mean_over_subsets_of_the_ratio_is_its_full_value() -> None:
    run = random_run()
    batch = columns(run, ETAS[1], "ratio")
    true, linear = batch.estimate(batch.sums)
    table = subset_moments({"run_01": run}, [ETAS[1]], 5, references={ETAS[1]: -0.5})
    sd = err_rel_standard_error(run, ETAS[1], 5, reference=-0.5, population="run")
    assert table.to_dict("records") == [
        {"run": "run_01", "eta": ETAS[1], "mean": float(linear - true) / -0.5, "sd": sd}
    ]


def test_the_moments_of_the_partial_sum_are_exact() -> None:
    run = random_run()
    [row] = subset_moments({"run_01": run}, [ETAS[0]], 5, estimator="partial_sum").to_dict("records")
    [exact] = explain_partial_sum({"run_01": run}, [ETAS[0]], 5).to_dict("records")
    assert (row["mean"], row["sd"]) == pytest.approx((exact["partial_sum_mean"], exact["partial_sum_sd"]), rel=1e-9)


def test_the_spread_falls_with_the_root_of_n_and_to_nothing_at_the_whole_run(large_runs: dict[str, Run]) -> None:
    table = spread_by_size(large_runs, 1.6e-6, [64, 256, 1024, 2048, 4096], num_samples=2000).set_index("n")
    assert table["fresh"][64] == pytest.approx(2 * table["fresh"][256], rel=1e-12)
    assert table["subset"][1024] == pytest.approx(table["fresh"][1024] * np.sqrt(0.5), rel=1e-12)
    assert (table["drawn"] / table["subset"]).dropna().to_numpy() == pytest.approx(1, abs=0.04)
    assert table.loc[[2048, 4096], ["subset", "drawn"]].isna().all(axis=None)


def test_a_reference_of_zero_gives_nan() -> None:
    assert np.isnan(err_rel_standard_error(random_run(), ETAS[0], reference=0.0))


def test_sizes_around_are_powers_of_two_from_sixteen_to_twice_the_largest() -> None:
    assert sizes_around(64, 64) == [16, 32, 64, 128]
    assert sizes_around(100, 127) == [16, 32, 64, 100, 128]
    assert sizes_around(5, 7) == [5]


@pytest.mark.parametrize("given", [{}, {"num_samples": 30, "seed": 5}])
def test_drawn_spreads_are_those_of_disjoint_subsets_over_the_mean_true_total(given: dict[str, int]) -> None:
    runs = {"run_01": random_run(seed=1), "run_02": random_run(seed=2)}
    [row] = spread_by_size(runs, ETAS[0], [4], **given).to_dict("records")
    reference = reference_true_totals(runs)[ETAS[0]]
    how = {"num_samples": 1000, "seed": 0, **given}
    variances = [
        simulate_err_rel(run, ETAS[0], 4, estimator="ratio", sampler="disjoint", reference=reference, **how).var(ddof=1)
        for run in runs.values()
    ]
    assert row["drawn"] == pytest.approx(np.sqrt(np.mean(variances)), rel=1e-12)
    assert row["fresh"] == typical_standard_error(runs, ETAS[0], 4, reference=reference)


def test_too_large_a_subset_is_refused_by_the_name_of_the_argument() -> None:
    with pytest.raises(ValueError, match="n must be at most 12, the sequences of the largest run, got 13"):
        subset_moments({"run_01": random_run()}, [ETAS[0]], 13)


def test_moments_over_a_weak_reference_of_its_own_are_doubted_by_the_name_of_the_run() -> None:
    run = random_run(seed=4)
    weak = dataclasses.replace(
        run, measurements=tuple(dataclasses.replace(m, delta_h_true=1e-9) for m in run.measurements)
    )
    with pytest.warns(RunWarning, match="the true total of weak at eta 1e-06, 1e-09, is within 3 standard errors"):
        subset_moments({"weak": weak}, [ETAS[0]], 4)
    with pytest.warns(RunWarning, match="the true total of run 4 at eta 1e-06, 1e-09, is within 3 standard errors"):
        err_rel_standard_error(weak, ETAS[0])
