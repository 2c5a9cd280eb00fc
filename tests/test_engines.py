from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from analysis_helpers.engines import Job, run_here
from tests.sweeping import command, write_notebook

pytest.importorskip("papermill", reason="the extra 'notebooks' is not installed")


def jobs_of(folder: Path, count: int, **parameters: object) -> list[Job]:
    source = write_notebook(folder / "tiny.ipynb")
    return [Job(source, {"subset_size": n, **parameters}, folder / f"out_{n}.ipynb") for n in range(count)]


def test_every_job_is_yielded_once_with_its_own_notebook(tmp_path: Path) -> None:
    jobs = jobs_of(tmp_path, 3)
    ended = {job.target: execution for job, execution in run_here(jobs, workers=2)}
    assert set(ended) == {job.target for job in jobs}
    assert all(execution.path == target and not execution.error for target, execution in ended.items())
    assert all(execution.seconds > 0 for execution in ended.values())


def test_stopping_early_kills_what_runs_and_starts_nothing_more(tmp_path: Path) -> None:
    import psutil

    slow = Job(write_notebook(tmp_path / "tiny.ipynb"), {"seconds": 60.0}, tmp_path / "slow.ipynb")
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
    folder = write_notebook(tmp_path / "notebooks" / "tiny.ipynb").parent
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
    folder = write_notebook(tmp_path / "notebooks" / "tiny.ipynb").parent
    ended = sweep(tmp_path / "out", folder, "--scheduler", "tcp://127.0.0.1:1")
    assert ended.returncode == 1
    assert "Error: no Dask scheduler answers at tcp://127.0.0.1:1 (" in ended.stderr
