import dataclasses
import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from analysis_helpers import Run, RunError, inventory, load_runs, read_run, write_run
from analysis_helpers._checks import NotRecordedError, RunWarning
from analysis_helpers.runs import folders, sound_batches, sound_runs
from analysis_helpers.runs.json import encode_run, parse_run
from tests.building import random_run, refused, totals_only_run, two_sequences
from tests.damaging import limits


def write_batch(folder: Path, *runs: Run) -> None:
    for k, run in enumerate(runs, start=1):
        write_run(folder / f"run_{k:02d}" / "results.json", run)


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    """Write two batch folders; the second run of E_12 is truncated."""
    write_batch(tmp_path / "E_12", *(random_run(12, seed) for seed in (1, 2, 3)))
    write_batch(tmp_path / "E_6", random_run(6, 4))
    bad = tmp_path / "E_12" / "run_02" / "results.json"
    bad.write_bytes(bad.read_bytes()[:300])
    return tmp_path


def test_a_batch_folder_is_loaded_in_order_and_a_bad_run_refused_or_skipped_with_one_warning(data_root: Path) -> None:
    bad = data_root / "E_12" / "run_02" / "results.json"
    with refused(f"{bad}: file must be complete JSON", error=RunError):
        load_runs(data_root / "E_12")
    with pytest.warns(RunWarning, match="skipped E_12/run_02"), refused("E_12/run_02: folder", bad, error=RunError):
        load_runs([bad], on_error="skip")
    with pytest.warns(RunWarning, match="^skipped run_02: .*complete JSON") as caught:
        runs = load_runs(data_root / "E_12", on_error="skip")
    assert [warning.filename for warning in caught] == [__file__]
    assert list(runs) == ["run_01", "run_03"]
    assert runs["run_03"] == random_run(12, 3)
    assert runs["run_03"].source == str(data_root / "E_12" / "run_03" / "results.json")


def test_paths_are_loaded_by_batch_and_run_name(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [data_root / "E_6" / "run_01" / "results.json", data_root / "E_12" / "run_01" / "results.json"]
    assert list(load_runs(paths)) == ["E_6/run_01", "E_12/run_01"]
    assert list(load_runs(str(paths[0]))) == ["E_6/run_01"]
    monkeypatch.chdir(data_root / "E_12" / "run_01")
    assert list(load_runs(["results.json"])) == ["E_12/run_01"]
    with refused("two of the 2 paths have the same batch and run name"):
        load_runs(["../run_01/results.json", paths[1]])


def test_writing_makes_folders_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "E_12" / "run_01" / "results.json"
    for seed in (1, 2):
        write_run(path, random_run(seed=seed))
    again = read_run(path)
    assert again == random_run(seed=2)
    assert encode_run(again) == path.read_bytes()
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]


def forbidden(path: Path, closed: Path) -> None:
    path.write_bytes(encode_run(random_run()))
    closed.chmod(0)


AS_ROOT = pytest.mark.skipif(getattr(os, "geteuid", lambda: 0)() == 0, reason="root may read everything")
NO_PIPES = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
NO_ZERO = pytest.mark.skipif(not Path("/dev/zero").exists(), reason="this system has no /dev/zero")
ODD_FILES = [
    pytest.param(Path.mkdir, "must be a regular file", id="a folder"),
    pytest.param(lambda path: path.symlink_to("nowhere"), "cannot be read (No such file", id="a broken link"),
    pytest.param(lambda path: path.symlink_to(path), "cannot be read (", id="a link to itself"),
    pytest.param(lambda p: forbidden(p, p), "cannot be read (Permission denied)", id="no permission", marks=AS_ROOT),
    pytest.param(lambda p: forbidden(p, p.parent), "cannot be read (Perm", id="no permission above", marks=AS_ROOT),
    pytest.param(lambda path: os.mkfifo(path), "must be a regular file", id="a pipe", marks=NO_PIPES),
    pytest.param(lambda path: path.symlink_to("/dev/zero"), "must be a regular file", id="a device", marks=NO_ZERO),
]


