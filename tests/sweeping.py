"""Small notebooks for reports and sweeps, which fail or wait where a test asks for it, and runs without kernels."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest

from analysis_helpers.execution import RunOptions, find_notebooks, run_notebooks
from analysis_helpers.execution.engine import UNFINISHED, Execution, Job, Status, package_digest
from analysis_helpers.execution.sweep import Kind, Values

PARAMETERS = """eta: float = 1e-6  # step size
subset_size: int = 4  # sequences
etas: list = [1e-6]  # step sizes
label: str = "plain"  # any text
seconds: float = 0.0  # to wait"""

BODY = """import time
from IPython.display import display
time.sleep(seconds)
if label == "fail":
    raise ValueError("asked to fail")
row = {"value": eta * subset_size, "enough": "yes" if subset_size > 4 else "no", "linear_trusted": "cannot tell"}
parameters = {"eta": eta, "subset_size": subset_size, "label": label}
result = {"notebook": "tiny", "version": "1", "parameters": parameters, "rows": [row, {"value": None}]}
display({"application/vnd.analysis.result+json": result, "text/plain": "2 rows"}, raw=True)"""

FIGURE = """%matplotlib inline
import matplotlib.pyplot as plt
figure, ax = plt.subplots()"""


def write_notebook(
    path: Path, *cells: str, parameters: str = PARAMETERS, title: str = "# A question", figure: bool = False
) -> Path:
    """Write a notebook with a parameters cell and code cells, or the usual ones; without a figure it starts quickly."""
    made = [nbformat.v4.new_markdown_cell(title)]
    made.append(nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    made += map(nbformat.v4.new_code_cell, cells or ("before = 1\nprint('first cell')", BODY))
    if figure:
        made.append(nbformat.v4.new_code_cell(FIGURE, metadata={"tags": ["key"]}))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=made, metadata={"kernelspec": kernel}), path)
    return path


def run_copies(kind: Kind, place: Path, out: Path, values: Values | None = None, *ended: Any) -> pd.DataFrame:
    """Make a report or sweep of notebooks as they are stored, without kernels, and return its log.

    ``ended`` is a status, what is in the name of those notebooks that end with it, and the reason.
    """
    status, stem, reason = [*(ended or ["done"]), "", ""][:3]

    def copied(jobs: Sequence[Job], folder: Path, options: RunOptions) -> Iterator[Execution]:
        for job in reversed(jobs):
            target = folder / f"{job.name}{UNFINISHED}"
            target.write_bytes(job.source.read_bytes())
            how: tuple[Status, str] = (status, reason) if stem in job.name else ("done", "")
            yield Execution(job, *how, target, 1.0, ("1.2.3", package_digest()))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("analysis_helpers.execution.sweep.run_jobs", copied)
        patched.setattr("analysis_helpers.execution.sweep._warm_up", lambda options: None)
        run_notebooks(kind, find_notebooks(place), values or {}, out, RunOptions())
    return runlog(out)


def runlog(out: Path) -> pd.DataFrame:
    """Return the log of a report or sweep, a row a notebook."""
    return pd.read_csv(out / "runlog.csv", keep_default_na=False)


def command(out: Path, folder: Path, *options: str) -> Sequence[str]:
    """Return the arguments of a sweep over the notebooks in a folder."""
    return ["sweep", "--notebooks", str(folder), "--out", str(out), *options]


def start(*arguments: object) -> subprocess.Popen[str]:
    """Start a command of the package in a process of its own."""
    command = [sys.executable, "-m", "analysis_helpers", *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def wait_until(seen: Callable[[], object]) -> None:
    """Wait until something is seen; two minutes at most."""
    deadline = time.monotonic() + 120
    while not seen():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def printed(path: Path) -> str:
    """Return what the cells of a notebook printed, however far it came."""
    outputs = [out for cell in nbformat.read(path, as_version=4).cells for out in cell.get("outputs", [])]
    return "".join(output.get("text", "") for output in outputs)
