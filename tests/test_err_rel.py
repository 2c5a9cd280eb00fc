from itertools import combinations, product
from typing import Any

import numpy as np
import pandas as pd
import pytest

import analysis_helpers as ah
from analysis_helpers import Run, Runs, reference_true_totals
from analysis_helpers._checks import RunWarning
from analysis_helpers.estimators import (
    EstimatorName,
    own_total,
    reference_total,
    supported_estimators,
)
from analysis_helpers.plots import plot_err_rel_comparison, plot_prediction
from tests.building import ETAS, in_prompts, plain_estimate, random_run
from tests.plain.estimates import ESTIMATORS

TWO = {"run_01": random_run(seed=1), "run_02": random_run(seed=2)}
RUNS = {**TWO, "run_03": random_run(9, seed=3)}
LARGE = {"run_01": random_run(12, 1), "run_02": random_run(12, 2)}
SMALL = {"run_01": random_run(5, 3), "run_02": random_run(6, 4), "run_03": random_run(5, 5)}


def three_sequences(shift: float) -> Run:
    """Return a run with a true total of ``shift`` and a standard error of 0.1 / sqrt(3) = 0.0577."""
    h_new = {1e-6: [0.9 + shift, 1.1 + shift, 1 + shift]}
    return Run.from_arrays(
        token_counts=[1] * 3, h_base=[1.0] * 3, h_new=h_new, log_weights={1e-6: [0.0] * 3}, gdotv=[0.0] * 3
    )


def test_a_total_within_three_standard_errors_of_zero_is_warned_about_with_its_name_and_numbers() -> None:
    assert own_total(three_sequences(-0.18), 1e-6, "run_07") == pytest.approx(-0.18)  # a warning would be an error
    weak = three_sequences(-0.16)
    with pytest.warns(RunWarning, match=r"run_07 at eta 1e-06, -0.16, is within 3 standard errors \(0.0577\)"):
        own_total(weak, 1e-6, "run_07")
    weaker = three_sequences(-0.01)
    with pytest.warns(RunWarning, match=r"mean over the runs at eta 1e-06, -0.01, .*\(0.0408\)"):
        reference_total({"run_07": weaker, "run_08": weaker}, 1e-6)
    with pytest.warns(RunWarning, match="within 3 standard errors"):
        reference_true_totals({"run_07": weaker})


every_estimator = pytest.mark.parametrize("estimator", ESTIMATORS)


@every_estimator
def test_several_runs_give_the_numbers_of_each_run_alone(estimator: EstimatorName) -> None:
    # Nine sequences are all of the third run, which takes part.
    table = ah.simulate_err_rel_across_runs(RUNS, ETAS, 9, num_samples=6, seed=9, estimator=estimator)
    assert list(table.columns) == ["run", "eta", "err_rel"]
    assert len(table) == 3 * 2 * 6
    for eta, (name, run) in product(ETAS, RUNS.items()):
        together = table.loc[(table["run"] == name) & (table["eta"] == eta), "err_rel"].to_numpy()
        alone = ah.simulate_err_rel(run, eta, 9, num_samples=6, seed=9, estimator=estimator)
        assert together == pytest.approx(alone, rel=1e-10)
    last, own = {"run_03": RUNS["run_03"]}, RUNS["run_03"].measurements[1].delta_h_true
    whole = ah.collect_err_rel_across_runs(last, ETAS[1], own, estimator=estimator)["err_rel"].item()
    assert together == pytest.approx(whole, rel=1e-9)


@every_estimator
def test_draws_have_the_mean_and_spread_of_all_subsets(estimator: EstimatorName) -> None:
    # All 220 subsets of 3 out of 12. With 20,000 draws the mean is off by 4 SE with probability 6e-5; the SD by 5 %
    # with less.
    run = RUNS["run_02"]
    changes = (plain_estimate(run, ETAS[1], chosen, estimator) for chosen in combinations(range(12), 3))
    every = np.array([linear - true for true, linear in changes]) / run.measurements[1].delta_h_true
    values = ah.simulate_err_rel(run, ETAS[1], 3, num_samples=20_000, seed=1, estimator=estimator)
    assert abs(values.mean() - every.mean()) < 4 * every.std() / np.sqrt(20_000)
    assert values.std() == pytest.approx(every.std(), rel=0.05)


def test_subsets_without_tokens_are_not_counted_and_are_warned_about() -> None:
    arrays: dict[str, Any] = {"h_new": {1e-6: [0, 1, 0]}, "log_weights": {1e-6: [0, 0, 0]}, "gdotv": [0, 1, 0]}
    run = ah.Run.from_arrays(token_counts=[0, 5, 0], h_base=[0, 2, 0], **arrays)
    with pytest.warns(RunWarning, match="of 50 subsets hold no tokens or no weight"):
        values = ah.simulate_err_rel(run, 1e-6, 1, num_samples=50, estimator="ratio", reference=-0.2)
    assert 0 < np.isnan(values).sum() < 50
    table = ah.summarize_err_rel_distribution(pd.DataFrame({"eta": 1e-6, "err_rel": values}))
    assert table["num_samples"].tolist() == [np.isfinite(values).sum()]


def test_a_given_reference_is_divided_by() -> None:
    run = RUNS["run_01"]
    own, common, zero = (ah.simulate_err_rel(run, ETAS[0], 4, num_samples=5, reference=r) for r in (None, -2.0, 0.0))
    assert common * -2.0 == pytest.approx(own * run.measurements[0].delta_h_true, rel=1e-12)
    assert np.isnan([*zero, ah.aggregate_err_rel([1.0], [2.0], 0.0)]).all()
    references = {ETAS[0]: -2.0, ETAS[1]: -4.0}
    table = ah.simulate_err_rel_across_runs(RUNS, ETAS, 4, num_samples=5, references=references)
    sampled = ah.sample_err_rel_across_runs(RUNS, ETAS, subset_size=4, samples_per_eta=5, references=references)
    for found in (table, sampled):
        assert found["err_rel"].to_numpy()[:5] == pytest.approx(common, rel=1e-12)


def test_only_what_every_run_records_is_on_offer(large_runs: Runs) -> None:
    assert {"partial_sum", "ratio", "matched"} <= set(supported_estimators(large_runs))
    assert supported_estimators({**large_runs, "bare": random_run(score=False)}) == ["partial_sum", "ratio"]


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
