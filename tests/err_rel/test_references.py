import dataclasses

import pytest

from analysis_helpers import Run, RunError, reference_true_totals
from analysis_helpers._checks import RunWarning
from analysis_helpers.err_rel.references import (
    known_etas,
    own_total,
    reference_for,
    reference_total,
    require_poolable,
    usable_runs,
)
from tests.building import ETAS, altered, random_run, refused


def with_only(run: Run, eta: float) -> Run:
    return dataclasses.replace(run, measurements=(run.measurement(eta),))


def three_sequences(shift: float) -> Run:
    """Return a run with a true total of ``shift`` and a standard error of 0.1 / sqrt(3) = 0.0577."""
    h_new = {1e-6: [0.9 + shift, 1.1 + shift, 1 + shift]}
    return Run.from_arrays(
        token_counts=[1] * 3, h_base=[1.0] * 3, h_new=h_new, log_weights={1e-6: [0.0] * 3}, gdotv=[0.0] * 3
    )


RUNS = {"run_01": random_run(seed=1), "run_02": random_run(seed=2)}
UNEVEN = {"run_01": random_run(seed=1), "run_02": with_only(random_run(seed=2), ETAS[1])}


def test_a_run_without_an_eta_is_named_and_left_out_of_that_mean_only() -> None:
    with pytest.warns(RunWarning, match="skipped run_02: .*eta 1e-06"):
        totals = reference_true_totals(UNEVEN)
    assert totals[ETAS[0]] == RUNS["run_01"].measurement(ETAS[0]).delta_h_true
    assert totals[ETAS[1]] == reference_true_totals(RUNS)[ETAS[1]]


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


def test_step_sizes_that_differ_by_rounding_are_one() -> None:
    nearly = altered(with_only(RUNS["run_02"], ETAS[0]), eta=ETAS[0] * (1 + 1e-8))
    assert known_etas({"run_01": RUNS["run_01"], "run_02": nearly}) == list(ETAS)
    assert list(usable_runs(RUNS, [ETAS[0] * (1 + 5e-7)], 4)) == [ETAS[0]]
    assert reference_for({ETAS[0] * (1 + 1e-9): -2.0}, RUNS["run_01"], ETAS[0], "run_01") == -2.0


def test_runs_are_left_out_with_a_warning_that_names_run_and_reason() -> None:
    with pytest.warns(RunWarning) as caught:
        usable = usable_runs({**UNEVEN, "run_03": random_run(4, seed=3)}, ETAS, 8)
    assert [list(kept) for kept in usable.values()] == [["run_01"], ["run_01", "run_02"]]
    second, third = sorted(str(w.message) for w in caught)
    assert second.startswith("skipped run_02")
    assert "eta 1e-06" in second
    assert third.startswith("skipped run_03")
    assert "4 sequences, fewer than sample_size 8" in third
    with pytest.warns(RunWarning), refused("no run with at least 8 sequences has eta 1e-06"):
        usable_runs({"run_02": UNEVEN["run_02"], "run_03": random_run(4, seed=3)}, [ETAS[0]], 8)


def test_a_run_given_twice_is_pointed_out() -> None:
    with pytest.warns(RunWarning, match="skipped run_09: same content as run_01"):
        usable_runs({**RUNS, "run_09": random_run(seed=1)}, ETAS, 4)


def test_runs_with_and_without_the_denominator_correction_are_never_pooled() -> None:
    other = random_run(seed=5, score=False)
    with refused("run_05: approx.per_sequence[].extras.denom_corr_unscaled", error=RunError):
        require_poolable({**RUNS, "run_05": other})
    with pytest.warns(RunWarning, match="skipped run_05"):  # it does not take part
        assert usable_runs({**RUNS, "run_05": with_only(other, ETAS[1])}, [ETAS[0]], 4) == {ETAS[0]: RUNS}
