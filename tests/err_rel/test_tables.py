from itertools import combinations, product
from typing import Any

import numpy as np
import pandas as pd
import pytest

import analysis_helpers as ah
from analysis_helpers._checks import RunWarning
from analysis_helpers.err_rel.tables import supported_estimators
from analysis_helpers.estimators import EstimatorName
from tests.building import ETAS, Runs, plain_estimate, random_run
from tests.plain.estimates import ESTIMATORS

RUNS = {"run_01": random_run(seed=1), "run_02": random_run(seed=2), "run_03": random_run(9, seed=3)}
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
