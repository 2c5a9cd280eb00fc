"""Execution of notebooks, each in a kernel of its own; what ran is kept, however it ended.

Reports and sweeps share one engine, `run_jobs`: on threads of this process (kernels are processes already, so threads
keep the cores busy) or on the workers of a Dask cluster. An error inside a notebook is an error of that notebook only;
if its kernel died, it is tried once more.
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
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import nbformat
from tqdm import tqdm

from .._checks import NotRecordedError
from .kernels import run_cells

WAIT_FOR_WORKERS = 60.0  # seconds


@dataclass(frozen=True)
class Job:
    """One notebook with one set of parameters.

    Attributes
    ----------
    source
        The notebook.
    parameters
        Name -> value, those that differ from its defaults.
    name
        File name of its results, without ending.
    key
        Digest of what it is made from, the package aside: parameters, notebook, and the state of the data.
    """

    source: Path
    parameters: Mapping[str, object]
    name: str
    key: str = ""


@dataclass(frozen=True)
class How:
    """How notebooks are run.

    Attributes
    ----------
    workers
        Notebooks at once; None: the number of cores.
    scheduler
        Address of a Dask scheduler to run on instead.
    timeout
        Seconds that a notebook may take.
    cold
        Whether to start kernels as usual, not as forks.
    formats
        Of figures: "png", "svg".
    """

    workers: int | None = None
    scheduler: str | None = None
    timeout: float = 3600.0
    cold: bool = False
    formats: tuple[str, ...] = ("png",)


@dataclass(frozen=True)
class Execution:
    """How the execution of a notebook ended.

    Attributes
    ----------
    job
        What was to be run.
    path
        The executed notebook; if it failed, up to the failure.
    error
        One sentence; empty on success.
    seconds
        Wall time.
    skipped
        What it needs that is not installed, or that no run records; empty where it was run.
    kept
        Whether it is from an earlier sweep.
    package
        Version and digest of this package where it ran.
    """

    job: Job
    path: Path = Path()
    error: str = ""
    seconds: float = 0.0
    skipped: str = ""
    kept: bool = False
    package: tuple[str, str] = ("", "")

    @property
    def status(self) -> str:
        """In a word: "failed", "skipped", "kept" or "done"."""
        return "failed" if self.error else "skipped" if self.skipped else "kept" if self.kept else "done"

    @property
    def notebook(self) -> Any:
        """The executed notebook, read anew."""
        return nbformat.read(self.path, as_version=4)


def tell(line: str) -> None:
    """Write a line to standard error, above a progress bar where there is one."""
    tqdm.write(line, file=sys.stderr)
    sys.stderr.flush()


def digest(content: object) -> str:
    """Return the digest of a nested content of lists and mappings; what JSON does not have stands as text."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


@cache
def package_digest(folder: Path = Path(__file__).parent.parent) -> str:
    """Return the digest of the modules of this package, with their paths."""
    modules = sorted(folder.rglob("*.py"))
    return digest([(module.relative_to(folder).as_posix(), module.read_text("utf-8")) for module in modules])


# --- one notebook -----------------------------------------------------------------------------------------------------

_running: set[asyncio.Task[Any]] = set()


def run_job(job: Job, target: Path, how: How) -> Execution:
    """Return how a job ended, with its notebook at ``target``; it runs once more, unforked, if its kernel died.

    Nothing that goes wrong in a notebook is raised: a full disk or a kernel that died is an error of that notebook.
    """
    from analysis_helpers import __version__

    start = time.perf_counter()
    error, died = _attempt(job, target, how)
    if died:
        error, _ = _attempt(job, target, replace(how, cold=True))
    seconds, told = time.perf_counter() - start, f"{NotRecordedError.__name__}: "
    skipped, error = (error.removeprefix(told), "") if error.startswith(told) else ("", error)
    return Execution(job, target, error, seconds, skipped, package=(__version__, package_digest()))


