"""What the README shows must run as written; links and make targets of every document exist."""

import doctest
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis_helpers import inventory, read_run
from analysis_helpers.execution.sweep import find_notebooks
from analysis_helpers.runs.run import MEASURED_COLUMNS, SEQUENCE_COLUMNS
from tests.conftest import REPOSITORY

TEXT = (REPOSITORY / "README.md").read_text(encoding="utf-8")
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "data_samples/README.md")
WRITE_A_RUN, COMPARE, ASK = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_it_is_short() -> None:
    assert len(TEXT.splitlines()) <= 150


def test_the_example_of_writing_a_run_writes_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arrays: dict[str, Any] = {"lengths": [3, 4], "entropy_before": [1.5, 2.0], "entropy_after": [1.4, 1.9]}
    arrays |= {"score": [-1.0, 2.0], "score_part": [-1.0, -2.0], "direct_part": [-1.0, -2.0]}
    arrays |= {"log_ratio": [0.0, 0.1], "logp": [-1.4, -2.1], "lowest": [-1.0, -1.5], "prompts": ["a", "b"]}
    exec(WRITE_A_RUN, arrays)
    run = read_run("my_runs/E_128/run_01/results.json")
    assert {"linear", "score", "logp", "prompts"} <= set(run.supports)
    [row] = inventory("my_runs").to_dict("records")
    assert (row["sequences"], row["etas"], row["problem"]) == (2, (1.6e-6,), "")


def test_the_examples_print_what_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data_samples").symlink_to(REPOSITORY / "data_samples")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(COMPARE, names)
    assert names["comparison"].summary["subset_size"].tolist() == [256]
    assert names["true_seq"].sum() == pytest.approx(names["large"]["run_01"].measurement(1.6e-6).delta_h_true)
    assert len(names["draws"]) == 2 * len(names["large"]) * 200
    assert (tmp_path / "comparison.png").stat().st_size > 0
    exec(ASK, names)
    printed = capsys.readouterr().out
    [shown] = re.findall(r"```text\n(.*?)```", TEXT, re.DOTALL)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE  # lines are left out, and long ones wrapped
    assert doctest.OutputChecker().check_output(shown, printed, flags), printed
    assert names["largest"] == 1.28e-5 == max(names["small"]["run_01"].etas)


@pytest.mark.slow
def test_the_sweep_runs_as_written_and_the_same_command_resumes_it(tmp_path: Path) -> None:
    [command] = re.findall(r"^    analysis-helpers (sweep (?:.*\\\n)*.*)$", TEXT, re.MULTILINE)
    arguments = command.replace("\\\n", "").replace("sweeps/first", str(tmp_path / "first")).split()
    for status in ("done", "unchanged"):
        subprocess.run([sys.executable, "-m", "analysis_helpers", *arguments], check=True, cwd=REPOSITORY)
        assert pd.read_csv(tmp_path / "first" / "runlog.csv")["status"].tolist() == [status] * 4


def test_every_column_of_a_run_is_described() -> None:
    described = (REPOSITORY / "data_samples" / "README.md").read_text(encoding="utf-8")
    columns = [f"….{c.path}" for c in SEQUENCE_COLUMNS] + [f"….diagnostics.{c.path}" for c in MEASURED_COLUMNS]
    assert [path for path in columns if f"| `{path}` |" not in described] == []


def test_every_notebook_is_listed() -> None:
    assert all(f"notebooks/{path.name}" in TEXT for path in find_notebooks())


@pytest.mark.parametrize("document", DOCUMENTS)
def test_local_links_lead_to_a_file_and_a_heading(document: str) -> None:
    place = REPOSITORY / document
    for link, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", place.read_text(encoding="utf-8")):
        target = place.parent / link if link else place
        assert target.exists(), link
        assert not anchor or anchor in headings(target), anchor


@pytest.mark.parametrize("document", DOCUMENTS)
def test_make_targets_exist(document: str) -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    text = (REPOSITORY / document).read_text(encoding="utf-8")
    assert set(re.findall(r"(?:`|^    )make ([a-z-]+)", text, re.MULTILINE)) <= targets


def headings(document: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a document."""
    found = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in found}


def test_binder_installs_what_the_notebooks_need_at_the_versions_that_are_tested() -> None:
    environment = (REPOSITORY / "environment.yml").read_text(encoding="utf-8")
    assert "- --editable .[notebooks]" in environment
    assert "- --constraint constraints.txt" in environment
    [python] = re.findall(r"- python=(\d+\.\d+)", environment)
    oldest = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["requires-python"]
    assert tuple(map(int, python.split("."))) >= tuple(map(int, oldest.removeprefix(">=").split(".")))
