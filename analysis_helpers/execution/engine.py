"""Execution of notebooks, each in a kernel of its own, here or on a Dask cluster.

`run_jobs` works on threads of this process (kernels are processes already, so threads keep the cores busy) or on the
workers of a cluster. An error in a notebook or its kernel affects only that notebook.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from .._checks import NotRecordedError

Status = Literal["done", "unchanged", "skipped", "failed"]
WAIT_FOR_WORKERS = 60.0  # seconds
UNFINISHED = ".unfinished.ipynb"  # ending of a notebook until it has finished


@dataclass(frozen=True)
class Job:
    """One notebook with one set of parameters.

    Attributes
    ----------
    source
        The notebook.
    parameters
        Name -> value, for those that differ from its defaults.
    name
        File name of its results, without ending.
    key
        Digest of what the results depend on besides the package: parameters, notebook, and state of the data.
    data_root, data
        The data root as it was given, and a digest of the data; empty if the notebook reads none.
    """

    source: Path
    parameters: Mapping[str, object]
    name: str
    key: str = ""
    data_root: str = ""
    data: str = ""


@dataclass(frozen=True)
class RunOptions:
    """How notebooks are run.

    Attributes
    ----------
    workers
        Notebooks run in parallel; None: the number of cores.
    scheduler
        Address of a Dask scheduler to run on instead.
    timeout
        Time limit per notebook, in seconds.
    cold
        Whether to start kernels as usual, not as forks.
    svg
        Whether figures are made as SVG too, which takes as long as PNG.
    """

    workers: int | None = None
    scheduler: str | None = None
    timeout: float = 3600.0
    cold: bool = False
    svg: bool = False


@dataclass(frozen=True)
class Execution:
    """How the execution of a notebook ended.

    Attributes
    ----------
    job
        The job.
    status
        "done"; "unchanged": not run again, as nothing that it depends on has changed; "skipped": not run, or
        stopped by a `NotRecordedError`; "failed".
    reason
        One sentence: the error, or why it was skipped.
    path
        The executed notebook; if it failed, up to the failing cell. Without a name: it was not run.
    seconds
        Wall time.
    package
        Version and digest of the package that ran it.
    earlier
        Whether notebook and page are those of an earlier run.
    """

    job: Job
    status: Status = "done"
    reason: str = ""
    path: Path = Path()
    seconds: float = 0.0
    package: tuple[str, str] = ("", "")
    earlier: bool = False

    @property
    def complete(self) -> bool:
        """Whether all cells ran, in this run or an earlier one."""
        return self.status in ("done", "unchanged")


def log_line(line: str) -> None:
    """Write a line to standard error, above the progress bar, if any."""
    tqdm.write(line, file=sys.stderr)
    sys.stderr.flush()


def digest(content: object) -> str:
    """Return the digest of nested lists and mappings; values that JSON lacks are written as text."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


@cache
def package_digest(folder: Path = Path(__file__).parent.parent) -> str:
    """Return the digest of the modules, data and templates of this package, with their paths."""
    files = sorted({*folder.rglob("*.py"), *folder.glob("data/*"), *folder.glob("templates/*")})
    return digest([(file.relative_to(folder).as_posix(), file.read_text("utf-8")) for file in files])


def clear_outputs(notebook: Mapping[str, Any]) -> None:
    """Remove the outputs of a notebook, in place."""
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell.update(outputs=[], execution_count=None)


# --- one notebook -----------------------------------------------------------------------------------------------------

_running: set[asyncio.Task[Any]] = set()


