from __future__ import annotations

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
from analysis_helpers.checks import FloatArray
from analysis_helpers.comparison import actual_among_subsets, comparison_table
from tests.building import ETAS, random_run

LARGE = {"run_01": random_run(12, 1), "run_02": random_run(12, 2)}
SMALL = {"run_01": random_run(5, 3), "run_02": random_run(5, 4), "run_03": random_run(5, 5)}


def compare(estimator: str) -> Comparison:
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
    assert list(row) == ["eta", "synthetic_mean", "synthetic_std", "synthetic_min", "synthetic_max", "actual_values"]
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


def test_tables_of_several_comparisons_say_which_estimator_and_size() -> None:
    table = comparison_table([compare("partial_sum"), compare("ratio")])
    assert table["estimator"].tolist() == ["partial_sum", "ratio"]
    assert table["subset_size"].tolist() == [5, 5]


def test_actual_runs_are_placed_among_the_subsets() -> None:
    comparison = compare("ratio")
    placed = actual_among_subsets(comparison)
    values = comparison.synthetic["err_rel"].to_numpy()
    for row in placed.to_dict("records"):
        assert row["share_below"] == np.mean(values < row["err_rel"])
        assert row["sds_from_mean"] == pytest.approx((row["err_rel"] - values.mean()) / values.std(ddof=1))


def test_a_small_batch_behaves_like_a_piece_of_a_large_one_on_sample_data(
    large_runs: dict[str, Run], small_runs: dict[str, Run]
) -> None:
    # Four actual runs within 4 SD of the subsets: fails by chance with probability 3e-4.
    comparison = compare_err_rel_distributions(large_runs, small_runs, 1.6e-6, num_samples=200, estimator="ratio")
    assert actual_among_subsets(comparison)["sds_from_mean"].abs().max() < 4


def test_a_comparison_knows_the_sizes_of_its_actual_runs(
    large_runs: dict[str, Run], small_runs: dict[str, Run]
) -> None:
    found = compare_err_rel_distributions(large_runs, small_runs, 1.6e-6, sample_size=64, num_samples=5)
    assert found.actual_sizes == (256,) * 4
