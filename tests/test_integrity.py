from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from analysis_helpers import Run, RunError, inventory, write_run
from analysis_helpers.checks import RunWarning
from analysis_helpers.integrity import (
    integrity_problems,
    sound_batches,
    sound_runs,
)
from tests.building import random_run, totals_only_run


def write_batch(folder: Path, runs: list[Run]) -> None:
    for k, run in enumerate(runs, start=1):
        write_run(folder / f"run_{k:02d}" / "results.json", run)


def test_a_stored_total_that_its_contributions_do_not_sum_to_is_a_problem(tmp_path: Path) -> None:
    run = random_run()
    off = dataclasses.replace(run.measurements[1], delta_h_true=run.measurements[1].delta_h_true * (1 + 2e-6))
    altered = dataclasses.replace(run, measurements=(run.measurements[0], off))
    [problem] = integrity_problems(altered)
    assert problem.startswith("delta_h_true at eta 2e-06 is ")
    write_run(tmp_path / "E_12" / "run_01" / "results.json", altered)
    assert inventory(tmp_path)["problem"].tolist() == [problem]


def test_a_difference_within_one_part_in_a_million_is_no_problem() -> None:
    run = random_run()
    assert integrity_problems(dataclasses.replace(run, delta_h_per_lr=run.delta_h_per_lr * (1 + 5e-7))) == []


def test_numbers_whose_sums_overflow_are_problems_without_a_warning() -> None:
    run = random_run()
    assert run.gdotv is not None
    [problem] = integrity_problems(dataclasses.replace(run, gdotv=np.full_like(run.gdotv, 1e308)))
    assert problem == f"delta_h_per_lr is {run.delta_h_per_lr:.7g}, its contributions sum to inf"
    huge = dataclasses.replace(run.measurements[0], h_new=np.full_like(run.gdotv, 1e308))
    [problem] = integrity_problems(dataclasses.replace(run, measurements=(huge,)))
    assert problem.startswith("delta_h_true at eta 1e-06 is ")


def test_altered_linear_terms_and_scales_are_problems() -> None:
    run = random_run()
    assert run.gdotv is not None
    assert run.scale is not None
    moved = run.gdotv.copy()
    moved[3] *= 2
    [problem] = integrity_problems(dataclasses.replace(run, gdotv=moved))
    assert problem.startswith("delta_h_per_lr is")
    [problem] = integrity_problems(dataclasses.replace(run, scale=run.scale * 2))
    assert problem.startswith("per_sequence_meta.scale is")


def test_every_eta_is_checked() -> None:
    run = random_run()
    for k in (0, 1):
        measurements = list(run.measurements)
        measurements[k] = dataclasses.replace(measurements[k], delta_h_true=-9.0)
        [problem] = integrity_problems(dataclasses.replace(run, measurements=tuple(measurements)))
        assert problem.startswith(f"delta_h_true at eta {run.etas[k]!r} is -9")


def test_a_totals_only_run_is_checked_too() -> None:
    run = totals_only_run()
    assert integrity_problems(run) == []
    [problem] = integrity_problems(
        dataclasses.replace(run, measurements=(dataclasses.replace(run.measurements[0], delta_h_true=99.0),))
    )
    assert problem.startswith("delta_h_true at eta 1e-06 is 99")


def test_base_entropies_that_disagree_are_problems() -> None:
    run = random_run()
    assert run.score is not None
    score = dataclasses.replace(run.score, h_base_mean=1.2)
    [problem] = integrity_problems(dataclasses.replace(run, score=score))
    assert problem.startswith("H_base_mean is 1.2, h_base gives 0.")


def test_sound_runs_leave_out_what_does_not_load_add_up_or_record_enough(tmp_path: Path) -> None:
    run = random_run()
    altered = dataclasses.replace(run, delta_h_per_lr=1.0)
    write_batch(tmp_path / "E_12", [run, altered, random_run(seed=1), totals_only_run()])
    (tmp_path / "E_12" / "run_03" / "results.json").write_text("{")
    with pytest.warns(RunWarning) as caught:
        runs = sound_runs(tmp_path / "E_12", needs=["linear"])
    assert list(runs) == ["run_01"]
    first, second, third = (str(w.message) for w in caught)
    assert "run_03: " in first
    assert "must be complete JSON" in first
    assert second.startswith("skipped run_02 of E_12: delta_h_per_lr is 1, its contributions sum to -")
    assert third == "skipped run_04 of E_12: approx.per_sequence[].gdotv is not recorded"
    assert {w.filename for w in caught} == {__file__}


def test_a_batch_with_no_sound_run_is_left_out_and_none_at_all_is_an_error(tmp_path: Path) -> None:
    write_batch(tmp_path / "E_12", [random_run()])
    write_batch(tmp_path / "E_2", [dataclasses.replace(totals_only_run(), scale=7.0)])
    with pytest.warns(RunWarning, match="skipped (run_01 of )?E_2: .*per_sequence_meta.scale is 7"):
        assert list(sound_batches(tmp_path)) == ["E_12"]
    shutil.rmtree(tmp_path / "E_12")
    with (
        pytest.warns(RunWarning, match="skipped (run_01 of )?E_2"),
        pytest.raises(RunError, match="holds no run that can be used"),
    ):
        sound_batches(tmp_path)
