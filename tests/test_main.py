import json
import re
import sys
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner, Result

import analysis_helpers
from analysis_helpers import Runs, load_runs, synthetic_runs, verdict, write_run
from analysis_helpers.__main__ import main
from analysis_helpers.execution.sweep import find_notebooks, missing_extra
from analysis_helpers.runs.json import encode_run
from tests.building import random_run
from tests.conftest import REPOSITORY
from tests.sweeping import runlog, write_notebook


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_inventory_is_printed_and_a_problem_is_an_exit_status_of_1(
    sample_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(sample_root.parent))
    monkeypatch.setenv("USERPROFILE", str(sample_root.parent))
    result = call("inventory", f"~/{sample_root.name}/")
    assert result.exit_code == 0
    assert result.output.count("sequences;") == 8
    assert "1.6e-06, 3.2e-06" in result.output
    bad = tmp_path / "E_12" / "run_01" / "results.json"
    bad.parent.mkdir(parents=True)
    bad.write_bytes(encode_run(random_run())[:100])
    result = call("inventory", tmp_path)
    assert result.exit_code == 1
    assert "file must be complete JSON" in result.output


@pytest.mark.parametrize("command", [None, "inventory", "verdict", "report", "sweep", "simulate", "measure"])
def test_help_is_shown_and_nothing_else(command: str | None) -> None:
    result = call(*filter(None, (command, "--help")))
    assert result.exit_code == 0
    assert result.output.startswith("Usage: ")
    assert "Error" not in result.output


@pytest.mark.parametrize("command", ["inventory", "verdict", "report", "sweep"])
def test_the_data_root_is_an_argument_or_an_option_and_one_folder(command: str, tmp_path: Path) -> None:
    required = ["--out", tmp_path / "out"] if command == "sweep" else []
    for places in (["nowhere"], ["--data-root", "nowhere"], [".", "--data-root", tmp_path]):
        result = call(command, *places, *required)
        assert result.exit_code == 2
        assert str(places[-1]) in result.output
    assert not (tmp_path / "out").exists()


def test_lines_of_the_inventory_fit_the_terminal_whatever_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    etas = [1e-6 * k for k in range(1, 51)]
    write_run(tmp_path / "E_64" / "run_01" / "results.json", synthetic_runs(1, 64, etas)["run_01"])
    (tmp_path / "E_64" / "run_02").mkdir()
    lines = call("inventory", tmp_path).output.splitlines()
    assert max(map(len, lines)) <= 60
    said = " ".join(map(str.strip, lines))
    assert "E_64/run_01: 64 sequences; etas 1e-06 to 5e-05 (50)" in said
    assert "E_64/run_02: PROBLEM: holds no results.json" in said


def test_the_sample_data_are_the_default(sample_root: Path) -> None:
    for command in ("inventory", "verdict"):
        tables = [call(command, *places).output.split() for places in ([], [sample_root], ["--data-root", sample_root])]
        assert tables[1] == tables[2] == [str(sample_root) if "data_samples" in word else word for word in tables[0]]


def test_reports_and_sweeps_run_on_the_data_root(tmp_path: Path, sample_root: Path) -> None:
    notebook = write_notebook(tmp_path / "n" / "a.ipynb", parameters='data_root: str = "."\nseed: int = 1')
    for command, place in (("report", [sample_root]), ("sweep", ["--data-root", sample_root])):
        out = tmp_path / command
        result = call(command, *place, "-p", "seed", 2, "--notebooks", notebook.parent, "--out", out)
        assert result.exit_code == 1  # its cells ask for parameters that it has not
        [parameters] = runlog(out)["parameters"].map(json.loads)
        assert parameters == {"data_root": str(sample_root), "seed": 2}


def test_measuring_without_pytorch_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "analysis_helpers.measure", raising=False)
    monkeypatch.delattr(analysis_helpers, "measure", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    result = call("measure", "--demo", "out")
    assert result.exit_code == 1
    assert result.output.endswith('measuring needs PyTorch and transformers: pip install ".[measure]" in a checkout\n')


def test_the_verdict_needs_no_option_and_takes_several_step_sizes(sample_root: Path, large_runs: Runs) -> None:
    small = load_runs(sample_root / "E_256")
    assert str(verdict(large_runs, 1.6e-6, 256, small_runs=small)) in call("verdict", sample_root).output
    both = call("verdict", sample_root, "--eta", "1.6e-6", "--eta", "3.2e-6", "-n", 64, "--small-batch", "").output
    for eta in (1.6e-6, 3.2e-6):
        assert str(verdict(large_runs, eta, 64)) in both
    refused = call("verdict", sample_root, "--eta", "5e-6")
    assert refused.exit_code == 1
    assert refused.output.startswith("Error: eta must be a step size of E_2048")


def test_the_verdict_as_json_has_codes_and_numbers(sample_root: Path, large_runs: Runs) -> None:
    printed = call("verdict", sample_root, "--eta", "1.6e-6", "-n", 64, "--small-batch", "", "--json").output
    assert json.loads(printed) == [verdict(large_runs, 1.6e-6, 64).record()]


def test_simulate_writes_the_sample_data(tmp_path: Path) -> None:
    result = call("simulate", tmp_path / "made")
    assert result.exit_code == 0
    assert len(list((tmp_path / "made").rglob("results.json"))) == 8


def test_the_version_is_that_of_the_package() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    [version] = re.findall(r'^version = "(.+)"$', text, re.MULTILINE)
    assert version in call("--version").output


@pytest.mark.parametrize(("option", "value"), [("--eta", "-1"), ("--subset-size", "256.5")])
def test_a_bad_option_is_refused_by_name_and_value_before_anything_runs(option: str, value: str) -> None:
    result = call("report", option, value)
    assert result.exit_code == 2
    assert f"Invalid value for '{option}': " in result.output
    assert value in result.output


@pytest.mark.slow  # runs every notebook, which nbval does in `make test` too
def test_a_report_runs_every_notebook_and_loads_nothing_from_a_network(tmp_path: Path) -> None:
    result = call("report", "--out", tmp_path, "--eta", "3.2e-6", "--subset-size", "128")
    assert result.exit_code == 0, result.output
    statuses = {path.stem: "skipped" if missing_extra(path) else "done" for path in find_notebooks()}
    assert dict(runlog(tmp_path)[["notebook", "status"]].to_numpy()) == statuses
    results = pd.read_csv(tmp_path / "results.csv")
    for name, value in (("eta", 3.2e-6), ("subset_size", 128)):
        assert set(results[f"param.{name}"].dropna()) == {value}
    about_one = results["notebook"].isin(["00_start_here", "04_linearity"])  # whose trend uses all step sizes
    assert set(results.loc[~about_one, "param.etas"].dropna()) == {"[3.2e-06]"}
    assert set(results.loc[about_one, "param.etas"]) == {"[1.6e-06, 3.2e-06]"}
    for page in tmp_path.rglob("*.html"):
        pattern = r"""<(?:script|link|img|iframe)[^>]*\s(?:src|href)=["'](?!data:)([^"']+)"""
        assert re.findall(pattern, page.read_text("utf-8")) == [], page.name
