from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import pytest

from analysis_helpers import Run, RunError, reference_true_totals
from analysis_helpers._checks import RunWarning
from analysis_helpers.err_rel.references import (
    all_etas,
    check_poolable,
    own_total,
    reference_for,
    reference_total,
    usable_runs,
)
from tests.building import ETAS, random_run


def with_only(run: Run, eta: float) -> Run:
    return dataclasses.replace(run, measurements=(run.measurement(eta),))


RUNS = {"run_01": random_run(seed=1), "run_02": random_run(seed=2)}
UNEVEN = {"run_01": random_run(seed=1), "run_02": with_only(random_run(seed=2), ETAS[1])}


def test_the_reference_is_the_mean_true_total_over_the_runs() -> None:
    for eta, total in reference_true_totals(RUNS).items():
        assert (
            total == (RUNS["run_01"].measurement(eta).delta_h_true + RUNS["run_02"].measurement(eta).delta_h_true) / 2
        )
    assert list(reference_true_totals(RUNS)) == list(ETAS)


def test_a_run_without_an_eta_is_named_and_left_out_of_that_mean_only() -> None:
    with pytest.warns(UserWarning, match="skipped run_02: it has no eta 1e-06"):
        totals = reference_true_totals(UNEVEN)
    assert totals[ETAS[0]] == RUNS["run_01"].measurement(ETAS[0]).delta_h_true
    assert totals[ETAS[1]] == reference_true_totals(RUNS)[ETAS[1]]


def test_step_sizes_that_differ_by_rounding_are_one() -> None:
    nearly = dataclasses.replace(RUNS["run_02"].measurements[0], eta=ETAS[0] * (1 + 1e-8))
    runs = {"run_01": RUNS["run_01"], "run_02": dataclasses.replace(RUNS["run_02"], measurements=(nearly,))}
    assert all_etas(runs) == list(ETAS)


def test_runs_are_left_out_with_a_warning_that_names_run_and_reason() -> None:
    runs = {**UNEVEN, "run_03": random_run(4, seed=3)}
    with pytest.warns(UserWarning, match="skipped run_0") as caught:
        usable = usable_runs(runs, ETAS, 8)
    assert usable == {ETAS[0]: ["run_01"], ETAS[1]: ["run_01", "run_02"]}
    assert sorted(str(w.message) for w in caught) == [
        "skipped run_02: it has no eta 1e-06",
        "skipped run_03: it has 4 sequences, fewer than sample_size 8",
    ]


def test_nothing_left_is_an_error() -> None:
    with pytest.raises(ValueError, match="sample_size must be at most 12, the sequences of the largest run, got 13"):
        usable_runs(RUNS, ETAS, 13)
    with pytest.raises(ValueError, match="none of run_01, run_02 has eta 5e-06; they have 1e-06, 2e-06"):
        usable_runs(RUNS, [5e-6], 4)
    with pytest.raises(ValueError, match="no runs given"):
        usable_runs({}, ETAS, 4)
    with pytest.raises(ValueError, match=r"etas must be a list of at least one step size, got \[\]"):
        usable_runs(RUNS, [], 4)
    with pytest.raises(ValueError, match="no runs given"):
        reference_true_totals({})


def test_arguments_of_another_kind_are_named() -> None:
    wrong: Any = random_run()
    with pytest.raises(ValueError, match="runs must be a dict of name -> Run, as from load_runs, got Run"):
        usable_runs(wrong, ETAS, 4)
    with pytest.raises(ValueError, match="runs must be a dict of name -> Run, as from load_runs, got Run"):
        reference_true_totals(wrong)
    scalar: Any = 1e-6
    with pytest.raises(ValueError, match="etas must be a list of at least one step size, got 1e-06"):
        usable_runs(RUNS, scalar, 4)
    text: Any = ["1e-6"]
    with pytest.raises(ValueError, match="eta must be a number, got '1e-6'"):
        usable_runs(RUNS, text, 4)


