import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import analysis_helpers as ah
from analysis_helpers import Runs, inference
from analysis_helpers.estimators import EstimatorName
from analysis_helpers.notebook import (
    describe_comparison,
    describe_distribution,
    describe_exploration,
    describe_health,
    describe_linearity,
    describe_origin,
    describe_plans,
    describe_runs,
    describe_sampler,
    describe_verdict,
)
from analysis_helpers.synthetic.runs import with_log_weights
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
    said = describe_comparison(one, other, ah.predict_err_rel(large_runs, eta, other.sample_size))
    assert {round(value, 2) for value in values} <= set(numbers(said))


def test_actual_runs_of_another_size_than_the_subsets_are_not_counted_as_near(
    large_runs: Runs, small_runs: Runs
) -> None:
    one, other = (
        ah.compare_err_rel_distributions(large_runs, small_runs, ETAS[0], sample_size=64, num_samples=50, estimator=e)
        for e in ESTIMATORS
    )
    said = describe_comparison(one, other, ah.predict_err_rel(large_runs, ETAS[0], other.sample_size))
    assert numbers(said[-1:])[:2] == [256, 64]


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
    assert "no size is enough at eta" in said
    assert "unbounded to" not in said


def test_linearity_states_the_largest_eta_and_the_error_of_recorded_terms(large_runs: Runs) -> None:
    off, parts = ah.nonlinearity(large_runs), inference.decomposition_table(large_runs, ETAS[:1])
    for tolerance, found in ((0.25, True), (1e-4, False)):
        answers = ah.verdict_map(large_runs, tolerance=tolerance)
        said = describe_linearity(off, parts, answers, tolerance=0.25, probability=0.9)
        assert (ETAS[1] in numbers(said[:1])) == found
    pooled = parts[parts["run"] == "pooled"].iloc[0]
    assert round(pooled["linear_minus_matched"], 2) in numbers(said)


def test_a_verdict_states_both_answers_in_per_cent_and_the_batch_that_each_takes(large_runs: Runs) -> None:
    found = ah.verdict(large_runs, ETAS[0], 64)
    sentences = describe_verdict(found)
    for sentence, answer in zip(sentences, found.answers.values(), strict=False):
        assert answer.answer.capitalize() in sentence
        assert {round(100 * answer.low), round(100 * answer.high), 25, 90, 64} <= set(numbers([sentence]))
        assert answer.required_n in numbers([sentence])
    one_run = ah.verdict(dict(list(large_runs.items())[:1]), ETAS[0], 64)  # which does not show how updates differ
    said = describe_verdict(one_run)
    assert "next update" not in " ".join(said)
    reach = 1.6449 * one_run.recorded.se
    ends = {round(100 * (one_run.recorded.mean + sign * reach)) for sign in (-1, 1)}
    assert ends <= set(numbers([said[1]]))
    assert {ETAS[0], 64, 0.1, 0.5} <= set(numbers(describe_exploration(0.1, 0.5, found)))


def test_the_first_step_alone_is_what_to_do_next(large_runs: Runs) -> None:
    for tolerance in (0.25, 9.0):
        found = ah.verdict(large_runs, ETAS[0], 64, tolerance=tolerance)
        assert (found.next_steps[:1] or ("nothing",))[0] in describe_verdict(found)[-1]
        assert not set(found.next_steps[1:]) & set(describe_verdict(found))


def test_where_the_change_comes_from_adds_up(large_runs: Runs) -> None:
    table = inference.change_by_origin(large_runs, ETAS[:1])
    found = ah.verdict(large_runs, ETAS[0])
    *_, said = describe_origin(table, found)
    pooled = table[table["run"] == "pooled"].set_index("part")["true"] * 1e3
    same, _, other, _ = numbers([said])
    assert [same, other] == pytest.approx([pooled["same states"], pooled["other states"]], abs=0.006)
    assert numbers(describe_origin(table.iloc[:0], found)[1:]) == []


def test_the_sampler_and_checks_that_concern_an_answer_are_told_apart(large_runs: Runs, small_runs: Runs) -> None:
    run = large_runs["run_01"]
    sampled = replace(run, logp=np.asarray(run.logp) + 0.05 * run.token_counts)  # more likely than under the policy
    runs = {**large_runs, "run_01": sampled}
    found = ah.verdict(runs, ETAS[0])
    assert "log_probability_excess_z" in describe_sampler(found)[0]
    assert describe_health(found) == describe_health(ah.verdict(large_runs, ETAS[0]))
    assert describe_sampler(ah.verdict(large_runs, ETAS[0])) != describe_sampler(found)
    without = {name: replace(run, logp=None) for name, run in large_runs.items()}
    assert "not checked" in describe_sampler(ah.verdict(without, ETAS[0]))[0]
    noisy = ah.verdict(small_runs, 8e-7)  # flagged by noise_share and step_error, which concern no answer
    assert describe_health(noisy) == describe_health(ah.verdict(large_runs, ETAS[0]))


def test_an_unsound_run_is_explained_once_and_gives_no_number(small_runs: Runs) -> None:
    logs = {name: {m.eta: -2 * np.asarray(m.log_weights) for m in run.measurements} for name, run in small_runs.items()}
    found = ah.verdict({name: with_log_weights(run, logs[name]) for name, run in small_runs.items()}, ETAS[0])
    said = [*describe_verdict(found), *describe_health(found)]
    assert ["log_weight_slope" in sentence for sentence in said] == [True, False, False, False]
    assert numbers(describe_origin(inference.change_by_origin(small_runs, ETAS[:1]), found)) == []