@pytest.mark.parametrize(("make", "reason"), ODD_FILES)
def test_what_is_no_file_to_read_is_a_bad_run_and_stops_no_other(
    data_root: Path, make: Callable[[Path], object], reason: str
) -> None:
    path = data_root / "E_6" / "run_02" / "results.json"
    path.parent.mkdir()
    make(path)
    try:
        with limits(100_000):
            for source in (data_root / "E_6", [path]):
                with refused(f"{path}: file {reason}", error=RunError):
                    load_runs(source)
            with pytest.warns(RunWarning, match="skipped run_02: ") as warned:
                assert list(load_runs(data_root / "E_6", on_error="skip")) == ["run_01"]
            assert len(warned) == 1
            problems = inventory(data_root).set_index(["batch", "run"])["problem"]
        assert str(problems["E_6", "run_02"]).startswith(f"file {reason}")
        assert problems["E_6", "run_01"] == ""
    finally:
        path.parent.chmod(0o700)


def test_folders_that_link_in_a_circle_are_bad_runs_and_not_followed_for_ever(data_root: Path) -> None:
    (data_root / "E_6" / "again").symlink_to(data_root, target_is_directory=True)
    assert list(load_runs(data_root / "E_6")) == ["run_01"]
    assert len(inventory(data_root)) == 4
    loop = data_root / "E_6" / "run_02"
    loop.symlink_to(loop)
    problems = inventory(data_root).set_index(["batch", "run"])["problem"]
    assert str(problems["E_6", "run_02"]).startswith("holds no results.json")
    with pytest.warns(RunWarning, match="skipped run_02: holds no results.json"):
        assert list(load_runs(data_root / "E_6")) == ["run_01"]


@AS_ROOT
def test_a_folder_that_may_not_be_looked_into_is_said_to_be_so(data_root: Path) -> None:
    data_root.chmod(0)
    try:
        with refused(f"{data_root / 'E_6'}: folder cannot be read (Permission denied)", error=RunError):
            load_runs(data_root / "E_6")
    finally:
        data_root.chmod(0o700)


def test_a_folder_without_runs_is_refused_with_what_was_looked_for_and_what_is_there(data_root: Path) -> None:
    there, missing = "E_12/, E_6/", "folder cannot be read (No such file"
    with refused(f"{data_root / 'E_24'}: {missing}", Path("E_24") / "*" / "results.json", there):
        load_runs(data_root / "E_24")
    with refused(f"{data_root / 'nowhere'}: {missing}", there):
        inventory(data_root / "nowhere")
    with refused(f"{data_root}: folder holds no runs", there):
        load_runs(data_root)
    (data_root / "empty").mkdir()
    with refused(f"{data_root / 'empty'}: folder holds no runs", "nothing"):
        load_runs(data_root / "empty")
    with refused("no results files given"):
        load_runs([])


PLACE = "E_12/run_01/results.json"
MISPLACED = "is loaded only from {}/E_12/*/results.json"
LYING: dict[str, tuple[list[str], int]] = {  # files below a data root, and how many of them are loaded
    "gzip": (["E_12/run_01/results.json.gz"], 1),
    "another name": ([f"{PLACE[:-5]}2.json", PLACE], 1),
    "one level deeper": (["E_12/run_01/last/results.json"], 0),
    "below a seed": (["seed_1/E_12/run_01/results.json"], 0),
    "Hydra": (["outputs/2026-01-01/12-00-00/results.json"], 0),
    "flat": (["run_01/results.json", "b.json"], 0),
    "beside a batch folder": ([PLACE, PLACE[5:]], 1),
    "hidden": ([PLACE, "E_12/.ipynb_checkpoints/results.json"], 1),
}


