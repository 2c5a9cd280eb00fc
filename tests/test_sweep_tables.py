from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest

from analysis_helpers.notebook import RESULT_MIME
from analysis_helpers.sweep import Outcome, Rerun
from analysis_helpers.sweep_tables import results_table, runlog_table, write_table


def outcome(
    folder: Path, eta: float, rows: list[dict[str, Any]] | None, *, error: str = "", data_root: str = ""
) -> Outcome:
    """Return the outcome of a notebook that collected the rows; None: it did not come so far."""
    notebook = nbformat.v4.new_notebook()
    if rows is not None:
        parameters = {"eta": eta, "etas": [eta]} | ({"data_root": data_root} if data_root else {})
        payload = {"notebook": "tiny", "parameters": parameters, "rows": rows}
        output = nbformat.v4.new_output("display_data", data={RESULT_MIME: payload})
        notebook.cells = [nbformat.v4.new_code_cell("", outputs=[output])]
    rerun = Rerun(folder / "tiny.ipynb", {"eta": eta}, f"tiny_eta={eta:g}", "key")
    path = folder / f"{rerun.name}.ipynb"
    nbformat.write(notebook, path)
    return Outcome(rerun, "failed" if error else "done", error, 1.23456, path)


def test_results_have_a_row_an_estimate_sorted_by_parameters_as_numbers(tmp_path: Path) -> None:
    outcomes = [
        outcome(tmp_path, 1e-5, [{"value": 3.0, "eta": 7.0}]),
        outcome(tmp_path, 2e-6, [{"value": 1.0, "name": "a"}, {"value": 2.0, "list": [1, 2]}]),
    ]
    table = results_table(outcomes)
    assert list(table.columns)[:3] == ["notebook", "param.eta", "param.etas"]
    assert set(table.columns[3:]) == {"value", "name", "list", "eta"}
    assert table["param.eta"].tolist() == [2e-6, 2e-6, 1e-5]
    assert table["value"].tolist() == [1.0, 2.0, 3.0]
    assert table["list"].tolist()[1] == "[1, 2]"
    assert table["eta"].tolist()[2] == 7.0  # an estimate of that name is not taken for the parameter
    assert results_table(outcomes[::-1]).equals(table)


@pytest.mark.parametrize("given", ["../data", "../data/", "{root}/data", "{root}/notebooks/../data"])
def test_a_data_root_is_the_same_text_wherever_the_checkout_lies_and_however_it_was_given(
    tmp_path: Path, given: str
) -> None:
    folder = tmp_path / "notebooks"
    folder.mkdir()
    data_root = given.format(root=tmp_path)
    table = results_table([outcome(folder, 1e-6, [{"value": 1.0}], data_root=data_root)])
    assert table["param.data_root"].tolist() == ["../data"]


def test_a_notebook_that_did_not_come_so_far_has_no_rows_but_a_line_in_the_log(tmp_path: Path) -> None:
    outcomes = [outcome(tmp_path, 1e-6, None, error="ValueError: no"), outcome(tmp_path, 2e-6, [{"value": 1.0}])]
    assert results_table(outcomes)["param.eta"].tolist() == [2e-6]
    log = runlog_table(outcomes, "1.2.3")
    assert log["error"].tolist() == ["ValueError: no", ""]
    assert log["status"].tolist() == ["failed", "done"]
    assert log["seconds"].tolist() == [1.235, 1.235]
    assert set(log["version"]) == {"1.2.3"}
    assert log["parameters"].tolist()[0] == '{"eta": 1e-06}'


def test_tables_are_written_with_ten_significant_digits(tmp_path: Path) -> None:
    write_table(pd.DataFrame({"x": [1 / 3, 1e-6], "text": ["a,b", 'c"d']}), tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text() == 'x,text\n0.3333333333,"a,b"\n1e-06,"c""d"\n'
    write_table(results_table([]), tmp_path / "empty.csv")
    assert (tmp_path / "empty.csv").read_text() == "notebook\n"
