"""The original's numbers in notebooks 02 and 03, recomputed by the second implementation."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest

from analysis_helpers import synthetic_runs, write_run
from analysis_helpers.execution import RunOptions, run_notebooks
from analysis_helpers.execution.pages import collected_result
from tests.building import without_score
from tests.conftest import REPOSITORY
from tests.plain import estimates
from tests.plain.reading import mean_true_total, read_batches

papermill = pytest.importorskip("papermill", reason="the extra 'notebooks' is not installed")
NOTEBOOKS, SAMPLES = REPOSITORY / "notebooks", REPOSITORY / "data_samples"
MOMENTS = ["mean_err_rel", "std_err_rel", "var_err_rel", "min_err_rel", "max_err_rel", "num_samples"]


def comparison(root: Path, given: dict[str, Any], estimator: str) -> list[dict[str, Any]]:
    """Return subsets of the large runs beside the actual small ones."""
    large, small = (read_batches(root / given[name]) for name in ("large_batch", "small_batch"))
    eta, reference = given["eta"], mean_true_total(large, given["eta"])
    values = estimates.compared_errors(large, eta, given["subset_size"], given["num_samples"], given["seed"], estimator)
    mean, sd, _, low, high, _ = estimates.summary(values)
    actual = [estimates.full_error(run, eta, reference, estimator) for run in small.values()]
    synthetic = {"synthetic_mean": mean, "synthetic_std": sd, "synthetic_min": low, "synthetic_max": high}
    return [{"eta": eta, "actual_values": actual, **synthetic}]


def distribution(root: Path, given: dict[str, Any], estimator: str) -> list[dict[str, Any]]:
    """Return how err_rel spreads over subsets of all runs, for each eta."""
    runs = read_batches(root / given["large_batch"])
    size, count, seed = (given[name] for name in ("subset_size", "samples_per_eta", "seed"))
    found = estimates.distributed_errors(runs, given["etas"], size, count, seed, estimator)
    return [{"eta": eta, **dict(zip(MOMENTS, estimates.summary(found[eta]), strict=True))} for eta in sorted(found)]


RECOMPUTED = {"02_batch_size_comparison": comparison, "03_subsampling_distribution": distribution}
both = pytest.mark.parametrize("notebook", RECOMPUTED)


def assert_recomputed(path: Path, root: Path = SAMPLES) -> dict[str, Any]:
    """Hold what a notebook collected against the second implementation; return its parameters."""
    result = collected_result(nbformat.read(path, as_version=4))
    for estimator in ("partial_sum", "ratio"):
        rows = [row for row in result["rows"] if row["estimator"] == estimator]
        expected = RECOMPUTED[result["notebook"]](root, result["parameters"], estimator)
        for row, plain in zip(rows, expected, strict=True):
            for name, value in plain.items():
                assert row[name] == pytest.approx(value, rel=1e-8, abs=1e-9), name
    return dict(result["parameters"])


@both
def test_stored_numbers_are_those_of_the_second_implementation(notebook: str) -> None:
    assert_recomputed(NOTEBOOKS / f"{notebook}.ipynb")


@pytest.mark.slow  # a kernel each
@both
def test_on_real_runs_with_other_parameters_and_from_another_folder_too(
    notebook: str, tmp_path: Path, research_root: Path
) -> None:
    source, target = NOTEBOOKS / f"{notebook}.ipynb", tmp_path / "out.ipynb"
    parameters = {"data_root": str(research_root), "subset_size": 64.0, "seed": 7}
    papermill.execute_notebook(source, target, parameters=parameters, progress_bar=False, cwd=tmp_path)
    assert assert_recomputed(target, research_root)["seed"] == 7


@pytest.mark.slow  # two kernels each
@pytest.mark.parametrize("kind", ["one eta", "one eta, no score", "one run", "one run, totals alone"])
def test_runs_that_record_little_have_an_answer_and_notebook_04(tmp_path: Path, kind: str) -> None:
    runs = synthetic_runs(1 if "one run" in kind else 3, 256, [1.6e-6] if "one eta" in kind else [1.6e-6, 3.2e-6])
    for name, run in runs.items():
        made = without_score(run) if "no score" in kind else run
        made = replace(without_score(run), gdotv=None) if "totals" in kind else made
        write_run(tmp_path / "data" / "E_256" / name / "results.json", made)
    notebooks = [NOTEBOOKS / f"{name}.ipynb" for name in ("00_start_here", "04_linearity")]
    _, failed = run_notebooks(
        "report", notebooks, {"data_root": [str(tmp_path / "data")]}, tmp_path / "out", RunOptions()
    )
    log = pd.read_csv(tmp_path / "out" / "runlog.csv").set_index("notebook")
    assert failed == 0, log["reason"].tolist()
    assert log.loc["00_start_here", "status"] == "done"
    assert log.loc["04_linearity", "status"] == "done"