def test_a_run_given_twice_is_pointed_out() -> None:
    with pytest.warns(RunWarning, match="run_09 is the same run as run_01: it counts twice"):
        usable_runs({**RUNS, "run_09": random_run(seed=1)}, ETAS, 4)


def test_the_eta_of_the_runs_stands_for_one_given_with_a_rounding_error() -> None:
    assert list(usable_runs(RUNS, [ETAS[0] * (1 + 5e-7)], 4)) == [ETAS[0]]


def test_runs_with_and_without_the_denominator_correction_are_never_pooled() -> None:
    with pytest.raises(RunError, match=r"run_02: approx.per_sequence.*denom_corr_unscaled is recorded in some runs"):
        check_poolable({"run_01": random_run(), "run_02": random_run(score=False)})


def test_a_reference_close_to_zero_is_warned_about_with_run_and_eta() -> None:
    # True total -0.01 with a standard error of about 0.07.
    weak = Run.from_arrays(
        token_counts=[1, 1, 1],
        h_base=[1.0, 1.0, 1.0],
        h_new={1e-6: [0.9, 1.1, 0.97]},
        log_weights={1e-6: [0.0, 0.0, 0.0]},
        gdotv=[0.0, 0.0, 0.0],
    )
    with pytest.warns(
        UserWarning, match=r"true total of run_07 at eta 1e-06, -0.01, is within 3 standard errors \(0.0586\)"
    ):
        own_total(weak, 1e-6, "run_07")
    with pytest.warns(UserWarning, match="true total of the mean over the runs at eta 1e-06"):
        reference_total({"run_07": weak, "run_08": weak}, 1e-6)


def test_a_clear_reference_is_not_warned_about() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert own_total(RUNS["run_01"], ETAS[0], "run_01") == RUNS["run_01"].measurements[0].delta_h_true


def test_given_references_are_looked_up_with_tolerance() -> None:
    assert reference_for({ETAS[0] * (1 + 1e-9): -2.0}, RUNS["run_01"], ETAS[0], "run_01") == -2.0
    with pytest.raises(ValueError, match="references has no eta 2e-06; there are 1e-06"):
        reference_for({ETAS[0]: -2.0}, RUNS["run_01"], ETAS[1], "run_01")


def test_a_weak_mean_is_warned_about_where_references_are_made() -> None:
    # Totals -0.01 with a standard error of 0.0586, of the mean of two 0.041.
    weak = {
        f"run_0{k}": Run.from_arrays(
            token_counts=[1, 1, 1],
            h_base=[1.0, 1.0, 1.0],
            h_new={1e-6: [0.9, 1.1, 0.97]},
            log_weights={1e-6: [0.0, 0.0, 0.0]},
            delta_h_per_lr=0.0,
        )
        for k in (1, 2)
    }
    with pytest.warns(RunWarning, match=r"-0.01, is within 3 standard errors \(0.0414\) of zero"):
        reference_true_totals(weak)


def test_a_total_of_more_than_three_standard_errors_is_not_weak_and_of_less_is() -> None:
    def run(shift: float) -> Run:
        h_new = {1e-6: [1 + shift - 0.1, 1 + shift + 0.1, 1 + shift]}  # SE 0.0577
        return Run.from_arrays(
            token_counts=[1, 1, 1], h_base=[1, 1, 1], h_new=h_new, log_weights={1e-6: [0, 0, 0]}, gdotv=[0, 0, 0]
        )

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own_total(run(-0.18), 1e-6, "run_01")
    with pytest.warns(RunWarning, match="within 3 standard errors"):
        own_total(run(-0.16), 1e-6, "run_01")


def test_only_runs_that_take_part_must_be_poolable() -> None:
    other = with_only(random_run(seed=5, score=False), ETAS[1])
    with pytest.warns(RunWarning, match="skipped run_05: it has no eta 1e-06"):
        assert usable_runs({**RUNS, "run_05": other}, [ETAS[0]], 4) == {ETAS[0]: ["run_01", "run_02"]}
