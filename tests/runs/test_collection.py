import dataclasses
from typing import Any

import numpy as np
import pytest

from analysis_helpers import Run, RunError, Runs
from analysis_helpers._checks import RunWarning
from tests.building import ETAS, altered, random_run, refused, totals_only_run

TWO = Runs({"run_01": random_run(seed=1), "run_02": random_run(seed=2)})


def with_only(run: Run, eta: float) -> Run:
    return dataclasses.replace(run, measurements=(run.measurement(eta),))


UNEVEN = Runs({"run_01": random_run(seed=1), "run_02": with_only(random_run(seed=2), ETAS[1])})


def test_a_run_of_the_same_content_is_left_out_with_a_warning_however_it_was_made() -> None:
    with pytest.warns(RunWarning, match="skipped run_09: same content as run_01") as caught:
        runs = Runs({**TWO, "run_09": dataclasses.replace(random_run(seed=1), source="elsewhere")})
    assert list(runs) == ["run_01", "run_02"]
    assert len(caught) == 1
    # The same totals are not enough to be the same.
    log_weights = np.zeros(12)
    alike = [dataclasses.replace(random_run(seed=1), logp=log_weights - k) for k in (1, 2)]
    assert len(Runs({"a": alike[0], "b": alike[1]})) == 2


def test_what_is_made_is_handed_on_and_never_compared_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Runs.of(TWO) is TWO
    assert TWO.at(ETAS[0]) is TWO
    assert TWO.recording("score") is TWO

    def compared(*_: Any) -> bool:
        raise AssertionError("a selection of runs was compared")

    monkeypatch.setattr(Run, "__eq__", compared)
    assert list(TWO.where(lambda run: run is TWO["run_02"]).beside(Runs({}), copies=True)) == ["run_02"]
    with refused("no large_runs given"):
        Runs.of({}, "large_runs")
    with pytest.raises(TypeError):
        TWO["run_03"] = TWO["run_01"]  # type: ignore[index]


def test_step_sizes_that_differ_by_rounding_are_one() -> None:
    nearly = altered(with_only(TWO["run_02"], ETAS[0]), eta=ETAS[0] * (1 + 1e-8))
    runs = Runs({"run_01": TWO["run_01"], "run_02": nearly})
    assert runs.etas == ETAS
    assert list(runs.at(ETAS[0])) == ["run_01", "run_02"]
    assert list(TWO.usable([ETAS[0] * (1 + 5e-7)], 4)) == [ETAS[0]]


def test_runs_are_left_out_with_a_warning_that_names_run_and_reason() -> None:
    with pytest.warns(RunWarning) as caught:
        usable = Runs({**UNEVEN, "run_03": random_run(4, seed=3)}).usable(ETAS, 8)
    assert [list(runs) for runs in usable.values()] == [["run_01"], ["run_01", "run_02"]]
    third, second = (str(w.message) for w in caught)
    assert (second, third) == ("skipped run_02: no eta 1e-06", "skipped run_03: 4 sequences, fewer than n 8")
    with pytest.warns(RunWarning), refused("no run with at least 8 sequences has eta 1e-06"):
        Runs({"run_02": UNEVEN["run_02"], "run_03": random_run(4, seed=3)}).usable([ETAS[0]], 8)


def test_runs_with_and_without_the_denominator_correction_are_never_pooled() -> None:
    other = random_run(seed=5, score=False)
    with refused("run_05: approx.per_sequence[].extras.denom_corr_unscaled", error=RunError):
        Runs({**TWO, "run_05": other}).usable([ETAS[0]], 4)
    with pytest.warns(RunWarning, match="skipped run_05"):  # it does not take part
        assert Runs({**TWO, "run_05": with_only(other, ETAS[1])}).usable([ETAS[0]], 4) == {ETAS[0]: TWO}
    with refused("actual run run_05: approx.per_sequence[].extras", error=RunError):
        Runs({"run_05": other}).beside(TWO)


def test_actual_runs_that_are_copies_of_large_ones_confirm_nothing() -> None:
    small = Runs({"run_01": random_run(seed=2), "run_03": random_run(seed=3)})
    with pytest.warns(RunWarning, match="skipped actual run run_01: same content as large run_02"):
        assert list(small.beside(TWO)) == ["run_03"]
    assert small.beside(TWO, copies=True) is small


def test_what_runs_record_selects_them() -> None:
    runs = Runs({**TWO, "bare": totals_only_run()})
    assert list(runs.recording("linear", "score")) == ["run_01", "run_02"]
    assert (runs.lacking("linear"), runs.lacking("baseline_entropy")) == (["bare"], [])
    assert len(runs.recording("prompts")) == 0
    assert runs.mean_true_change(ETAS[1]) == pytest.approx(
        np.mean([run.measurement(ETAS[1]).delta_h_true for run in TWO.values()]), rel=1e-12
    )


@pytest.mark.parametrize(
    ("etas", "start", "value"),
    [
        ([5e-6], "none of run_01, run_02 has eta 5e-06", "1e-06, 2e-06"),
        ([], "etas must be a list", "[]"),
        (1e-6, "etas must be a list", "1e-06"),
        (["odd"], "eta must be a number", "'odd'"),
        ([1e-6, 1e-6 * (1 + 1e-9)], "etas must hold each step size once", "1e-06"),
    ],
)
def test_step_sizes_asked_for_must_be_measured_once_each(etas: Any, start: str, value: str) -> None:
    with refused(start, value):
        TWO.etas_of(etas)
