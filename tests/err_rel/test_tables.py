from __future__ import annotations

import dataclasses
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis_helpers import (
    Run,
    RunError,
    aggregate_err_rel,
    collect_err_rel_across_runs,
    per_sequence_contributions,
    reference_true_totals,
    sample_err_rel_across_runs,
    simulate_err_rel,
    simulate_err_rel_across_runs,
    summarize_err_rel_distribution,
)
from analysis_helpers.err_rel.tables import supported_estimators
from analysis_helpers.estimators import ESTIMATORS, EstimatorName
from tests.building import ETAS, plain_estimate, random_run, totals_only_run

RUNS = {"run_01": random_run(seed=1), "run_02": random_run(seed=2), "run_03": random_run(9, seed=3)}
every_estimator = pytest.mark.parametrize("estimator", ESTIMATORS)


def plain_err_rel(run: Run, eta: float, chosen: list[int], estimator: str, reference: float | None = None) -> float:
    true, linear = plain_estimate(run, eta, chosen, estimator)
    return (linear - true) / (run.measurement(eta).delta_h_true if reference is None else reference)


def test_the_aggregate_is_linear_minus_true_over_the_total() -> None:
    assert aggregate_err_rel([1.0, 2.0], [2.5, 2.5], 4.0) == 0.5
    assert np.isnan(aggregate_err_rel([1.0], [2.0], 0.0))
    with pytest.raises(ValueError, match=r"must have the same shape, got \(2,\) and \(1,\)"):
        aggregate_err_rel([1.0, 2.0], [2.0], 1.0)


@every_estimator
@pytest.mark.parametrize("eta", ETAS)
def test_one_run_starts_one_stream_and_draws_one_choice_a_subset(estimator: EstimatorName, eta: float) -> None:
    run, rng = RUNS["run_01"], np.random.default_rng(3)
    values = simulate_err_rel(run, eta, 5, num_samples=7, seed=3, estimator=estimator)
    plain = [plain_err_rel(run, eta, rng.choice(12, size=5, replace=False).tolist(), estimator) for _ in range(7)]
    assert values == pytest.approx(plain, rel=1e-10)


def test_the_partial_sum_is_the_originals_loop_over_contributions() -> None:
    run, rng = RUNS["run_01"], np.random.default_rng(0)
    true_seq, linear_seq = per_sequence_contributions(run, ETAS[0])
    plain = []
    for _ in range(20):
        chosen = rng.choice(run.num_sequences, size=4, replace=False)
        plain.append(aggregate_err_rel(true_seq[chosen], linear_seq[chosen], float(true_seq.sum())))
    assert simulate_err_rel(run, ETAS[0], 4, num_samples=20) == pytest.approx(plain, rel=1e-10)


@every_estimator
def test_several_runs_give_the_numbers_of_each_run_alone(estimator: EstimatorName) -> None:
    table = simulate_err_rel_across_runs(RUNS, ETAS, 4, num_samples=6, seed=9, estimator=estimator)
    assert list(table.columns) == ["run", "eta", "err_rel"]
    assert len(table) == 3 * 2 * 6
    for name, run in RUNS.items():
        for eta in ETAS:
            together = table.loc[(table["run"] == name) & (table["eta"] == eta), "err_rel"]
            alone = simulate_err_rel(run, eta, 4, num_samples=6, seed=9, estimator=estimator)
            assert together.to_numpy() == pytest.approx(alone, rel=1e-10)


@every_estimator
def test_sampling_across_runs_draws_from_one_stream_over_eta_then_run_then_subset(estimator: EstimatorName) -> None:
    table = sample_err_rel_across_runs(RUNS, ETAS, subset_size=4, samples_per_eta=3, seed=11, estimator=estimator)
    rng, plain = np.random.default_rng(11), []
    for eta in ETAS:
        for name, run in RUNS.items():
            for _ in range(3):
                chosen = rng.choice(run.num_sequences, size=4, replace=False).tolist()
                plain.append((name, eta, plain_err_rel(run, eta, chosen, estimator)))
    expected = pd.DataFrame(plain, columns=["run", "eta", "err_rel"])
    pd.testing.assert_frame_equal(table, expected, rtol=1e-10)


@pytest.mark.parametrize("estimator", ["partial_sum", "ratio"])
def test_a_subset_of_all_sequences_gives_the_full_batch_value(estimator: EstimatorName) -> None:
    run = RUNS["run_01"]
    [value] = simulate_err_rel(run, ETAS[0], 12, num_samples=1, estimator=estimator)
    true, linear = run.measurement(ETAS[0]).delta_h_true, ETAS[0] * run.delta_h_per_lr
    assert value == pytest.approx((linear - true) / true, rel=1e-10)


