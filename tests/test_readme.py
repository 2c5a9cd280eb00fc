"""What the README shows must run as written."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pandas as pd
import pytest

from analysis_helpers import inventory
from analysis_helpers.report.execution import find_notebooks
from tests.conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_example_of_writing_a_run_writes_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arrays = {
        "lengths": [3, 4],
        "entropy_before": [1.5, 2.0],
        "entropy_after": [1.4, 1.9],
        "log_ratio": [0.0, 0.1],
        "linear_terms": [-1.0, -2.0],
    }
    exec(BLOCKS[0], arrays)
    assert inventory(tmp_path / "my_runs")[["batch", "run", "problem"]].to_numpy().tolist() == [["E_256", "run_01", ""]]


def test_the_example_of_a_comparison_prints_its_summary(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPOSITORY)
    exec(BLOCKS[1], {})
    assert "synthetic_std" in capsys.readouterr().out


def test_the_verdict_is_the_one_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(REPOSITORY)
    exec(BLOCKS[2], {})
    [shown] = re.findall(r"```text\n(Verdict .*?)```", README, re.DOTALL)
    assert capsys.readouterr().out.split() == shown.split()  # the README wraps its lines


def test_every_example_is_tested_here() -> None:
    assert len(BLOCKS) == 3


@pytest.mark.slow
def test_the_sweep_runs_as_written_and_the_same_command_resumes_it(tmp_path: Path) -> None:
    commands = re.findall(r"^    (\.venv/bin/python -m analysis_helpers sweep --notebook .*)$", README, re.MULTILINE)
    assert len(commands) == 2
    assert commands[0] == commands[1]
    arguments = commands[0].replace("sweeps/first", str(tmp_path / "first")).split()[1:]
    for status in ("done", "kept"):
        subprocess.run([sys.executable, *arguments], check=True, cwd=REPOSITORY)
        assert pd.read_csv(tmp_path / "first" / "runlog.csv")["status"].tolist() == [status] * 4


def test_every_notebook_is_listed() -> None:
    assert all(f"notebooks/{path.name}" in README for path in find_notebooks())


def test_local_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    assert [link for link in links if not (REPOSITORY / link).exists()] == []


def test_every_make_target_named_here_exists() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)", README)) <= targets


def test_binder_installs_what_the_notebooks_need_at_the_versions_that_are_tested() -> None:
    environment = (REPOSITORY / "environment.yml").read_text(encoding="utf-8")
    assert "- --editable .[notebooks]" in environment
    assert "- --constraint constraints.txt" in environment
    [python] = re.findall(r"- python=(\d+\.\d+)", environment)
    oldest = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["requires-python"]
    assert tuple(map(int, python.split("."))) >= tuple(map(int, oldest.removeprefix(">=").split(".")))
