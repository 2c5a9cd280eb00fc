from __future__ import annotations

import dataclasses
import os
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from analysis_helpers import Run, RunError, inventory, load_runs, write_run
from analysis_helpers._checks import RunWarning
from analysis_helpers.runs.folders import read_run, result_files, sound_batches, sound_runs
from analysis_helpers.runs.json import encode_run
from analysis_helpers.runs.run import integrity_problems
from tests.building import random_run, totals_only_run
from tests.damaging import limits


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    """Write two batch folders; the second run of E_12 is truncated."""
    for batch, seeds in (("E_12", (1, 2, 3)), ("E_6", (4,))):
        for k, seed in enumerate(seeds, start=1):
            write_run(tmp_path / batch / f"run_{k:02d}" / "results.json", random_run(int(batch[2:]), seed))
    bad = tmp_path / "E_12" / "run_02" / "results.json"
    bad.write_bytes(bad.read_bytes()[:300])
    return tmp_path


def test_a_batch_folder_is_loaded_by_run_name_in_order(data_root: Path) -> None:
    with pytest.warns(UserWarning, match="skipped run_02"):
        runs = load_runs(data_root / "E_12", on_error="skip")
    assert list(runs) == ["run_01", "run_03"]
    assert runs["run_03"] == random_run(12, 3)
    assert runs["run_03"].source == str(data_root / "E_12" / "run_03" / "results.json")


def test_one_bad_run_raises_unless_told_to_skip_it(data_root: Path) -> None:
    with pytest.raises(RunError, match=r"run_02.results\.json: file must be complete JSON"):
        load_runs(data_root / "E_12")