@every_estimator
def test_draws_have_the_mean_and_spread_of_all_subsets(estimator: EstimatorName) -> None:
    # All 220 subsets of 3 out of 12. With 20,000 draws the mean is off by 4 SE with probability 6e-5; the SD by 5 %
    # with less.
    run = RUNS["run_02"]
    every = np.array([plain_err_rel(run, ETAS[1], list(c), estimator) for c in combinations(range(12), 3)])
    values = simulate_err_rel(run, ETAS[1], 3, num_samples=20_000, seed=1, estimator=estimator)
    assert abs(values.mean() - every.mean()) < 4 * every.std() / np.sqrt(20_000)
    assert values.std() == pytest.approx(every.std(), rel=0.05)


def test_a_given_reference_is_divided_by() -> None:
    own = simulate_err_rel(RUNS["run_01"], ETAS[0], 4, num_samples=5)
    common = simulate_err_rel(RUNS["run_01"], ETAS[0], 4, num_samples=5, reference=-2.0)
    assert common * -2.0 == pytest.approx(own * RUNS["run_01"].measurements[0].delta_h_true, rel=1e-12)
    references = {ETAS[0]: -2.0, ETAS[1]: -4.0}
    table = simulate_err_rel_across_runs(RUNS, ETAS, 4, num_samples=5, references=references)
    assert table["err_rel"].to_numpy()[:5] == pytest.approx(common, rel=1e-12)
    sampled = sample_err_rel_across_runs(RUNS, ETAS, subset_size=4, samples_per_eta=5, references=references)
    assert sampled["err_rel"].to_numpy()[:5] == pytest.approx(common, rel=1e-12)


def test_a_reference_of_zero_gives_nan() -> None:
    assert np.isnan(simulate_err_rel(RUNS["run_01"], ETAS[0], 4, num_samples=3, reference=0.0)).all()


@pytest.mark.parametrize("estimator", ["partial_sum", "ratio"])
def test_collected_values_are_full_batch_errors_over_the_reference(estimator: EstimatorName) -> None:
    table = collect_err_rel_across_runs(RUNS, ETAS[0], -0.05, estimator=estimator)
    assert list(table["run"]) == list(RUNS)
    for name, value in zip(table["run"], table["err_rel"], strict=True):
        run = RUNS[name]
        full = (ETAS[0] * run.delta_h_per_lr - run.measurement(ETAS[0]).delta_h_true) / -0.05
        assert value == pytest.approx(full, rel=1e-9)


def test_runs_that_cannot_take_part_are_named_with_the_reason() -> None:
    shorter = dataclasses.replace(RUNS["run_02"], measurements=RUNS["run_02"].measurements[:1])
    runs = {**RUNS, "run_02": shorter}
    with pytest.warns(UserWarning, match="skipped run_0") as caught:
        table = sample_err_rel_across_runs(runs, ETAS, subset_size=10, samples_per_eta=2)
    assert {str(w.message) for w in caught} == {
        "skipped run_03: it has 9 sequences, fewer than subset_size 10",
        "skipped run_02: it has no eta 2e-06",
    }
    assert table.groupby("eta")["run"].unique().map(list).tolist() == [["run_01", "run_02"], ["run_01"]]
    with pytest.warns(UserWarning, match="skipped run_02: it has no eta 2e-06"):
        assert list(collect_err_rel_across_runs(runs, ETAS[1], -1.0)["run"]) == ["run_01", "run_03"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sample_size": 0}, "sample_size must be a whole number of at least 1, got 0"),
        ({"sample_size": 13}, "sample_size must be at most 12"),
        ({"sample_size": 4.0}, "sample_size must be a whole number of at least 1, got 4.0"),
        ({"num_samples": 0}, "num_samples must be a whole number of at least 1, got 0"),
        ({"estimator": "rato"}, "estimator must be one of 'partial_sum', 'ratio', 'matched', got 'rato'"),
        ({"sampler": "quick"}, "sampler must be one of 'sequential', 'disjoint', got 'quick'"),
        ({"etas": [3e-6]}, "none of run_01, run_02, run_03 has eta 3e-06; they have 1e-06, 2e-06"),
    ],
)
def test_bad_arguments_are_named_with_rule_and_value(changed: dict[str, Any], message: str) -> None:
    arguments = {"etas": ETAS, "sample_size": 4, "num_samples": 2, **changed}
    with pytest.raises(ValueError, match=message):
        simulate_err_rel_across_runs(RUNS, **arguments)


