"""Many notebooks at once: here on a few threads, or on the workers of a Dask cluster.

Kernels are processes already, so threads are enough to keep the cores busy, and papermill is imported once. A notebook
whose kernel or worker died is tried once more; what goes wrong inside a notebook is an error of that notebook alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from .execute import KERNEL_FOLDER, Execution, run_notebook

_DIED = ("DeadKernelError", "RuntimeError: Kernel died")


@dataclass(frozen=True)
class Job:
    """A notebook to run: its path, the parameters to give it, and where the executed notebook goes."""

    source: Path
    parameters: Mapping[str, object]
    target: Path


def run_job(job: Job, stopped: Event | None = None) -> Execution:
    """Run a job, and once more if its kernel died, unless that was because all is to stop."""
    from jupyter_core.utils import ensure_event_loop

    try:
        execution = run_notebook(job.source, job.parameters, job.target, save_often=False)
        if execution.error.startswith(_DIED) and not (stopped and stopped.is_set()):
            execution = run_notebook(job.source, job.parameters, job.target)
        return execution
    finally:
        ensure_event_loop().close()  # that of this thread, which nobody else would close


def run_here(jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, Execution]]:
    """Run jobs on threads of this process; yield each with how it ended, as soon as it is done.

    When the caller stops early or is interrupted, no further job starts and running kernels are killed.
    """
    stopped = Event()

    def run(job: Job) -> Execution:
        return Execution(job.source.stem, job.target, "stopped") if stopped.is_set() else run_job(job, stopped)

    executor = ThreadPoolExecutor(workers)
    futures: dict[Future[Execution], Job] = {executor.submit(run, job): job for job in jobs}
    try:
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        stopped.set()
        executor.shutdown(wait=False, cancel_futures=True)
        while not all(future.done() for future in futures):  # stopped early
            _kill_kernels()
            wait(futures, timeout=0.2)
        executor.shutdown()


def run_on_cluster(jobs: Sequence[Job], address: str) -> Iterator[tuple[Job, Execution]]:
    """Run jobs on the workers of an existing Dask cluster; yield each with how it ended, as soon as it is done.

    Workers must have this package installed and see the same files under the same paths.

    Raises
    ------
    ValueError
        If the scheduler cannot be reached.
    """
    from dask.distributed import Client
    from dask.distributed import as_completed as completed

    try:
        client = Client(address, timeout="10s")
    except OSError as error:
        raise ValueError(f"no Dask scheduler answers at {address} ({error})") from None
    with client:
        futures = {client.submit(run_job, job, pure=False): job for job in jobs}
        try:
            for future in completed(futures):
                yield futures[future], _ended(future, futures[future])
        finally:
            client.cancel(list(futures))


def _ended(future: object, job: Job) -> Execution:
    """Return how a job on a cluster ended; a worker that died again and again is an error of its job."""
    error = future.exception()  # type: ignore[attr-defined]
    if error is None:
        execution: Execution = future.result()  # type: ignore[attr-defined]
        return execution
    return Execution(job.source.stem, job.target, f"{type(error).__name__}: {error}")


def _kill_kernels() -> None:
    """Kill the kernels that notebooks run in, and no other process that this one may have started."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        try:
            if any(KERNEL_FOLDER in argument for argument in child.cmdline()):
                child.kill()
        except psutil.NoSuchProcess:  # ended by itself
            continue