@pytest.mark.parametrize("kind", LYING)
def test_a_run_in_another_place_is_listed_with_where_it_should_lie(tmp_path: Path, kind: str) -> None:
    files, loaded = LYING[kind]
    for seed, name in enumerate(files):
        write_run(tmp_path / name, random_run(seed=seed))
        if name.endswith(".gz"):
            (tmp_path / name).write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    table = inventory(f"{tmp_path}/")
    listed = [name for name in files if "/." not in name]
    assert (table["sequences"] == 12).all()
    misplaced = [MISPLACED.format(tmp_path)] * (len(listed) - loaded)
    assert sorted(table["problem"]) == [""] * loaded + misplaced
    if loaded:
        [batch] = sound_batches(tmp_path).values()
        assert len(batch) == loaded


def test_files_of_another_kind_are_said_to_be_that_or_not_listed(tmp_path: Path) -> None:
    write_batch(tmp_path / "E_12", random_run(), random_run())
    (tmp_path / "E_12" / "run_02" / "results.json").write_text(json.dumps({"lrs": [1e-6], "losses": [0.5]}))
    (tmp_path / "config.json").write_text("{}")
    for folder in ("E_12/run_03", "E_12/plots", "E_24"):
        (tmp_path / folder).mkdir()
    problems = inventory(tmp_path).set_index(["batch", "run"])["problem"].to_dict()
    assert problems.keys() == {("E_12", "run_01"), ("E_12", "run_02"), ("E_12", "run_03"), ("", "E_24")}
    assert "has the keys 'lrs', 'losses'" in problems["E_12", "run_02"]
    assert all(problems[k].startswith("holds no results.json") for k in (("E_12", "run_03"), ("", "E_24")))


def test_compressed_files_are_read_within_bounds_and_the_home_folder_is_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write_run("~/E_12/run_01/results.json", random_run())
    path = tmp_path / "E_12" / "run_01" / "results.json"
    packed = gzip.compress(path.read_bytes())
    path.unlink()
    for name in ("results.json.gz", "results.json"):  # by its content, as downloads unpack or rename files
        path.with_name(name).write_bytes(packed)
        assert read_run(f"~/E_12/run_01/{name}") == load_runs("~/E_12/")["run_01"] == random_run()
    for damaged in (packed[:-20], packed[:20] + b"x" + packed[21:]):
        path.write_bytes(damaged)
        with limits(500_000), refused(f"{path}: file cannot be read", error=RunError):
            read_run(path)


def test_bad_files_and_copies_are_listed_and_nothing_is_raised(tmp_path: Path) -> None:
    write_batch(tmp_path / "E_12", random_run(), random_run(), dataclasses.replace(random_run(), scale=7.0))
    shutil.copytree(tmp_path / "E_12" / "run_01", tmp_path / "E_9" / "run_01")
    for k, content in ((2, b"1"), (3, b"2")):  # of one length, and not the same
        (tmp_path / "E_9" / f"run_0{k}").mkdir()
        (tmp_path / "E_9" / f"run_0{k}" / "results.json").write_bytes(content)
    (tmp_path / "E_12" / "run_02" / "results.json").write_bytes(encode_run(random_run())[:-20])
    table = inventory(tmp_path)
    assert table["same_as"].tolist() == ["", "", "", "E_12/run_01", "", ""]
    of_another_kind = "file does not fit"
    starts = ["", "file must be complete", "per_sequence_meta.scale is 7", "", of_another_kind, of_another_kind]
    assert [p if not start else p[: len(start)] for p, start in zip(table["problem"], starts, strict=True)] == starts
    assert table["sequences"].isna().tolist() == [False, True, False, False, True, True]


def test_the_misplaced_copy_is_the_copy(tmp_path: Path) -> None:
    write_run(tmp_path / "A/copy/E_6/results.json", random_run(6, seed=3))
    write_run(tmp_path / "E_6" / "run_02" / "results.json", random_run(6, seed=3))
    assert inventory(tmp_path)["same_as"].tolist() == ["E_6/run_02", ""]