def test_a_single_run_names_the_argument_too() -> None:
    with pytest.raises(ValueError, match="sample_size must be at most 12, the number of sequences, got 13"):
        simulate_err_rel(RUNS["run_01"], ETAS[0], 13)


def test_a_totals_only_run_is_refused_by_field() -> None:
    with pytest.raises(RunError, match=r"approx.per_sequence\[\].gdotv is needed here"):
        simulate_err_rel(totals_only_run(), 1e-6, 1)


def test_the_summary_has_a_row_an_eta_with_unbiased_spread() -> None:
    df = pd.DataFrame({"run": "run_01", "eta": [2e-6, 1e-6, 1e-6, 1e-6], "err_rel": [0.5, 1.0, 2.0, 6.0]})
    table = summarize_err_rel_distribution(df)
    assert list(table.columns) == [
        "eta",
        "mean_err_rel",
        "std_err_rel",
        "var_err_rel",
        "min_err_rel",
        "max_err_rel",
        "num_samples",
    ]
    assert table["eta"].tolist() == [1e-6, 2e-6]
    assert table.iloc[0].tolist() == pytest.approx([1e-6, 3.0, np.sqrt(7.0), 7.0, 1.0, 6.0, 3])  # (4 + 1 + 9) / 2
    assert np.isnan(table["std_err_rel"].iloc[1])


def test_a_summary_of_something_else_says_which_columns_it_needs() -> None:
    with pytest.raises(ValueError, match=r"df must have the columns 'eta' and 'err_rel', got \['x'\]"):
        summarize_err_rel_distribution(pd.DataFrame({"x": [1.0]}))


def test_on_sample_data_subsets_of_the_ratio_scatter_around_the_full_batch_value(large_runs: dict[str, Run]) -> None:
    # The mean of 2,000 subsets of 256 has a standard error of 0.012; 5 of them, plus a ratio bias below 0.01.
    reference = reference_true_totals(large_runs)[1.6e-6]
    full = collect_err_rel_across_runs(large_runs, 1.6e-6, reference, estimator="ratio").set_index("run")["err_rel"]
    for name, run in large_runs.items():
        values = simulate_err_rel(run, 1.6e-6, num_samples=2000, estimator="ratio", reference=reference)
        assert abs(values.mean() - full[name]) < 0.07


def test_runs_of_exactly_the_subset_size_take_part() -> None:
    table = simulate_err_rel_across_runs(RUNS, [ETAS[0]], 9, num_samples=2)
    assert set(table["run"]) == set(RUNS)


def test_an_eta_given_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="etas must hold each step size once"):
        sample_err_rel_across_runs(RUNS, [1e-6, 1e-6 * (1 + 1e-9)], subset_size=4)


def test_samples_per_eta_is_named_as_such() -> None:
    with pytest.raises(ValueError, match="samples_per_eta must be a whole number of at least 1, got 0"):
        sample_err_rel_across_runs(RUNS, ETAS, subset_size=4, samples_per_eta=0)


def test_an_eta_only_in_runs_that_are_too_small_is_said_to_be_so() -> None:
    larger = dataclasses.replace(RUNS["run_01"], measurements=RUNS["run_01"].measurements[:1])
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(ValueError, match="no run with at least 10 sequences has eta 2e-06"),
    ):
        simulate_err_rel_across_runs({"run_01": larger, "run_03": RUNS["run_03"]}, [2e-6], 10)


def test_subsets_without_tokens_are_not_counted_and_are_warned_about() -> None:
    run = Run.from_arrays(
        token_counts=[0, 5, 0],
        h_base=[0, 2, 0],
        h_new={1e-6: [0, 1, 0]},
        log_weights={1e-6: [0, 0, 0]},
        gdotv=[0, 1, 0],
    )
    with pytest.warns(UserWarning, match="of 50 subsets hold no tokens or no weight: their err_rel is undefined"):
        values = simulate_err_rel(run, 1e-6, 1, num_samples=50, estimator="ratio", reference=-0.2)
    assert 0 < np.isnan(values).sum() < 50
    table = summarize_err_rel_distribution(pd.DataFrame({"eta": 1e-6, "err_rel": values}))
    assert table["num_samples"].tolist() == [np.isfinite(values).sum()]


def test_only_what_every_run_records_is_on_offer(large_runs: dict[str, Run]) -> None:
    assert supported_estimators(large_runs) == ["partial_sum", "ratio", "matched"]
    assert supported_estimators({"bare": random_run(score=False)}) == ["partial_sum", "ratio"]
