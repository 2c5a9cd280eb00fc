from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis_helpers import Run, RunError, inventory, write_run
from analysis_helpers.checks import RunWarning
from analysis_helpers.results_json import encode_run
from analysis_helpers.run_tables import (
    contribution_table,
    contribution_tails,
    run_totals,
)
from tests.building import random_run, totals_only_run


def test_the_inventory_lists_every_file_with_what_it_supports(sample_root: Path) -> None:
    table = inventory(sample_root)
    assert list(table.columns) == ["batch", "run", "sequences", "etas", "supports", "same_as", "problem"]
    assert list(zip(table["batch"], table["run"], strict=True)) == [
        (f"E_{size}", f"run_0{k}") for size in (2048, 256) for k in (1, 2, 3, 4)
    ]
    assert table["sequences"].tolist() == [2048] * 4 + [256] * 4
    assert (table["problem"] == "").all()
    assert (table["same_as"] == "").all()
    assert table["etas"].iloc[0] == (1.6e-6, 3.2e-6)
    assert table["supports"].iloc[0] == "linear, score, baseline_entropy"


def test_bad_files_and_copies_are_listed_and_nothing_is_raised(tmp_path: Path) -> None:
    for k in (1, 2):
        write_run(tmp_path / "E_12" / f"run_0{k}" / "results.json", random_run(seed=k))
    shutil.copytree(tmp_path / "E_12" / "run_01", tmp_path / "E_9" / "run_01")
    shutil.copytree(tmp_path / "E_12" / "run_01", tmp_path / "E_9" / "run_02")
    (tmp_path / "E_12" / "run_02" / "results.json").write_bytes(encode_run(random_run())[:-20])
    (tmp_path / "E_12" / "run_03" / "results.json").mkdir(parents=True)
    table = inventory(tmp_path)
    assert table["same_as"].tolist() == ["", "", "", "E_12/run_01", "E_12/run_01"]
    assert table["problem"].iloc[0] == ""
    assert table["problem"].iloc[1].startswith("file must be complete JSON, got ")
    assert table["problem"].iloc[2] == "file cannot be read (Is a directory)"
    assert table["sequences"].isna().tolist() == [False, True, True, False, False]


def test_a_missing_data_root_is_an_error_that_says_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(RunError, match=r"nowhere: folder does not exist; .* there is other/"):
        inventory(tmp_path / "nowhere")


def test_files_of_one_length_are_not_the_same_for_that(tmp_path: Path) -> None:
    for k, byte in ((1, b"1"), (2, b"2")):
        path = tmp_path / "E_1" / f"run_0{k}" / "results.json"
        path.parent.mkdir(parents=True)
        path.write_bytes(byte)
    assert inventory(tmp_path)["same_as"].tolist() == ["", ""]


def write_batch(folder: Path, runs: list[Run]) -> None:
    for k, run in enumerate(runs, start=1):
        write_run(folder / f"run_{k:02d}" / "results.json", run)


def test_totals_are_listed_by_eta_batch_and_run() -> None:
    run = random_run()
    table = run_totals({"E_12": {"run_01": run, "run_02": random_run(seed=2)}, "E_2": {"run_01": totals_only_run()}})
    assert list(table.columns) == [
        "batch",
        "run",
        "eta",
        "sequences",
        "true",
        "linear",
        "true_se",
        "linear_se",
        "ess_share",
    ]
    assert table["eta"].tolist() == [1e-6, 1e-6, 1e-6, 2e-6, 2e-6]
    first = table.iloc[0]
    assert (first["true"], first["linear"]) == (run.measurements[0].delta_h_true, 1e-6 * run.delta_h_per_lr)
    ess = run.measurements[0].ess
    assert ess is not None
    assert first["ess_share"] == pytest.approx(ess / 12, rel=1e-12)


def test_contributions_have_a_row_a_sequence(large_runs: dict[str, Run]) -> None:
    table = contribution_table(large_runs, 1.6e-6)
    assert len(table) == 4 * 2048
    totals = table.groupby("run")["true"].sum()
    for name, run in large_runs.items():
        assert totals[name] == pytest.approx(run.measurement(1.6e-6).delta_h_true, rel=1e-9)


def test_tails_measure_the_largest_and_the_top_hundredth() -> None:
    values = np.array([0.0] * 198 + [10.0, -10.0])
    table = contribution_tails(pd.DataFrame({"run": "run_01", "true": values, "linear": np.arange(200.0)}))
    true, linear = table.to_dict("records")
    assert true["top_1pct_share"] == 1.0
    assert true["sd"] == pytest.approx(np.sqrt(200 / 199))
    assert true["largest"] == pytest.approx(10 / np.sqrt(200 / 199))
    assert linear["kind"] == "linear"
    assert linear["top_1pct_share"] == pytest.approx(2 * 99.5**2 / np.sum((np.arange(200) - 99.5) ** 2))


def test_contributions_at_an_unknown_eta_say_which_there_are() -> None:
    with pytest.raises(ValueError, match="none of run_01 has eta 5e-06; they have 1e-06, 2e-06"):
        contribution_table({"run_01": random_run()}, 5e-6)


def test_a_totals_only_run_has_no_contributions_and_is_named() -> None:
    with pytest.warns(RunWarning, match="skipped run_02: it has no per-sequence terms, only totals"):
        table = contribution_table({"run_01": random_run(), "run_02": totals_only_run()}, 1e-6)
    assert set(table["run"]) == {"run_01"}
    with pytest.warns(RunWarning, match="only totals"):
        assert contribution_table({"run_02": totals_only_run()}, 1e-6).empty
