import re

import pandas as pd
import pytest

import analysis_helpers as ah
from analysis_helpers import Runs, inference
from analysis_helpers.estimators import EstimatorName
from analysis_helpers.notebook import (
    describe_comparison,
    describe_distribution,
    describe_exploration,
    describe_linearity,
    describe_plans,
    describe_runs,
    describe_verdict,
)
from tests.building import totals_only_run

ETAS = [1.6e-6, 3.2e-6]
ESTIMATORS: tuple[EstimatorName, ...] = ("partial_sum", "ratio")


def numbers(sentences: list[str]) -> list[float]:
    """Return the numbers in an answer, which has at most three sentences."""
    assert len(sentences) <= 3
    found = re.findall(r"(?<![\w.])[-+]?\d[\d,]*\.?\d*(?:e-\d+)?", " ".join(sentences))
    return [float(number.replace(",", "")) for number in found]


def test_runs_are_counted_their_mean_changes_stated_and_problems_named(large_runs: Runs) -> None:
    files = pd.DataFrame({"batch": ["E_2048"] * 4, "run": list(large_runs), "problem": "", "same_as": ""})
    totals, health = inference.run_totals({"E_2048": large_runs}), inference.health_of_batches({"E_2048": large_runs})
    mean = totals.loc[totals["eta"] == ETAS[0], "true"].mean() * 1e3
    assert {4.0, ETAS[0], round(mean, 2)} <= set(numbers(describe_runs(files, totals, health, ETAS[0])))
    assert ETAS[1] in numbers(describe_runs(files, totals, health, ETAS[1] * (1 + 1e-9)))
    runs = {"E_2": {"run_01": totals_only_run()}}  # whose linear change has no standard error
    files = pd.DataFrame({"batch": ["E_2"], "run": ["run_01"], "problem": ["file is odd"], "same_as": [""]})
    said = " ".join(describe_runs(files, inference.run_totals(runs), inference.health_of_batches(runs), 1e-6))
    assert "E_2/run_01: file is odd" in said
    assert "nan" not in said


@pytest.mark.parametrize("eta", ETAS)
def test_a_comparison_states_spread_and_actual_runs(large_runs: Runs, small_runs: Runs, eta: float) -> None:
    one, other = (
        ah.compare_err_rel_distributions(large_runs, small_runs, eta, num_samples=50, estimator=e) for e in ESTIMATORS
    )
    values = [*(found.synthetic["err_rel"].std() for found in (one, other)), *other.actual["err_rel"]]
    assert {round(value, 2) for value in values} <= set(numbers(describe_comparison(one, other, large_runs)))


def test_actual_runs_of_another_size_than_the_subsets_are_not_counted_as_near(
    large_runs: Runs, small_runs: Runs
) -> None:
    one, other = (
        ah.compare_err_rel_distributions(large_runs, small_runs, ETAS[0], sample_size=64, num_samples=50, estimator=e)
        for e in ESTIMATORS
    )
    assert numbers(describe_comparison(one, other, large_runs)[-1:])[:2] == [256, 64]


def test_the_cause_of_a_spread_is_stated_only_where_two_etas_show_it(large_runs: Runs) -> None:
    draws = (ah.sample_err_rel_across_runs(large_runs, ETAS, estimator=e) for e in ESTIMATORS)
    one, other = map(ah.summarize_err_rel_distribution, draws)
    # The partial sum's spread halves as eta doubles, the ratio's does not.
    said = [describe_distribution(*tables, 256)[-1] for tables in ((one, other), (other, other))]
    said.append(describe_distribution(one.head(1), other.head(1), 256)[-1])
    assert len(set(said)) == 3


def test_plans_state_sizes_or_that_there_is_none(large_runs: Runs) -> None:
    budget, estimators = inference.budget_table(large_runs, ETAS[0]), inference.estimator_table(large_runs, ETAS[0])
    plans = inference.plan_batch_sizes(large_runs, ETAS, tolerance=1.0)
    found = numbers(describe_plans(plans, estimators, budget, 1.0, 0.9))
    assert {*map(float, plans["n"]), *map(float, estimators["sequences"])} <= set(found)
    none = inference.plan_batch_sizes(large_runs, ETAS[:1], tolerance=1e-6)
    said = " ".join(describe_plans(none, estimators, budget, 1e-6, 0.9))
    assert "unbounded at eta" in said
    assert "unbounded to" not in said


def test_linearity_states_the_largest_eta_and_the_error_of_recorded_terms(large_runs: Runs) -> None:
    off, parts = ah.nonlinearity(large_runs), inference.decomposition_table(large_runs, ETAS[:1])
    for tolerance, found in ((0.25, True), (1e-4, False)):
        answers = ah.verdict_map(large_runs, tolerance=tolerance)
        said = describe_linearity(off, parts, answers, tolerance=0.25, probability=0.9)
        assert (ETAS[1] in numbers(said[:1])) == found
    pooled = parts[parts["run"] == "pooled"].iloc[0]
    assert round(pooled["linear_minus_matched"], 2) in numbers(said)


def test_a_verdict_states_both_answers_and_an_exploration_its_spread(large_runs: Runs) -> None:
    found = ah.verdict(large_runs, ETAS[0], 64)
    sentences = describe_verdict(found)
    for answer in found.answers.values():
        assert answer.answer.capitalize() in " ".join(sentences)
        assert {round(answer.low, 2), round(answer.high, 2)} <= set(numbers(sentences))
    one_run = ah.verdict(dict(list(large_runs.items())[:1]), ETAS[0], 64)  # which does not show how updates differ
    assert "next update" not in " ".join(describe_verdict(one_run))
    assert {ETAS[0], 64, 0.1, 0.5} <= set(numbers(describe_exploration(0.1, 0.5, found)))
