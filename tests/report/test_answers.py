from __future__ import annotations

import re

import pandas as pd
import pytest

from analysis_helpers import (
    Run,
    budget_table,
    compare_err_rel_distributions,
    health_of_batches,
    plan_batch_sizes,
    run_totals,
    sample_err_rel_across_runs,
    summarize_err_rel_distribution,
    verdict,
)
from analysis_helpers.report import (
    describe_comparison,
    describe_distribution,
    describe_exploration,
    describe_plans,
    describe_runs,
    describe_validation,
    describe_verdict,
)
from analysis_helpers.synthetic import read_calibration
from tests.building import totals_only_run

ETAS = [1.6e-6, 3.2e-6]


def numbers(sentences: list[str]) -> list[float]:
    """Return the numbers in an answer, which has at most three sentences."""
    assert len(sentences) <= 3
    found = re.findall(r"(?<![\w.])[-+]?\d[\d,]*\.?\d*(?:e-\d+)?", " ".join(sentences))
    return [float(number.replace(",", "")) for number in found]


def test_runs_are_counted_and_their_mean_changes_stated(large_runs: dict[str, Run]) -> None:
    files = pd.DataFrame({"batch": ["E_2048"] * 4, "run": list(large_runs), "problem": "", "same_as": ""})
    totals = run_totals({"E_2048": large_runs})
    found = numbers(describe_runs(files, totals, health_of_batches({"E_2048": large_runs})))
    mean = totals.loc[totals["eta"] == ETAS[0], "true"].mean() * 1e3
    assert {4.0, ETAS[0], round(mean, 3)} <= set(found)


def test_a_problem_is_named_and_an_error_that_is_not_known_left_out() -> None:
    runs = {"E_2": {"run_01": totals_only_run()}}
    files = pd.DataFrame({"batch": ["E_2"], "run": ["run_01"], "problem": ["file is odd"], "same_as": [""]})
    said = describe_runs(files, run_totals(runs), health_of_batches(runs))
    assert "E_2/run_01: file is odd" in said[0]
    assert "linear -0.005." in said[1]


@pytest.mark.parametrize("eta", ETAS)
def test_a_comparison_states_spread_and_actual_runs(
    large_runs: dict[str, Run], small_runs: dict[str, Run], eta: float
) -> None:
    both = [
        compare_err_rel_distributions(large_runs, small_runs, eta, num_samples=50, estimator=estimator)
        for estimator in ("partial_sum", "ratio")
    ]
    found = numbers(describe_comparison(both[0], both[1], large_runs))
    values = [round(comparison.synthetic["err_rel"].std(), 2) for comparison in both]
    assert {*values, *(round(value, 2) for value in both[1].actual["err_rel"])} <= set(found)


def test_the_cause_of_a_spread_is_stated_only_where_two_etas_show_it(large_runs: dict[str, Run]) -> None:
    tables = [
        summarize_err_rel_distribution(sample_err_rel_across_runs(large_runs, ETAS, estimator=estimator))
        for estimator in ("partial_sum", "ratio")
    ]
    assert "not the step" in describe_distribution(tables[0], tables[1], 256)[-1]
    assert "not the step" not in describe_distribution(tables[1], tables[1], 256)[-1]
    one = [table.head(1) for table in tables]
    assert "One eta" in describe_distribution(one[0], one[1], 256)[-1]


def test_plans_state_sizes_or_that_there_is_none(large_runs: dict[str, Run]) -> None:
    budget = budget_table(large_runs, ETAS[0])
    plans = plan_batch_sizes(large_runs, ETAS, tolerance=1.0)
    assert set(map(float, plans["n"])) <= set(numbers(describe_plans(plans, budget, 1.0, 0.9)))
    none = plan_batch_sizes(large_runs, ETAS[:1], tolerance=1e-6)
    assert "no number is enough" in describe_plans(none, budget, 1e-6, 0.9)[0]


def test_validation_states_the_worst_rates() -> None:
    tables = read_calibration().tables
    found = numbers(describe_validation(tables["verdicts"], tables["coverage"], tables["estimates"]))
    assert round(100 * tables["verdicts"].query("truth == 'no'")["yes"].max()) in found


def test_a_verdict_and_an_exploration_state_both_answers(large_runs: dict[str, Run]) -> None:
    found = verdict(large_runs, ETAS[0], 64)
    for sentences in (describe_verdict(found), describe_exploration(0.1, 0.5, None, found)):
        assert found.enough.capitalize() in " ".join(sentences)
        assert 64.0 in numbers(sentences)
