"""Small notebooks for sweeps: quick to run, and made to fail, wait or die where a test asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nbformat

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
figure, ax = plt.subplots()"""


def write_notebook(path: Path, *, body: str = BODY, parameters: str = PARAMETERS, figure: bool = False) -> Path:
    """Write a notebook with a parameters cell; without a figure it starts in half a second."""
    cells = [
        nbformat.v4.new_markdown_cell("# A question"),
        nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("before = 1\nprint('first cell')"),
        nbformat.v4.new_code_cell(body),
    ]
    if figure:
        cells.append(nbformat.v4.new_code_cell(FIGURE, metadata={"tags": ["key"]}))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


def command(out: Path, folder: Path, *options: str) -> Sequence[str]:
    """Return the arguments of a sweep over the notebooks in a folder."""
    return ["sweep", "--notebooks", str(folder), "--out", str(out), *options]
