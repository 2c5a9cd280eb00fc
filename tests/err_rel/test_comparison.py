from itertools import combinations

import numpy as np
import pytest

import analysis_helpers as ah
from analysis_helpers._checks import RunWarning
from analysis_helpers.estimators import EstimatorName
from analysis_helpers.plots import plot_err_rel_comparison, plot_prediction
from tests.building import ETAS, Runs, plain_estimate, random_run

LARGE = {"run_01": random_run(12, 1), "run_02": random_run(12, 2)}
SMALL = {"run_01": random_run(5, 3), "run_02": random_run(6, 4), "run_03": random_run(5, 5)}


def compare(estimator: EstimatorName) -> ah.Comparison:
    return ah.compare_err_rel_distributions(
        LARGE, SMALL, ETAS[0], sample_size=5, num_samples=40, seed=6, estimator=estimator
    )


@pytest.mark.parametrize(("estimator", "own"), [("partial_sum", True), ("ratio", False)])
def test_only_the_partial_sum_is_divided_by_each_runs_own_total_and_actual_runs_by_the_reference(
    estimator: EstimatorName, own: bool
) -> None:
    found, reference = compare(estimator), ah.reference_true_totals(LARGE)[ETAS[0]]
    assert found.reference_total == reference
    for name, run in LARGE.items():
        values = found.synthetic.loc[found.synthetic["run"] == name, "err_rel"].to_numpy()
        alone = ah.simulate_err_rel(
            run, ETAS[0], 5, num_samples=40, seed=6, estimator=estimator, reference=None if own else reference
        )
        assert values == pytest.approx(alone, rel=1e-10)
    assert found.actual.equals(ah.collect_err_rel_across_runs(SMALL, ETAS[0], reference, estimator=estimator))
    assert found.actual_sizes == (5, 6, 5)


def test_the_summary_is_one_row_over_all_subsets() -> None:
    comparison = compare("ratio")
    assert list(comparison.synthetic.columns) == ["run", "err_rel"]
    assert list(comparison.actual.columns) == ["run", "eta", "err_rel"]
    [row] = comparison.summary.to_dict("records")
    values = comparison.synthetic["err_rel"].to_numpy()
    assert len(values) == 80
    assert list(row.values())[:3] == ["ratio", 5, ETAS[0]]
    moments = [row[f"synthetic_{name}"] for name in ("mean", "std", "min", "max")]
    assert moments == pytest.approx([values.mean(), values.std(ddof=1), values.min(), values.max()])
    assert row["actual_values"] == comparison.actual["err_rel"].tolist()


def test_large_runs_that_cannot_take_part_do_not_enter_the_reference() -> None:
    with pytest.warns(RunWarning, match="skipped run_03: .*4 sequences"):
        comparison = ah.compare_err_rel_distributions(
            {**LARGE, "run_03": random_run(4, 9)}, SMALL, ETAS[0], sample_size=5, num_samples=4
        )
    assert comparison.reference_total == ah.reference_true_totals(LARGE)[ETAS[0]]


@pytest.mark.parametrize("size", [1, 3, 7])
def test_moments_are_those_of_all_subsets_of_a_tiny_run(size: int) -> None:
    run = random_run(7)
    every = []
    for chosen in combinations(range(7), size):
        true, linear = plain_estimate(run, ETAS[0], chosen, "partial_sum")
        every.append((linear - true) / run.measurement(ETAS[0]).delta_h_true)
    [row] = ah.explain_partial_sum({"run_01": run}, [ETAS[0]], size).to_dict("records")
    assert row["partial_sum_mean"] == pytest.approx(np.mean(every), rel=1e-10)
    assert row["partial_sum_sd"] == pytest.approx(np.std(every), rel=1e-9, abs=1e-15)


def test_the_mean_is_a_share_of_the_full_error_and_most_of_the_spread_is_base_entropy(
    large_runs: Runs,
) -> None:
    table = ah.explain_partial_sum(large_runs, [1.6e-6, 3.2e-6], 256)
    assert len(table) == 8
    assert table["partial_sum_mean"].to_numpy() == pytest.approx(table["full_err_rel"].to_numpy() / 8, rel=1e-12)
    assert table["base_entropy_share"].between(0.9, 1.0).all()


def test_a_run_without_differences_in_base_entropy_has_no_such_spread() -> None:
    rng = np.random.default_rng(0)
    size = 400
    run = ah.Run.from_arrays(
        token_counts=np.full(size, 10),
        h_base=5 + rng.normal(0, 1e-4, size),
        h_new={1e-6: 4 + rng.normal(0, 0.1, size)},
        log_weights={1e-6: np.zeros(size)},
        gdotv=rng.normal(size=size),
    )
    [share] = ah.explain_partial_sum({"run_01": run}, [1e-6], 100)["base_entropy_share"]
    assert share < 0.05  # squared correlation of independent values: above 0.05 with p = 7e-6


def test_small_runs_are_not_needed(large_runs: Runs) -> None:
    found = ah.compare_err_rel_distributions(large_runs, {}, 1.6e-6, sample_size=64, num_samples=10, estimator="ratio")
    assert (len(found.synthetic), len(found.actual), found.summary["actual_values"][0]) == (40, 0, [])
    checked = ah.check_prediction(large_runs, {}, 1.6e-6)
    assert checked.empty
    figure = plot_prediction(ah.predict_err_rel(large_runs, 1.6e-6, 64), checked)
    for axes in (plot_err_rel_comparison(found), figure.axes[0]):
        assert "actual runs of" not in axes.get_title()
