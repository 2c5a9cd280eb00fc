from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
import pytest

from analysis_helpers.execute import Execution, find_notebooks, refresh, run_notebooks
from analysis_helpers.pages import collected_result, save_figures, write_report
from tests.conftest import REPOSITORY

PARAMETERS = "eta: float = 1e-6  # step size\nname: str = 'x'  # a name"


def write_notebook(path: Path, sources: Sequence[str], parameters: str = PARAMETERS, title: str = "# A title") -> Path:
    parameters_cell = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    cells = [nbformat.v4.new_code_cell(source, metadata={"tags": ["key"]}) for source in sources]
    metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell(title), parameters_cell, *cells], metadata=metadata
    )
    nbformat.write(notebook, path)
    return path


def run(notebooks: Sequence[Path], parameters: dict[str, Any], out: Path) -> list[Execution]:
    return list(run_notebooks(notebooks, parameters, out))


def test_notebooks_are_found_beside_the_package_or_where_told(tmp_path: Path) -> None:
    names = [path.stem for path in find_notebooks()]
    assert names == [
        "00_start_here",
        "01_load_runs",
        "02_batch_size_comparison",
        "03_subsampling_distribution",
        "04_choosing_a_batch_size",
        "05_known_truth",
        "06_explore",
    ]
    (tmp_path / "b.ipynb").touch()
    (tmp_path / "a.ipynb").touch()
    assert find_notebooks(tmp_path) == [tmp_path / "a.ipynb", tmp_path / "b.ipynb"]


def test_a_folder_without_notebooks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no notebooks \(\*\.ipynb\) in .*nothing"):
        find_notebooks(tmp_path / "nothing")


def test_a_parameter_that_no_notebook_has_stops_before_anything_runs(tmp_path: Path) -> None:
    notebook = write_notebook(tmp_path / "a.ipynb", ["1 / 0"])
    with pytest.raises(ValueError, match="no notebook has the parameter subset_size"):
        run([notebook], {"subset_size": 3}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_failure_is_kept_with_its_error_and_does_not_stop_the_others(tmp_path: Path) -> None:
    failing = write_notebook(
        tmp_path / "a.ipynb", ["print('before')", "raise ValueError('<too small>')", "print('after')"]
    )
    figure = "import matplotlib.pyplot as plt\nplt.plot([1, 2]);"
    working = write_notebook(
        tmp_path / "b.ipynb", [figure, "print(etas, name)"], "etas: list = [1e-6]\nname: str = 'x'"
    )
    before = os.environ.get("IPYTHONDIR")
    executions = run([failing, working], {"eta": 5e-6, "name": "given"}, tmp_path / "out")
    assert os.environ.get("IPYTHONDIR") == before
    assert executions == [
        Execution("a", tmp_path / "out" / "a.ipynb", "ValueError: <too small>"),
        Execution("b", tmp_path / "out" / "b.ipynb"),
    ]
    partial = nbformat.read(executions[0].path, as_version=4)
    assert any(cell.get("outputs") and cell.outputs[0].get("text") == "before\n" for cell in partial.cells)
    finished = nbformat.read(executions[1].path, as_version=4)
    assert finished.cells[-1].outputs[0].text == "[5e-06] given\n"  # eta fills etas, as a list of one

    index = write_report(executions, tmp_path / "report")
    page = index.read_text(encoding="utf-8")
    assert "ValueError: &lt;too small&gt;" in page
    assert page.count("data:image/png;base64") == 1
    assert (tmp_path / "report" / "b.html").is_file()
    assert (tmp_path / "report" / "figures" / "b-1.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "report" / "figures" / "b-1.svg").read_text(encoding="utf-8")


def test_a_notebook_that_left_nothing_still_has_its_place_on_the_page(tmp_path: Path) -> None:
    index = write_report([Execution("gone", tmp_path / "gone.ipynb", "DeadKernelError: <b>")], tmp_path / "report")
    page = index.read_text(encoding="utf-8")
    assert "DeadKernelError: &lt;b&gt;" in page
    assert "gone.html" not in page


def test_titles_and_names_are_escaped(tmp_path: Path) -> None:
    path = write_notebook(tmp_path / "a & b.ipynb", [], title="# Is <script>alert(1)</script> safe?")
    page = write_report([Execution("a & b", path)], tmp_path / "report").read_text(encoding="utf-8")
    assert "<script>" not in page
    assert 'href="a%20%26%20b.html"' in page


def test_a_notebook_without_result_or_figure_gives_none(tmp_path: Path) -> None:
    notebook = nbformat.read(write_notebook(tmp_path / "a.ipynb", ["1"]), as_version=4)
    assert collected_result(notebook) == {}
    assert save_figures(notebook, tmp_path / "figures", "a") == []


def test_refreshing_stores_outputs_and_only_clean_metadata(tmp_path: Path) -> None:
    path = write_notebook(tmp_path / "a.ipynb", ["eta * 2"])
    refresh(path)
    notebook = nbformat.read(path, as_version=4)
    assert notebook.cells[-1].outputs[0].data["text/plain"] == "2e-06"
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert [cell.metadata for cell in notebook.cells] == [{}, {"tags": ["parameters"]}, {"tags": ["key"]}]


def test_pages_and_data_need_nothing_from_the_working_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_notebooks()[0].parent == REPOSITORY / "notebooks"
