"""What cannot be answered is refused in one line: by the name of the argument or run, the rule, and the value."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

import analysis_helpers as ah
from analysis_helpers import inference
from analysis_helpers.estimators import columns, reference_for
from analysis_helpers.inference.prediction import pooled_err_rel
from analysis_helpers.subsampling import subset_sums
from tests.building import random_run, refused, totals_only_run

E = 1e-6
RUN = random_run()
RUNS = {"run_01": RUN, "run_02": random_run(seed=1)}
TOTALS = {"run_02": totals_only_run()}
PLAIN = {"run_09": random_run(score=False)}  # no denominator correction
ODD: Any = "odd"
RNG = np.random.default_rng(0)
SEVEN = np.zeros((7, 2))

ARGUMENTS: list[tuple[Callable[[], object], str, str]] = [
    (lambda: subset_sums(SEVEN, 8, 1, RNG), "n must be at most 7, the number of sequences", "8"),
    (lambda: subset_sums(SEVEN, 2, 0, RNG), "num_samples must be a whole number", "0"),
    (lambda: subset_sums(SEVEN, 2, 1, RNG, sampler=ODD), "sampler must be one of 'sequential', 'disjoint'", "'odd'"),
    (lambda: columns(RUN, 5e-6), "run 0: no eta 5e-06", "1e-06, 2e-06"),
    (lambda: columns(RUN, E, "mean"), "estimator must be one of 'partial_sum', 'ratio', 'matched'", "'mean'"),
    (lambda: ah.simulate_err_rel(RUN, E, 13), "sample_size must be at most 12", "13"),
    (lambda: ah.sample_err_rel_across_runs(RUNS, [E], samples_per_eta=0), "samples_per_eta must be a whole", "0"),
    (lambda: ah.aggregate_err_rel([1.0, 2.0], [2.0], 1.0), "true_subset and linear_subset must have", "(2,) and (1,)"),
    (lambda: ah.summarize_err_rel_distribution(pd.DataFrame({"x": [1]})), "df must have the columns 'eta'", "['x']"),
    (lambda: ah.load_runs([], on_error=ODD), "on_error must be one of 'raise', 'skip'", "'odd'"),
    (lambda: ah.reference_true_totals({}), "no runs given", ""),
    (lambda: RUN.measurement("1e-6"), "eta must be a number such as", "'1e-6'"),  # type: ignore[arg-type]
    (lambda: ah.nonlinearity(RUNS, ODD), "etas must be a list of at least one step size, such as", "'odd'"),
    (lambda: reference_for({E: -2.0}, RUN, 2e-6, "run_01"), "references has no eta 2e-06", "1e-06"),
    (
        lambda: ah.err_rel_standard_error(RUN, E, estimator="partial_sum"),
        "population must be 'run' for",
        "'partial_sum",
    ),
    (lambda: ah.err_rel_standard_error(RUN, E, population=ODD), "population must be one of 'policy', 'run'", "'odd'"),
    (lambda: ah.err_rel_standard_error(RUN, E, 13, population="run"), "n must be at most 12, the number of seq", "13"),
    (lambda: inference.subset_moments(RUNS, [E], 13), "n must be at most 12", "13"),
    (lambda: ah.predict_err_rel(RUNS, E, 10, reference=0), "reference must be a finite number other than 0", "0.0"),
    (lambda: ah.decompose_err_rel(RUNS, E, reference=math.nan), "reference must be a finite number", "nan"),
    (lambda: ah.predict_err_rel(RUNS, E, 10).interval(90), "level must lie between 0 and 1", "90"),
    (lambda: pooled_err_rel(RUNS, E, estimator="partial_sum"), "estimator must be a mean", "'partial_sum'"),
    (lambda: ah.required_batch_size(RUNS, E), "give either target_sd or tolerance", ""),
    (lambda: ah.required_batch_size(RUNS, E, target_sd=0.1, tolerance=0.1), "give either target_sd or tolerance", ""),
    (lambda: ah.required_batch_size(RUNS, E, target_sd=-1), "target_sd must be a positive number", "-1"),
    (lambda: ah.required_batch_size(RUNS, E, tolerance=math.nan), "tolerance must be a positive number", "nan"),
    (lambda: ah.required_batch_size(RUNS, E, tolerance=1, probability=90), "probability must lie between", "90"),
    (lambda: inference.budget_table(RUNS, E, sequences=80, counts=(100,)), "counts must be at most 80", "100"),
    (lambda: ah.verdict(RUNS, E, 2.5), "n must be a whole number", "2.5"),  # type: ignore[arg-type]
    (lambda: ah.synthetic_runs(0, 10), "num_runs must be a whole number", "0"),
    (lambda: ah.synthetic_runs(1, 10, baseline=ODD), "baseline must be one of 'entropy_to_go', 'centred'", "'odd'"),
    (lambda: ah.synthetic_runs(1, 10, sampling_temperature=0), "temperature must be positive", "0"),
    (lambda: ah.synthetic_runs(1, 10, sampling_top_p=1.5), "top_p must be positive and at most 1", "1.5"),
    (lambda: ah.synthetic_runs(1, 10, sampling_top_k=0), "top_k must be a whole number of at least 1", "0"),
]
WITHOUT_LINEAR = "run in memory: approx.per_sequence[].gdotv"
DATA: list[tuple[Callable[[], object], str]] = [
    (lambda: ah.simulate_err_rel_across_runs(TOTALS, [E], 1), WITHOUT_LINEAR),
    (lambda: ah.err_rel_standard_error(totals_only_run(), E, reference=-1.0), WITHOUT_LINEAR),
    (lambda: ah.predict_err_rel(TOTALS, E, 10), WITHOUT_LINEAR),
    (lambda: ah.decompose_err_rel(PLAIN, E), "run 0: approx.per_sequence[].extras.denom_corr_unscaled"),
    (lambda: pooled_err_rel({**RUNS, **PLAIN}, E), "run_09: approx.per_sequence[].extras.denom_corr_unscaled"),
    (
        lambda: ah.check_prediction(RUNS, PLAIN, E),
        "actual run run_09: approx.per_sequence[].extras.denom_corr_unscaled",
    ),
    (
        lambda: ah.compare_err_rel_distributions(RUNS, PLAIN, E, sample_size=5),
        "actual run run_09: approx.per_sequence[].ext",
    ),
]


TAKE_RUNS: dict[str, Callable[[Any], object]] = {
    "budget_table": lambda runs: inference.budget_table(runs, E, sequences=80),
    "check_prediction": lambda runs: ah.check_prediction(runs, RUNS, E),
    "small_runs of check_prediction": lambda runs: ah.check_prediction(RUNS, runs, E),
    "collect_err_rel_across_runs": lambda runs: ah.collect_err_rel_across_runs(runs, E, -1.0),
    "compare_err_rel_distributions": lambda runs: ah.compare_err_rel_distributions(runs, RUNS, E, sample_size=4),
    "small_runs of compare_err_rel_distributions": lambda runs: ah.compare_err_rel_distributions(RUNS, runs, E),
    "influence_table": lambda runs: inference.influence_table(runs, E),
    "decompose_err_rel": lambda runs: ah.decompose_err_rel(runs, E),
    "change_by_origin": lambda runs: ah.change_by_origin(runs, [E]),
    "decomposition_table": lambda runs: inference.decomposition_table(runs),
    "entropy_trend": ah.entropy_trend,
    "error_by_size": lambda runs: inference.error_by_size(runs, E, tolerance=0.5),
    "estimator_table": lambda runs: inference.estimator_table(runs, E),
    "explain_partial_sum": lambda runs: ah.explain_partial_sum(runs, [E], 4),
    "merge_runs": ah.merge_runs,
    "nonlinearity": lambda runs: ah.nonlinearity(runs),
    "plan_batch_sizes": lambda runs: inference.plan_batch_sizes(runs, [E], tolerance=0.5),
    "predict_err_rel": lambda runs: ah.predict_err_rel(runs, E, 4),
    "reference_true_totals": ah.reference_true_totals,
    "required_batch_size": lambda runs: ah.required_batch_size(runs, E, tolerance=0.5),
    "batches of run_totals": lambda runs: inference.run_totals({"E_12": runs}),
    "batches of health_of_batches": lambda runs: inference.health_of_batches({"E_12": runs}),
    "run_health": ah.run_health,
    "sample_err_rel_across_runs": lambda runs: ah.sample_err_rel_across_runs(runs, [E]),
    "simulate_err_rel_across_runs": lambda runs: ah.simulate_err_rel_across_runs(runs, [E], 4),
    "spread_by_size": lambda runs: inference.spread_by_size(runs, E, n=4),
    "subset_moments": lambda runs: inference.subset_moments(runs, [E], 4),
    "trusted_eta": lambda runs: ah.trusted_eta(runs),
    "verdict": lambda runs: ah.verdict(runs, E, 4),
    "small_runs of verdict": lambda runs: ah.verdict(RUNS, E, 4, small_runs=runs),
    "verdict_map": lambda runs: ah.verdict_map(runs, n=4),
    "small_runs of verdict_map": lambda runs: ah.verdict_map(RUNS, n=4, small_runs=runs),
}
TAKE_A_RUN: list[Callable[[Any], object]] = [
    lambda run: ah.err_rel_standard_error(run, E),
    lambda run: ah.per_sequence_contributions(run, E),
    lambda run: ah.simulate_err_rel(run, E, 4),
    lambda run: ah.write_run("nowhere/results.json", run),
]


@pytest.mark.parametrize("name", TAKE_RUNS)
def test_what_is_no_dict_of_runs_is_said_to_be_what_it_is(name: str) -> None:
    kinds: list[tuple[Any, str]] = [(RUN, "a single Run"), ("E_12", "the path 'E_12'"), (3, "int")]
    for given, kind in (*kinds, ({"E_12": RUNS}, "a dict of dict")):
        with pytest.raises(ValueError, match=rf"must be a dict of name -> Run, as from load_runs, got {kind}$"):
            TAKE_RUNS[name](given)


@pytest.mark.parametrize("call", TAKE_A_RUN)
def test_a_dict_where_one_run_is_wanted_is_answered_with_one_of_its_runs(call: Callable[[Any], object]) -> None:
    with refused("run must be a single Run", "a dict of Run", "runs['run_01']"):
        call(RUNS)
    with pytest.raises(ValueError, match=r"run must be a single Run.*the path 'a/results.json'$"):
        call("a/results.json")


@pytest.mark.parametrize(("call", "start", "value"), ARGUMENTS, ids=[start for _, start, _ in ARGUMENTS])
def test_bad_arguments_are_refused_by_name_rule_and_value(call: Callable[[], object], start: str, value: str) -> None:
    with refused(start, value):
        call()


@pytest.mark.parametrize(("call", "start"), DATA, ids=[start for _, start in DATA])
def test_runs_that_record_too_little_are_refused_by_name_and_field(call: Callable[[], object], start: str) -> None:
    with refused(start, error=ah.RunError):
        call()
