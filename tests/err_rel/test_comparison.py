from itertools import combinations

import numpy as np
import pytest

import analysis_helpers as ah
from analysis_helpers._checks import RunWarning
from analysis_helpers.plots import plot_err_rel_comparison, plot_prediction
from tests.building import ETAS, Runs, in_prompts, plain_estimate, random_run

LARGE = {"run_01": random_run(12, 1), "run_02": random_run(12, 2)}
SMALL = {"run_01": random_run(5, 3), "run_02": random_run(6, 4), "run_03": random_run(5, 5)}


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


def test_the_partial_sum_is_explained_by_sequence_where_prompts_are_recorded_too() -> None:
    run = random_run(40)
    plain, grouped = (ah.explain_partial_sum({"run": each}, [ETAS[0]], 8) for each in (run, in_prompts(run, 4)))
    assert grouped.equals(plain)


def test_small_runs_are_not_needed(large_runs: Runs) -> None:
    found = ah.compare_err_rel_distributions(large_runs, {}, 1.6e-6, sample_size=64, num_samples=10, estimator="ratio")
    assert (len(found.synthetic), len(found.actual), found.summary["actual_values"][0]) == (40, 0, [])
    checked = ah.check_prediction(large_runs, {}, 1.6e-6)
    assert checked.empty
    figure = plot_prediction(ah.predict_err_rel(large_runs, 1.6e-6, 64), checked)
    for axes in (plot_err_rel_comparison(found), figure.axes[0]):
        assert "actual runs of" not in axes.get_title()