def test_skipping_warns_once_a_run_with_the_reason(data_root: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_runs(data_root / "E_12", on_error="skip")
    [warning] = caught
    assert "must be complete JSON" in str(warning.message)
    assert warning.filename == __file__


def test_skipping_the_last_run_is_an_error(data_root: Path) -> None:
    path = data_root / "E_12" / "run_02" / "results.json"
    with pytest.warns(UserWarning, match="skipped E_12/run_02"), pytest.raises(RunError, match="complete JSON"):
        load_runs([path], on_error="skip")


def test_paths_are_loaded_by_batch_and_run_name_in_the_order_given(data_root: Path) -> None:
    paths = [data_root / "E_6" / "run_01" / "results.json", data_root / "E_12" / "run_01" / "results.json"]
    assert list(load_runs(paths)) == ["E_6/run_01", "E_12/run_01"]
    assert list(load_runs(str(paths[0]))) == ["E_6/run_01"]


def test_relative_paths_have_full_names(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data_root / "E_6" / "run_01")
    assert list(load_runs(["results.json"])) == ["E_6/run_01"]


def test_two_paths_of_one_name_are_refused(data_root: Path) -> None:
    path = data_root / "E_6" / "run_01" / "results.json"
    with pytest.raises(ValueError, match="two of the 2 paths have the same batch and run name"):
        load_runs([path, path])


def test_a_path_names_its_run_however_it_is_written(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data_root / "E_12" / "run_02")
    assert list(load_runs(["../run_01/results.json"])) == ["E_12/run_01"]
    with pytest.raises(ValueError, match="two of the 2 paths have the same batch and run name"):
        load_runs(["../run_01/results.json", "../../E_12/run_01/results.json"])


def no_permission(path: Path) -> None:
    path.write_bytes(encode_run(random_run()))
    path.chmod(0)


def folder_without_permission(path: Path) -> None:
    path.write_bytes(encode_run(random_run()))
    path.parent.chmod(0)


AS_ROOT = pytest.mark.skipif(getattr(os, "geteuid", lambda: 0)() == 0, reason="root may read everything")
NO_PIPES = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
NO_ZERO = pytest.mark.skipif(not Path("/dev/zero").exists(), reason="this system has no /dev/zero")
ODD_FILES = [
    pytest.param(Path.mkdir, "must be a regular file", id="a folder"),
    pytest.param(lambda path: path.symlink_to("nowhere"), r"cannot be read \(No such file", id="a broken link"),
    pytest.param(lambda path: path.symlink_to(path), r"cannot be read \(", id="a link to itself"),
    pytest.param(Path.touch, "must be complete JSON, got an empty file", id="an empty file"),
    pytest.param(no_permission, r"cannot be read \(Permission denied\)", id="no permission", marks=AS_ROOT),
    pytest.param(folder_without_permission, r"cannot be read \(Permission", id="no permission above", marks=AS_ROOT),
    pytest.param(lambda path: os.mkfifo(path), "must be a regular file", id="a pipe", marks=NO_PIPES),
    pytest.param(lambda path: path.symlink_to("/dev/zero"), "must be a regular file", id="a device", marks=NO_ZERO),
]


@pytest.mark.parametrize(("make", "reason"), ODD_FILES)
def test_what_is_no_file_to_read_is_a_bad_run_and_stops_no_other(
    data_root: Path, make: Callable[[Path], object], reason: str
) -> None:
    place = data_root / "E_6" / "run_02"
    place.mkdir()
    make(place / "results.json")
    try:
        with limits(100_000):
            with pytest.raises(RunError, match=rf"run_02.results\.json: file {reason}"):
                load_runs(data_root / "E_6")
            with pytest.raises(RunError, match=rf"run_02.results\.json: file {reason}"):
                load_runs([place / "results.json"])
            with pytest.warns(RunWarning, match=f"skipped run_02: .*file {reason}") as warned:
                assert list(load_runs(data_root / "E_6", on_error="skip")) == ["run_01"]
            assert len(warned) == 1
            table = inventory(data_root).set_index(["batch", "run"])
        assert re.match(f"file {reason}", str(table.loc[("E_6", "run_02"), "problem"]))
        assert table.loc[("E_6", "run_01"), "problem"] == ""
    finally:
        place.chmod(0o700)


def test_a_run_folder_that_is_a_link_loop_is_a_bad_run_and_not_passed_over(data_root: Path) -> None:
    (data_root / "E_6" / "run_02").symlink_to(data_root / "E_6" / "run_02")
    with pytest.raises(RunError, match=r"run_02.results\.json: file cannot be read"):
        load_runs(data_root / "E_6")


def test_a_folder_within_itself_is_not_followed_for_ever(data_root: Path) -> None:
    (data_root / "E_6" / "again").symlink_to(data_root, target_is_directory=True)
    assert list(load_runs(data_root / "E_6")) == ["run_01"]
    assert len(inventory(data_root)) == 4


@AS_ROOT
def test_a_folder_that_may_not_be_looked_into_is_said_to_be_so(data_root: Path) -> None:
    data_root.chmod(0)
    try:
        with pytest.raises(RunError, match=r"E_6: folder cannot be read \(Permission denied\)"):
            load_runs(data_root / "E_6")
    finally:
        data_root.chmod(0o700)


def test_a_missing_folder_says_what_was_looked_for_and_what_is_there(data_root: Path) -> None:
    with pytest.raises(RunError) as caught:
        load_runs(data_root / "E_24")
    message = str(caught.value)
    assert f"{data_root / 'E_24'}: folder does not exist" in message
    assert str(Path("E_24") / "*" / "results.json") in message
    assert "there is E_12/, E_6/" in message


def test_a_data_root_in_place_of_a_batch_folder_gets_a_hint(data_root: Path) -> None:
    with pytest.raises(
        RunError, match=r"holds no runs; looked for .*; in .* there is E_12/, E_6/ \(is .*E_12 the batch folder"
    ):
        load_runs(data_root)


def test_an_empty_folder_and_an_empty_list_hold_no_runs(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"holds no runs.* there is nothing"):
        load_runs(tmp_path)
    with pytest.raises(ValueError, match="no results files given"):
        load_runs([])


def test_an_unknown_way_to_handle_errors_lists_the_known_ones(data_root: Path) -> None:
    with pytest.raises(ValueError, match="on_error must be one of 'raise', 'skip', got 'ignore'"):
        load_runs(data_root / "E_6", on_error="ignore")  # type: ignore[arg-type]


def test_a_missing_file_is_a_run_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"nothing\.json: file cannot be read \(No such file"):
        read_run(tmp_path / "nothing.json")


def test_writing_makes_folders_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "E_12" / "run_01" / "results.json"
    for seed in (1, 2):
        write_run(path, random_run(seed=seed))
    assert read_run(path) == random_run(seed=2)
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]


def test_a_run_survives_any_number_of_round_trips(large_runs: dict[str, Run], tmp_path: Path) -> None:
    run = large_runs["run_01"]
    write_run(tmp_path / "results.json", run)
    again = read_run(tmp_path / "results.json")
    assert again == run
    assert encode_run(again) == encode_run(run)


def test_a_batch_folder_in_place_of_a_data_root_gets_a_hint(data_root: Path) -> None:
    with pytest.raises(RunError, match=r"E_6: folder holds no runs; .* \(it is a batch folder itself: give "):
        result_files(data_root / "E_6", depth=2)


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
    assert problem == f"delta_h_per_lr is {run.delta_h_per_lr:.7g}, its sequences give inf"
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
    assert problem.startswith("H_base_mean is 1.2, its sequences give 0.")


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
    assert second.startswith("skipped run_02 of E_12: delta_h_per_lr is 1, its sequences give -")
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
