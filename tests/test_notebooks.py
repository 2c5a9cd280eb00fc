"""The notebooks: run for real and stored as they run. Their numbers are held in `tests/test_proof_notebooks.py`."""

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

from analysis_helpers.execution.pages import KEY_TAG, collected_result, key_figure
from analysis_helpers.notebook.display import RESULT_MIME
from tests.conftest import REPOSITORY

papermill = pytest.importorskip("papermill", reason="the extra 'notebooks' is not installed")
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def markdown_outputs(notebook: Any) -> list[str]:
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return [output.data["text/markdown"] for output in outputs if "text/markdown" in output.get("data", {})]


@every_notebook
def test_every_code_cell_was_run_in_order_and_none_stores_an_error(path: Path) -> None:
    cells = code_cells(read(path))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]


@every_notebook
def test_every_figure_has_an_alternative_text_with_numbers_and_one_is_the_key_figure(path: Path) -> None:
    notebook = read(path)
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    figures = [output for output in outputs if "image/png" in output.get("data", {})]
    texts = [output.metadata["image/png"]["alt"] for output in figures]
    assert len(set(texts)) == len(texts)
    assert texts == [output.data["text/plain"] for output in figures]
    assert all(re.search(r"\d", text) for text in texts)
    assert [KEY_TAG in cell.metadata.get("tags", []) for cell in notebook.cells].count(True) == 1
    assert key_figure(notebook) is not None


@every_notebook
def test_metadata_are_clean_and_all_but_the_place_of_the_answer_and_controls_is_compared(path: Path) -> None:
    notebook = read(path)
    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert all(set(cell.metadata) <= {"tags"} for cell in notebook.cells)
    ignored = [cell for cell in code_cells(notebook) if "nbval-ignore-output" in cell.metadata.get("tags", [])]
    controls = ["Explorer(given)"] if path.stem == "07_explore" else []
    assert [cell.source.splitlines()[-1] for cell in ignored] == ["answer = AnswerInBrief()", *controls]


def test_the_first_notebook_leads_to_every_other_in_their_order() -> None:
    first, *others = NOTEBOOKS
    text = read(first).cells[-1].source
    assert re.findall(r"\]\((\w+)\.ipynb\)", text) == [path.stem for path in others]


@every_notebook
def test_cells_are_short_and_leave_functions_to_the_package(path: Path) -> None:
    for cell in code_cells(read(path)):
        assert len(cell.source.splitlines()) <= 15
        assert "def " not in cell.source


@every_notebook
def test_notebooks_import_what_users_import(path: Path) -> None:
    source = "\n".join(cell.source for cell in code_cells(read(path)))
    modules = set(re.findall(r"^(?:from|import) (analysis_helpers[\w.]*)", source, re.MULTILINE))
    interface = {f"analysis_helpers{part}" for part in ("", ".inference", ".runs", ".plots", ".notebook")}
    own = {"06_known_truth": {"analysis_helpers.synthetic"}, "08_measure_a_model": {"analysis_helpers.measure"}}
    assert modules <= interface | own.get(path.stem, set())


@every_notebook
def test_parameters_are_annotated_literals_that_papermill_understands(path: Path) -> None:
    [cell] = [cell for cell in code_cells(read(path)) if "parameters" in cell.metadata.get("tags", [])]
    known = papermill.inspect_notebook(path)
    assert len(known) == len(cell.source.splitlines())
    assert all(entry["inferred_type_name"] != "None" and entry["help"] for entry in known.values())


@every_notebook
def test_the_essay_has_its_parts_in_order_and_is_short(path: Path) -> None:
    notebook = read(path)
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    parts = ("# ", "## Answer in brief", "## Parameters", "## Summary", "## Limits")
    places = ["\n".join(texts).index(part) for part in parts]
    assert places == sorted(places)
    how_to_read = [text for text in texts if text.startswith("**How to read it.**")]
    assert how_to_read
    assert all(len(text.split()) <= 50 for text in how_to_read)
    assert len([line for line in markdown_outputs(notebook)[0].splitlines() if not line.startswith("- **Note:")]) <= 3


@every_notebook
def test_the_answer_on_top_is_the_one_computed_below_and_the_result_is_shown_once(path: Path) -> None:
    notebook = read(path)
    top, bottom = markdown_outputs(notebook)
    assert top == bottom
    assert "computed below" not in top
    results = [o for cell in code_cells(notebook) for o in cell.outputs if RESULT_MIME in o.get("data", {})]
    assert len(results) == 1
    assert collected_result(notebook)["notebook"] == path.stem