def _attempt(job: Job, target: Path, how: How) -> tuple[str, bool]:
    """Return the error of one try, and whether its kernel died."""
    import papermill
    from papermill.execute import raise_for_execution_errors

    try:
        prepared = {"prepare_only": True, "progress_bar": False, "kernel_name": "python3"}
        notebook = papermill.execute_notebook(str(job.source), None, dict(job.parameters), **prepared)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.update(outputs=[], execution_count=None)
        error, died = asyncio.run(_watched(notebook, job.source.parent, how))
        nbformat.write(notebook, target)
        raise_for_execution_errors(notebook, str(target))
    except papermill.PapermillExecutionError as failure:
        return f"{failure.ename}: {failure.evalue}", False
    except Exception as failure:  # as a full disk: the other notebooks still run
        return f"{type(failure).__name__}: {failure}", False
    return error, died


async def _watched(notebook: Any, folder: Path, how: How) -> tuple[str, bool]:
    """Run a notebook until it ends, is stopped or its time is up; return the error and whether its kernel died."""
    from nbclient.exceptions import CellExecutionError

    task, limit = asyncio.current_task(), asyncio.timeout(how.timeout)
    assert task is not None
    _running.add(task)
    try:
        async with limit:
            await run_cells(notebook, folder, how.formats, forked=not how.cold)
    except CellExecutionError:
        pass  # its sentence is in the notebook
    except (Exception, asyncio.CancelledError) as failure:  # being cancelled, nbclient says that the kernel died
        if limit.expired():
            return f"stopped after {how.timeout:g} s (--timeout)", False
        if task.cancelling():
            return "stopped", False
        return f"{type(failure).__name__}: {failure}", isinstance(failure, RuntimeError)
    finally:
        _running.discard(task)
    return "", False


def _stop() -> None:
    """Stop the notebooks that run in this process, and kill their kernels."""
    while _running:
        with suppress(KeyError, RuntimeError):  # it ended meanwhile
            task = _running.pop()
            task.get_loop().call_soon_threadsafe(task.cancel)


# --- many -------------------------------------------------------------------------------------------------------------


def run_jobs(jobs: Sequence[Job], folder: Path, how: How) -> Iterator[Execution]:
    """Run jobs, their notebooks into ``folder``; yield how each ended, as soon as it is done.

    If the caller stops early or is interrupted, no further job starts and running kernels are killed. On a cluster,
    workers must have this package installed and the same files under the same paths; a worker that dies repeatedly is
    an error of its job.

    Raises
    ------
    ValueError
        If the scheduler cannot be reached, or has no workers.
    """
    with _executor(how) as executor:
        futures = {executor.submit(run_job, job, folder / f"{job.name}.ipynb", how): job for job in jobs}
        try:
            for future in as_completed(futures):
                if failure := future.exception():
                    yield Execution(futures[future], error=f"{type(failure).__name__}: {failure}")
                else:
                    yield future.result()
        finally:
            while [future for future in futures if not (future.done() or future.cancel())]:
                _stop()
                wait(futures, timeout=0.2)


@contextmanager
def _executor(how: How) -> Iterator[Executor]:
    if how.scheduler is None:
        with ThreadPoolExecutor(how.workers or _cores()) as threads:
            yield threads
        return
    from dask.distributed import Client

    try:
        client = Client(how.scheduler, timeout="10s")
    except OSError as error:
        raise ValueError(f"no Dask scheduler answers at {how.scheduler} ({error})") from None
    with client:
        patience = min(WAIT_FOR_WORKERS, how.timeout)
        if not client.scheduler_info()["workers"]:
            tell(f"the Dask scheduler at {how.scheduler} has no workers; waiting {patience:g} s for one")
        try:
            client.wait_for_workers(1, timeout=patience)
        except TimeoutError:
            raise ValueError(f"the Dask scheduler at {how.scheduler} had no workers for {patience:g} s") from None
        yield client.get_executor()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
