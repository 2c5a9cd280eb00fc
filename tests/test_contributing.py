"""What CONTRIBUTING.md shows must work as written, and do what it says."""

import re
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from analysis_helpers import Runs, estimators, run_health, verdict
from analysis_helpers.inference import health, health_overview
from tests import test_notebooks
from tests.building import ETAS, estimate, known, plain_estimate, random_run
from tests.conftest import REPOSITORY

TEXT = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
ESTIMATOR, USE, NOTEBOOK, CHECK = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def estimator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimators, "ESTIMATORS", dict(estimators.ESTIMATORS))
    exec(ESTIMATOR, {})


def cells(script: str) -> Any:
    """Return the notebook that a script with a ``# %%`` before each cell stands for."""
    notebook = nbformat.v4.new_notebook()
    cell = re.compile(r"^# %%( \[markdown\])?(?: tags=\[([^\n]*)\])?\n(.*?)(?=^# %%|\Z)", re.MULTILINE | re.DOTALL)
    for kind, tags, body in cell.findall(script):
        metadata = {"tags": re.findall(r'"(.*?)"', tags)} if tags else {}
        text = re.sub(r"^# ?", "", body, flags=re.MULTILINE).strip()
        markdown = nbformat.v4.new_markdown_cell(text, metadata=metadata)
        notebook.cells.append(markdown if kind else nbformat.v4.new_code_cell(body.strip(), metadata=metadata))
    return notebook


@pytest.mark.usefixtures("estimator")
def test_the_estimator_is_the_ratio_with_linear_terms_as_recorded() -> None:
    run = random_run()
    found = estimate(run, ETAS[0], "as_recorded")
    assert found == pytest.approx(plain_estimate(run, ETAS[0], range(12), "ratio"), rel=1e-9)
    batch = estimators.columns(run, ETAS[0], "as_recorded")
    on_subset = batch.estimate(batch.values[:5].sum(axis=0))
    assert on_subset[0] == pytest.approx(plain_estimate(run, ETAS[0], range(5), "ratio")[0], rel=1e-9)
    mean = known(run.gdotv)[:5].sum() * run.total_tokens / run.token_counts[:5].sum()
    assert on_subset[1] == pytest.approx(ETAS[0] * mean, rel=1e-9)


@pytest.mark.usefixtures("estimator")
def test_standard_error_prediction_and_planning_come_for_nothing() -> None:
    found: dict[str, Any] = {}
    exec(USE, found)
    # The SD of 4,000 draws is known to 1.1 %; 5 % are 4.5 standard errors: fails with probability about 1e-5.
    assert found["draws"].std(ddof=1) == pytest.approx(found["subset_error"], rel=0.05)
    assert found["subset_error"] == pytest.approx(found["fresh_error"] * np.sqrt(1 - 128 / 1024), rel=1e-3)
    predicted = found["predicted"]
    assert predicted.sampling_sd < predicted.sd
    # What is required for an SD of 0.25 follows from the SD that sampling gives at 128.
    assert found["required"] == np.ceil(128 * (predicted.sampling_sd / 0.25) ** 2 * (1 - 1e-12))


def test_the_notebook_passes_the_checks_of_all_notebooks(tmp_path: Path) -> None:
    path = tmp_path / "notebooks" / "09_budget.ipynb"
    path.parent.mkdir()
    (tmp_path / "data_samples").symlink_to(REPOSITORY / "data_samples")
    nbformat.write(cells(NOTEBOOK), path)
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": path.parent}}).execute()
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": {"name": "python"}})
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    nbformat.write(notebook, path)
    checks = [
        check
        for name, check in vars(test_notebooks).items()
        if name.startswith("test_") and getattr(check, "pytestmark", None) == [test_notebooks.every_notebook.mark]
    ]
    assert checks
    for check in checks:
        check(path)


def test_the_check_of_health_follows_into_tables_sentences_and_verdicts(
    monkeypatch: pytest.MonkeyPatch, small_runs: Runs
) -> None:
    checks = health.CHECKS
    monkeypatch.setitem(checks, "cut_off_share", checks["integrity"])  # so that it goes when the test is over
    exec(CHECK, {})
    table = run_health(small_runs)
    rows = table[table["check"] == "cut_off_share"]
    assert rows["value"].tolist() == [np.mean(r.token_counts == r.token_counts.max()) for r in small_runs.values()]
    overview = health_overview(table).set_index("check")
    assert overview.loc["cut_off_share", "flagged"] == "run_01; run_02; run_03; run_04"
    assert "cut_off_share 0.59 to 0.613 (limit 0.1) in run_01" in " ".join(verdict(small_runs, 1.6e-6, 64).reasons)
    of_other_lengths = run_health({"run_01": random_run(200)}).set_index("check")
    assert not of_other_lengths.loc["cut_off_share", "flag"]


def test_every_file_named_exists() -> None:
    named = set(re.findall(r"`([\w/]+\.py)`", TEXT))
    for other in ("Makefile", "pyproject.toml"):  # which names what is mutated, and the tests that should notice
        named |= set(re.findall(r"(?:analysis_helpers|tests)/[\w/]+\.py", (REPOSITORY / other).read_text("utf-8")))
    assert len(named) > 40
    files = [path for folder in ("analysis_helpers", "tests") for path in (REPOSITORY / folder).rglob("*.py")]
    assert [name for name in named if not any(path.match(name) for path in files)] == []
