from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from analysis_helpers import Run, RunError, load_runs, write_run
from analysis_helpers.results_json import encode_run
from analysis_helpers.run_files import read_run, result_files
from tests.building import random_run


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


def test_a_broken_link_is_a_bad_run_and_not_passed_over(data_root: Path) -> None:
    (data_root / "E_6" / "run_02").mkdir()
    (data_root / "E_6" / "run_02" / "results.json").symlink_to(data_root / "nowhere")
    with pytest.raises(RunError, match=r"run_02.results\.json: file cannot be read"):
        load_runs(data_root / "E_6")


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
        load_runs(data_root / "E_6", on_error="ignore")


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
