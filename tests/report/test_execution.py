import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import nbformat
import pytest

from analysis_helpers.report.execution import Execution, Job, find_notebooks, run_here, run_notebooks, run_on_cluster
from analysis_helpers.report.pages import collected_result, save_figures, write_report
from analysis_helpers.report.sweep import plan_sweep
from tests.conftest import REPOSITORY
from tests.sweeping import command, printed, write_notebook

pytest.importorskip("papermill", reason="the extra 'notebooks' is not installed")


def wait_until(seen: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not seen():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_notebooks_are_found_beside_the_package_or_where_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_notebooks() == sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
    for name in ("b", "a"):
        (tmp_path / f"{name}.ipynb").touch()
    assert find_notebooks(tmp_path) == [tmp_path / "a.ipynb", tmp_path / "b.ipynb"]
    with pytest.raises(ValueError, match=r"no notebooks \(\*\.ipynb\) in .*nothing"):
        find_notebooks(tmp_path / "nothing")


def test_a_parameter_that_no_notebook_has_stops_before_anything_runs(tmp_path: Path) -> None:
    notebook = write_notebook(tmp_path / "a.ipynb", "1 / 0")
    with pytest.raises(ValueError, match="no notebook has the parameter num_samples"):
        list(run_notebooks([notebook], {"num_samples": 3}, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_notebook_that_needs_an_extra_is_skipped_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook = write_notebook(tmp_path / "a.ipynb", "from analysis_helpers.measure import sample")
    monkeypatch.setattr("analysis_helpers.report.execution.find_spec", lambda name: None)
    [execution] = run_notebooks([notebook], {}, tmp_path / "out")
    assert not execution.error
    assert "pip install 'entropy-batch-diagnostics[measure]'" in execution.skipped
    page = write_report([execution], tmp_path / "out").read_text(encoding="utf-8")
    assert "<strong>Skipped:</strong> it needs PyTorch and transformers: pip install" in page
    assert plan_sweep([notebook], {"eta": ["1e-6"]}) == ([], {"a": execution.skipped})


def test_a_failure_is_kept_with_its_error_and_does_not_stop_the_others(tmp_path: Path) -> None:
    failing = write_notebook(tmp_path / "a.ipynb", "print('before')", "raise ValueError('<too small>')", "print('no')")
    working = write_notebook(tmp_path / "b.ipynb", "print(eta, etas, label)", figure=True)
    before = os.environ.get("IPYTHONDIR")
    out = tmp_path / "out"
    executions = list(run_notebooks([failing, working], {"eta": 5e-6, "label": "given"}, out))
    assert os.environ.get("IPYTHONDIR") == before
    failed, finished = Execution("a", out / "a.ipynb", "ValueError: <too small>"), Execution("b", out / "b.ipynb")
    assert executions == [failed, finished]
    assert printed(failed.path) == "before\n"
    assert printed(finished.path).startswith("5e-06 [5e-06] given\n")  # eta fills etas, as a list of one

    page = write_report(executions, tmp_path / "report").read_text(encoding="utf-8")
    assert "ValueError: &lt;too small&gt;" in page
    assert page.count("data:image/png;base64") == 1
    for shown in ("&lt;printed&gt;", "<table></table>", "<strong>How to read it.</strong>"):
        assert shown in page
    assert (tmp_path / "report" / "b.html").is_file()
    assert (tmp_path / "report" / "figures" / "b-1.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "report" / "figures" / "b-1.svg").read_text(encoding="utf-8")


def test_a_page_needs_neither_notebook_nor_result_nor_harmless_names(tmp_path: Path) -> None:
    odd = write_notebook(tmp_path / "a & b.ipynb", "1", title="# Is <script>alert(1)</script> safe?")
    gone = Execution("gone", tmp_path / "gone.ipynb", "DeadKernelError: <b>")
    page = write_report([gone, Execution("a & b", odd)], tmp_path / "report").read_text(encoding="utf-8")
    assert "DeadKernelError: &lt;b&gt;" in page
    assert "gone.html" not in page
    assert "<script>" not in page
    assert 'href="a%20%26%20b.html"' in page
    notebook = nbformat.read(odd, as_version=4)
    assert collected_result(notebook) == {}
    assert save_figures(notebook, tmp_path / "figures", "a") == []


def test_every_job_is_yielded_once_with_its_own_notebook(tmp_path: Path) -> None:
    source = write_notebook(tmp_path / "tiny.ipynb", "print(subset_size)")
    jobs = [Job(source, {"subset_size": n}, tmp_path / f"out_{n}.ipynb") for n in (1, 2)]
    ended = {job.target: execution for job, execution in run_here(jobs, workers=2)}
    assert set(ended) == {job.target for job in jobs}
    for job in jobs:
        execution = ended[job.target]
        assert (execution.path, execution.error) == (job.target, "")
        assert execution.seconds > 0
        assert printed(job.target) == f"{job.parameters['subset_size']}\n"


def test_stopping_early_kills_what_runs_and_starts_nothing_more(tmp_path: Path) -> None:
    import psutil

    source = write_notebook(
        tmp_path / "tiny.ipynb", "import pathlib, time\npathlib.Path(label).touch()\ntime.sleep(seconds)"
    )
    quick, slow, never = (
        Job(source, {"label": str(tmp_path / f"begun_{k}"), "seconds": seconds}, tmp_path / f"out_{k}.ipynb")
        for k, seconds in enumerate((0.0, 60.0, 0.0))
    )
    bystander = subprocess.Popen(["sleep", "60"])
    running = run_here([quick, slow, never], workers=1)
    assert next(running)[0] == quick
    wait_until((tmp_path / "begun_1").exists)
    start = time.monotonic()
    running.close()  # type: ignore[attr-defined]
    assert time.monotonic() - start < 30
    assert not never.target.exists()
    assert not (tmp_path / "begun_2").exists()
    assert bystander.poll() is None  # only kernels are killed
    bystander.kill()
    bystander.wait()
    children = psutil.Process().children(recursive=True)
    assert [child for child in children if "ipykernel" in " ".join(child.cmdline())] == []


def quietly(arguments: list[str]) -> subprocess.Popen[bytes]:
    dask = [sys.executable, "-m", "dask"]
    return subprocess.Popen([*dask, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """Start a Dask scheduler and two workers on loopback; yield the address and the workers."""
    pytest.importorskip("distributed", reason="the extra 'cluster' is not installed")
    described = tmp_path / "scheduler.json"
    file = ["--scheduler-file", str(described), "--no-dashboard"]
    scheduler = quietly(["scheduler", "--host", "127.0.0.1", "--port", "0", *file])
    workers: list[subprocess.Popen[bytes]] = []
    try:
        wait_until(described.exists)
        worker = ["worker", *file, "--nthreads", "1", "--no-nanny", "--local-directory", str(tmp_path)]
        workers += [quietly(worker) for _ in range(2)]
        yield str(json.loads(described.read_text())["address"]), workers
    finally:
        for process in (*workers, scheduler):
            process.send_signal(signal.SIGKILL)
            process.wait()


def sweep(out: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    sizes = [part for n in (4, 8, 2) for part in ("--subset-size", str(n))]
    arguments = command(out, folder, *sizes, "--eta", "1e-6", "--eta", "2e-6", "-p", "seconds", "0.5", *options)
    run = partial(subprocess.run, capture_output=True, text=True, check=False)
    return run([sys.executable, "-m", "analysis_helpers", *arguments])


@pytest.mark.slow  # a scheduler, two workers and twelve kernels
def test_a_cluster_gives_the_same_results_and_survives_a_worker_that_dies(
    tmp_path: Path, cluster: tuple[str, list[subprocess.Popen[bytes]]]
) -> None:
    address, workers = cluster
    folder = write_notebook(tmp_path / "notebooks" / "tiny.ipynb").parent
    ended: list[subprocess.CompletedProcess[str]] = []
    thread = Thread(target=lambda: ended.append(sweep(tmp_path / "far", folder, "--scheduler", address)))
    thread.start()
    finished = tmp_path / "far" / "notebooks"
    wait_until(lambda: ended or (finished.is_dir() and any(finished.glob("*.ipynb"))))
    workers[0].kill()  # in the middle of a notebook
    thread.join(180)
    assert ended, "the sweep did not end"
    assert ended[0].returncode == 0, ended[0].stderr
    assert len(list(finished.glob("*.ipynb"))) == 6
    near = sweep(tmp_path / "near", folder, "--workers", "2")
    assert near.returncode == 0, near.stderr
    assert (tmp_path / "far" / "results.csv").read_bytes() == (tmp_path / "near" / "results.csv").read_bytes()


def test_a_scheduler_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed", reason="the extra 'cluster' is not installed")
    import dask.distributed

    usual: Any = dask.distributed.Client
    monkeypatch.setattr(dask.distributed, "Client", lambda address, timeout: usual(address, timeout="0.2s"))
    with pytest.raises(ValueError, match=r"tcp://127\.0\.0\.1:1 \("):
        next(run_on_cluster([], "tcp://127.0.0.1:1"))
