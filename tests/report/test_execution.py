from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Thread
from typing import Any

import nbformat
import pytest

from analysis_helpers.report.execution import Execution, Job, find_notebooks, run_here, run_notebooks
from analysis_helpers.report.pages import collected_result, save_figures, write_report
from tests.conftest import REPOSITORY
from tests.sweeping import command
from tests.sweeping import write_notebook as tiny_notebook

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


def test_pages_and_data_need_nothing_from_the_working_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_notebooks()[0].parent == REPOSITORY / "notebooks"


pytest.importorskip("papermill", reason="the extra 'notebooks' is not installed")


def jobs_of(folder: Path, count: int, **parameters: object) -> list[Job]:
    source = tiny_notebook(folder / "tiny.ipynb")
    return [Job(source, {"subset_size": n, **parameters}, folder / f"out_{n}.ipynb") for n in range(count)]


def test_every_job_is_yielded_once_with_its_own_notebook(tmp_path: Path) -> None:
    jobs = jobs_of(tmp_path, 3)
    ended = {job.target: execution for job, execution in run_here(jobs, workers=2)}
    assert set(ended) == {job.target for job in jobs}
    assert all(execution.path == target and not execution.error for target, execution in ended.items())
    assert all(execution.seconds > 0 for execution in ended.values())


def test_stopping_early_kills_what_runs_and_starts_nothing_more(tmp_path: Path) -> None:
    import psutil

    slow = Job(tiny_notebook(tmp_path / "tiny.ipynb"), {"seconds": 60.0}, tmp_path / "slow.ipynb")
    quick = Job(slow.source, {}, tmp_path / "quick.ipynb")
    never = Job(slow.source, {}, tmp_path / "never.ipynb")
    bystander = subprocess.Popen(["sleep", "60"])
    running = run_here([quick, slow, never], workers=1)
    assert next(running)[0] == quick
    time.sleep(1.5)  # the slow one has begun
    start = time.monotonic()
    running.close()  # type: ignore[attr-defined]
    assert time.monotonic() - start < 30
    assert not never.target.exists()
    assert bystander.poll() is None  # only kernels are killed
    bystander.kill()
    bystander.wait()
    assert [
        child for child in psutil.Process().children(recursive=True) if "ipykernel" in " ".join(child.cmdline())
    ] == []


# --- a cluster --------------------------------------------------------------------------------------------------------


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """Start a Dask scheduler and two workers on loopback; yield the address and the workers."""
    pytest.importorskip("distributed", reason="the extra 'cluster' is not installed")
    described = tmp_path / "scheduler.json"
    dask = [sys.executable, "-m", "dask"]
    options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(described)]
    scheduler = quietly([*dask, "scheduler", *options])
    worker = [*dask, "worker", "--scheduler-file", str(described), "--nthreads", "1", "--no-nanny", "--no-dashboard"]
    workers: list[subprocess.Popen[bytes]] = []
    try:
        wait_for(described)
        workers += [quietly([*worker, "--local-directory", str(tmp_path)]) for _ in range(2)]
        yield str(json.loads(described.read_text())["address"]), workers
    finally:
        for process in (*workers, scheduler):
            process.send_signal(signal.SIGKILL)
            process.wait()


def quietly(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def sweep(out: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    sizes = [part for n in (4, 8, 2) for part in ("--subset-size", str(n))]
    arguments = command(out, folder, *sizes, "--eta", "1e-6", "--eta", "2e-6", "-p", "seconds", "0.5", *options)
    return subprocess.run(
        [sys.executable, "-m", "analysis_helpers", *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_a_cluster_gives_the_same_results_and_survives_a_worker_that_dies(
    tmp_path: Path, cluster: tuple[str, list[subprocess.Popen[bytes]]]
) -> None:
    address, workers = cluster
    folder = tiny_notebook(tmp_path / "notebooks" / "tiny.ipynb").parent
    ended: list[subprocess.CompletedProcess[str]] = []
    thread = Thread(target=lambda: ended.append(sweep(tmp_path / "far", folder, "--scheduler", address)))
    thread.start()
    finished = tmp_path / "far" / "notebooks"
    deadline = time.monotonic() + 120
    while not (finished.is_dir() and any(finished.glob("*.ipynb"))):
        assert not ended, ended[0].stderr
        assert time.monotonic() < deadline
        time.sleep(0.05)
    workers[0].kill()  # in the middle of a notebook
    thread.join(180)
    assert ended, "the sweep did not end"
    assert ended[0].returncode == 0, ended[0].stderr
    assert len(list(finished.glob("*.ipynb"))) == 6
    near = sweep(tmp_path / "near", folder, "--workers", "2")
    assert near.returncode == 0, near.stderr
    assert (tmp_path / "far" / "results.csv").read_bytes() == (tmp_path / "near" / "results.csv").read_bytes()


def test_a_scheduler_that_does_not_answer_is_named(tmp_path: Path) -> None:
    pytest.importorskip("distributed", reason="the extra 'cluster' is not installed")
    folder = tiny_notebook(tmp_path / "notebooks" / "tiny.ipynb").parent
    ended = sweep(tmp_path / "out", folder, "--scheduler", "tcp://127.0.0.1:1")
    assert ended.returncode == 1
    assert "Error: no Dask scheduler answers at tcp://127.0.0.1:1 (" in ended.stderr
