"""Small notebooks for sweeps: quick to run, and made to fail, wait or die where a test asks for it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat

from analysis_helpers.execution.engine import Execution, Job
from analysis_helpers.execution.pages import write_first_page, write_page

PARAMETERS = """eta: float = 1e-6  # step size
subset_size: int = 4  # sequences
etas: list = [1e-6]  # step sizes
label: str = "plain"  # any text
seconds: float = 0.0  # to wait"""

BODY = """import os, pathlib, time
from IPython.display import display
time.sleep(seconds)
if label == "fail":
    raise ValueError("asked to fail")
died = pathlib.Path(label)
if label.startswith("/") and not died.exists():  # dies the first time
    died.touch()
    os._exit(1)
row = {"value": eta * subset_size, "enough": "yes" if subset_size > 4 else "no", "linear_trusted": "cannot tell"}
parameters = {"eta": eta, "subset_size": subset_size, "label": label}
result = {"notebook": "tiny", "version": "1", "parameters": parameters, "rows": [row, {"value": None}]}
display({"application/vnd.analysis.result+json": result, "text/plain": "2 rows"}, raw=True)"""

FIGURE = """%matplotlib inline
import matplotlib.pyplot as plt
from IPython.display import HTML, display
print("<printed>")
display(HTML("<table></table>"))
figure, ax = plt.subplots()"""


def write_notebook(
    path: Path,
    *cells: str,
    parameters: str = PARAMETERS,
    title: str = "# A question",
    figure: bool = False,
) -> Path:
    """Write a notebook with a parameters cell and code cells, or the usual ones; without a figure it starts quickly."""
    made = [nbformat.v4.new_markdown_cell(title)]
    made.append(nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    made += map(nbformat.v4.new_code_cell, cells or ("before = 1\nprint('first cell')", BODY))
    if figure:
        made.append(nbformat.v4.new_code_cell(FIGURE, metadata={"tags": ["key"]}))
        made.append(nbformat.v4.new_markdown_cell("**How to read it.**", metadata={"tags": ["key"]}))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=made, metadata={"kernelspec": kernel}), path)
    return path


def ended(path: Path, **how: Any) -> Execution:
    """Return how a notebook ended that has been executed."""
    return Execution(Job(path, {}, path.stem), path, **how)


def write_report(executions: Sequence[Execution], out: Path) -> Path:
    """Write the pages of executed notebooks and return the path of the first one."""
    out.mkdir(parents=True, exist_ok=True)
    pages = [execution.job.name for execution in executions]
    return write_first_page([write_page(execution, out, pages) for execution in executions], out)


def command(out: Path, folder: Path, *options: str) -> Sequence[str]:
    """Return the arguments of a sweep over the notebooks in a folder."""
    return ["sweep", "--notebooks", str(folder), "--out", str(out), *options]


def printed(path: Path) -> str:
    """Return what the cells of a notebook printed, however far it came."""
    outputs = [out for cell in nbformat.read(path, as_version=4).cells for out in cell.get("outputs", [])]
    return "".join(output.get("text", "") for output in outputs)