def test_a_file_is_parsed_once_unless_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_batch(tmp_path / "E_12", random_run(seed=1), random_run(seed=2))
    parsed: list[str] = []

    def counted(data: bytes, name: str) -> Run:
        parsed.append(name)
        return parse_run(data, name)

    monkeypatch.setattr(folders, "parse_run", counted)
    inventory(tmp_path)
    for _ in range(2):
        runs = load_runs(tmp_path / "E_12")
    assert len(parsed) == 2
    write_run(tmp_path / PLACE, random_run(seed=3))
    assert load_runs(tmp_path / "E_12")["run_01"] == random_run(seed=3) != runs["run_01"]
    assert parsed[2:] == [str(tmp_path / PLACE)]


def test_sound_runs_leave_out_what_does_not_load_add_up_or_record_enough(tmp_path: Path) -> None:
    run = random_run()
    write_batch(tmp_path / "E_12", run, dataclasses.replace(run, delta_h_per_lr=1.0), run, totals_only_run())
    (tmp_path / "E_12" / "run_03" / "results.json").write_text("{")
    with pytest.warns(RunWarning) as caught:
        assert list(sound_runs(tmp_path / "E_12", needs=["linear"])) == ["run_01"]
    starts = ("run_03", "run_02 of E_12: delta_h_per_lr is 1", "run_04 of E_12: approx.per_sequence[].gdotv")
    for warning, start in zip(caught, starts, strict=True):
        assert str(warning.message).startswith(f"skipped {start}")
    assert {w.filename for w in caught} == {__file__}


def test_what_no_run_records_is_said_once_and_runs_without_the_correction_are_not_mixed_in(tmp_path: Path) -> None:
    write_batch(tmp_path / "E_2", totals_only_run(), dataclasses.replace(totals_only_run(), delta_h_per_lr=-6.0))
    with refused(
        f"{tmp_path / 'E_2'}: approx.per_sequence[].gdotv is recorded", "run_01, run_02", error=NotRecordedError
    ):
        sound_runs(tmp_path / "E_2", needs=["linear"])
    plain = [random_run(seed=k, score=False) for k in (1, 2)]
    write_batch(tmp_path / "E_12", *plain)
    assert len(sound_runs(tmp_path / "E_12", needs=["linear"])) == 2
    write_batch(tmp_path / "E_12", *plain, random_run())
    with pytest.warns(RunWarning, match="skipped run_01, run_02 of E_12: .*denom_corr_unscaled") as caught:
        assert list(sound_runs(tmp_path / "E_12", needs=["linear"])) == ["run_03"]
    assert len(caught) == 1


def test_a_batch_with_no_sound_run_is_left_out_and_none_at_all_is_an_error(tmp_path: Path) -> None:
    write_batch(tmp_path / "E_12", random_run())
    write_batch(tmp_path / "E_2", dataclasses.replace(totals_only_run(), scale=7.0))
    with pytest.warns(RunWarning, match="skipped (run_01 of )?E_2: .*per_sequence_meta.scale is 7"):
        assert list(sound_batches(tmp_path)) == ["E_12"]
    (tmp_path / PLACE).write_text("{")
    of_all = f"{tmp_path / PLACE}: file must be complete JSON", "; E_2: ", "per_sequence_meta.scale is 7"
    with pytest.warns(RunWarning), refused(f"{tmp_path}: folder holds no run", *of_all, error=RunError):
        sound_batches(tmp_path)


def test_a_run_whose_step_was_skipped_is_left_out_with_that_reason(tmp_path: Path) -> None:
    still = two_sequences(h_base=[1, 2], h_new={1e-6: [1, 2]}, log_weights={1e-6: [0, 0]})
    for name, run in (("run_01", still), ("run_02", two_sequences())):
        write_run(tmp_path / "E_2" / name / "results.json", run)
    with pytest.warns(RunWarning, match="skipped run_01 of E_2: at eta 1e-06 nothing changed: the step was skipped"):
        assert list(sound_runs(tmp_path / "E_2")) == ["run_02"]
    assert "the step was skipped" in inventory(tmp_path)["problem"][0]
