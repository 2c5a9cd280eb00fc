from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from analysis_helpers import (
    Comparison,
    Run,
    RunError,
    collect_err_rel_across_runs,
    compare_err_rel_distributions,
    reference_true_totals,
    simulate_err_rel,
)
from analysis_helpers._checks import FloatArray
from analysis_helpers.err_rel import explain_partial_sum
from analysis_helpers.estimators import EstimatorName
from tests.building import ETAS, plain_estimate, random_run

LARGE = {"run_01": random_run(12, 1), "run_02": random_run(12, 2)}
SMALL = {"run_01": random_run(5, 3), "run_02": random_run(5, 4), "run_03": random_run(5, 5)}


def compare(estimator: EstimatorName) -> Comparison:
    return compare_err_rel_distributions(
        LARGE, SMALL, ETAS[0], sample_size=5, num_samples=40, seed=6, estimator=estimator
    )


def values_of(comparison: Comparison, run: str) -> FloatArray:
    return comparison.synthetic.loc[comparison.synthetic["run"] == run, "err_rel"].to_numpy()


def test_the_partial_sum_is_divided_by_each_runs_own_total_and_actual_runs_by_the_reference() -> None:
    comparison = compare("partial_sum")
    for name, run in LARGE.items():
        own = simulate_err_rel(run, ETAS[0], 5, num_samples=40, seed=6)
        assert values_of(comparison, name) == pytest.approx(own, rel=1e-10)
    assert comparison.reference_total == reference_true_totals(LARGE)[ETAS[0]]
    actual = collect_err_rel_across_runs(SMALL, ETAS[0], comparison.reference_total)
    assert comparison.actual.equals(actual)


def test_the_ratio_is_divided_by_the_reference_on_both_sides() -> None:
    comparison = compare("ratio")
    for name, run in LARGE.items():
        common = simulate_err_rel(
            run, ETAS[0], 5, num_samples=40, seed=6, estimator="ratio", reference=comparison.reference_total
        )
        assert values_of(comparison, name) == pytest.approx(common, rel=1e-10)
    assert comparison.actual["err_rel"].to_numpy() == pytest.approx(compare("partial_sum").actual["err_rel"], rel=1e-9)


def test_the_summary_is_one_row_over_all_subsets() -> None:
    comparison = compare("ratio")
    assert list(comparison.synthetic.columns) == ["run", "err_rel"]
    assert list(comparison.actual.columns) == ["run", "eta", "err_rel"]
    [row] = comparison.summary.to_dict("records")
    values = comparison.synthetic["err_rel"].to_numpy()
    assert list(row)[3:] == ["synthetic_mean", "synthetic_std", "synthetic_min", "synthetic_max", "actual_values"]
    assert [row["estimator"], row["subset_size"], row["eta"]] == ["ratio", comparison.sample_size, comparison.eta]
    assert len(values) == 80
    assert row["synthetic_std"] == pytest.approx(values.std(ddof=1))
    assert (row["synthetic_min"], row["synthetic_max"]) == (values.min(), values.max())
    assert row["actual_values"] == comparison.actual["err_rel"].tolist()


def test_large_runs_that_cannot_take_part_do_not_enter_the_reference() -> None:
    with pytest.warns(UserWarning, match="skipped run_03: it has 4 sequences, fewer than sample_size 5"):
        comparison = compare_err_rel_distributions(
            {**LARGE, "run_03": random_run(4, 9)}, SMALL, ETAS[0], sample_size=5, num_samples=4
        )
    assert comparison.reference_total == reference_true_totals(LARGE)[ETAS[0]]


def test_large_and_small_runs_must_hold_the_same_linear_term() -> None:
    with pytest.raises(
        RunError, match=r"small run_01: .*denom_corr_unscaled is recorded in some runs and not in these"
    ):
        compare_err_rel_distributions(
            LARGE, {"run_01": random_run(5, score=False)}, ETAS[0], sample_size=5, num_samples=4
        )


def test_a_comparison_knows_the_sizes_of_its_actual_runs(
    large_runs: dict[str, Run], small_runs: dict[str, Run]
) -> None:
    found = compare_err_rel_distributions(large_runs, small_runs, 1.6e-6, sample_size=64, num_samples=5)
    assert found.actual_sizes == (256,) * 4


@pytest.mark.parametrize("size", [1, 3, 7])
def test_moments_are_those_of_all_subsets_of_a_tiny_run(size: int) -> None:
    run = random_run(7)
    every = []
    for chosen in combinations(range(7), size):
        true, linear = plain_estimate(run, ETAS[0], list(chosen), "partial_sum")
        every.append((linear - true) / run.measurement(ETAS[0]).delta_h_true)
    [row] = explain_partial_sum({"run_01": run}, [ETAS[0]], size).to_dict("records")
    assert row["partial_sum_mean"] == pytest.approx(np.mean(every), rel=1e-10)
    assert row["partial_sum_sd"] == pytest.approx(np.std(every), rel=1e-9, abs=1e-15)


def test_moments_are_those_of_the_draws(large_runs: dict[str, Run]) -> None:
    # 4,000 draws: the mean has a standard error of sd / 63, the SD one of sd / 89; 4 of them fail with probability
    # 1e-4.
    run = large_runs["run_04"]
    values = simulate_err_rel(run, 1.6e-6, num_samples=4000, seed=3)
    [row] = explain_partial_sum({"run_04": run}, [1.6e-6], 256).to_dict("records")
    mean, sd = row["partial_sum_mean"], row["partial_sum_sd"]
    assert abs(values.mean() - mean) < 4 * sd / np.sqrt(4000)
    assert values.std(ddof=1) == pytest.approx(sd, rel=4 / np.sqrt(8000))


def test_the_mean_is_n_over_n_of_the_full_error(large_runs: dict[str, Run]) -> None:
    table = explain_partial_sum(large_runs, [1.6e-6, 3.2e-6], 256)
    assert len(table) == 8
    assert table["partial_sum_mean"].to_numpy() == pytest.approx(table["full_err_rel"].to_numpy() / 8, rel=1e-12)


def test_most_of_the_spread_is_difference_in_base_entropy(large_runs: dict[str, Run]) -> None:
    table = explain_partial_sum(large_runs, [1.6e-6, 3.2e-6], 256)
    assert table["base_entropy_share"].between(0.9, 1.0).all()


def test_a_run_without_differences_in_base_entropy_has_no_such_spread() -> None:
    rng = np.random.default_rng(0)
    size = 400
    run = Run.from_arrays(
        token_counts=np.full(size, 10),
        h_base=5 + rng.normal(0, 1e-4, size),
        h_new={1e-6: 4 + rng.normal(0, 0.1, size)},
        log_weights={1e-6: np.zeros(size)},
        gdotv=rng.normal(size=size),
    )
    [share] = explain_partial_sum({"run_01": run}, [1e-6], 100)["base_entropy_share"]
    assert share < 0.05  # squared correlation of independent values: above 0.05 with p = 7e-6