def run_job(job: Job, target: Path, options: RunOptions) -> Execution:
    """Return how a job ended; its notebook, as far as it ran, is at ``target``.

    No error of a notebook is raised: a full disk or a dead kernel is recorded as that notebook's failure.
    """
    import nbformat
    import papermill

    from analysis_helpers import __version__

    start = time.perf_counter()
    status: Status = "failed"
    try:
        target.unlink(missing_ok=True)  # of an earlier run
        prepared = {"prepare_only": True, "progress_bar": False, "kernel_name": "python3"}
        notebook = papermill.execute_notebook(str(job.source), None, dict(job.parameters), **prepared)
        clear_outputs(notebook)
        status, reason = asyncio.run(_run_until_timeout(notebook, job.source.parent, options))
        nbformat.write(notebook, target)
    except Exception as failure:  # as a full disk: the other notebooks still run
        status, reason = "failed", _sentence(failure)
    return Execution(job, status, reason, target, time.perf_counter() - start, (__version__, package_digest()))


async def _run_until_timeout(notebook: Any, folder: Path, options: RunOptions) -> tuple[Status, str]:
    """Run a notebook until it ends, is stopped or times out; return status and reason."""
    from nbclient.exceptions import CellExecutionError

    from .kernels import run_cells

    task, limit = asyncio.current_task(), asyncio.timeout(options.timeout)
    assert task is not None
    _running.add(task)
    try:
        async with limit:
            await run_cells(notebook, folder, forked=not options.cold, svg=options.svg)
    except CellExecutionError as failure:
        if failure.ename == NotRecordedError.__name__:
            return "skipped", failure.evalue
        return "failed", f"{failure.ename}: {failure.evalue}"
    except (Exception, asyncio.CancelledError) as failure:  # being cancelled, nbclient says that the kernel died
        if limit.expired():
            return "failed", f"stopped after {options.timeout:g} s (--timeout)"
        return "failed", "stopped" if task.cancelling() else _sentence(failure)
    finally:
        _running.discard(task)
    return "done", ""


def _sentence(failure: BaseException) -> str:
    return f"{type(failure).__name__}: {failure}"


def _stop() -> None:
    """Stop the notebooks running in this process, and kill their kernels."""
    while _running:
        with suppress(KeyError, RuntimeError):  # it ended meanwhile
            task = _running.pop()
            task.get_loop().call_soon_threadsafe(task.cancel)


# --- many -------------------------------------------------------------------------------------------------------------


def run_jobs(jobs: Sequence[Job], folder: Path, options: RunOptions) -> Iterator[Execution]:
    """Run jobs, writing unfinished notebooks to ``folder``; yield how each ended, as soon as it is done.

    If the caller stops early or is interrupted, no further job starts and running kernels are killed. On a cluster,
    workers must have this package installed and the same files under the same paths; if workers die repeatedly on a
    job, that job fails.

    Raises
    ------
    ValueError
        If the scheduler cannot be reached, or has no workers.
    """
    with _executor(options) as executor:
        futures = {executor.submit(run_job, job, folder / f"{job.name}{UNFINISHED}", options): job for job in jobs}
        try:
            for future in as_completed(futures):
                failure = future.exception()
                yield Execution(futures[future], "failed", _sentence(failure)) if failure else future.result()
        finally:
            while [future for future in futures if not (future.done() or future.cancel())]:
                _stop()
                wait(futures, timeout=0.2)


@contextmanager
def _executor(options: RunOptions) -> Iterator[Executor]:
    if options.scheduler is None:
        with ThreadPoolExecutor(options.workers or _cores()) as threads:
            yield threads
        return
    from dask.distributed import Client

    try:
        client = Client(options.scheduler, timeout="10s")
    except OSError as error:
        raise ValueError(f"no Dask scheduler answers at {options.scheduler} ({error})") from None
    with client:
        patience = min(WAIT_FOR_WORKERS, options.timeout)
        if not client.scheduler_info()["workers"]:
            log_line(f"the Dask scheduler at {options.scheduler} has no workers; waiting {patience:g} s for one")
        try:
            client.wait_for_workers(1, timeout=patience)
        except TimeoutError:
            raise ValueError(f"the Dask scheduler at {options.scheduler} had no workers for {patience:g} s") from None
        yield client.get_executor()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
