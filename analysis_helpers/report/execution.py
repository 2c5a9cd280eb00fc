"""Execution of notebooks through papermill, each in its own kernel; what ran is kept, however it ended.

`run_notebooks` runs them one after the other, `run_here` several at once on threads (kernels are processes already, so
threads keep the cores busy), `run_on_cluster` on the workers of a Dask cluster. An error inside a notebook is an error
of that notebook only; if its kernel or worker died, it is tried once more.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from threading import Event
from typing import Any

from .parameters import notebooks_folder

KERNEL_FOLDER = "analysis-helpers-kernel-"
"""Prefix of the folder of settings that a kernel is started with; tells our kernels from other processes."""

# No history database, which kernels would share, and no messages about being
# stopped. One thread per kernel: kernels run side by side, and sums are the same
# whatever the number of cores.
_KERNEL_CONFIG = """
import os
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
c.InlineBackend.figure_formats = FORMATS
c.HistoryManager.enabled = False
c.Application.log_level = "CRITICAL"
"""


@dataclass(frozen=True)
class Execution:
    """How the execution of a notebook ended.

    Attributes
    ----------
    name
        Name of the notebook, without ending.
    path
        The executed notebook; if it failed, up to the failure.
    error
        One sentence; empty on success.
    seconds
        Wall time.
    kernel_died
        Whether it failed because its kernel died, which another try may avoid.
    skipped
        What it needs that is not installed, and how to install it; empty where it was run.
    """

    name: str
    path: Path
    error: str = ""
    seconds: float = field(default=0.0, compare=False)
    kernel_died: bool = False
    skipped: str = ""


def find_notebooks(folder: Path | None = None) -> list[Path]:
    """Return the notebooks to run, sorted: those in ``folder``, else in ``./notebooks``, else those of the package.

    Raises
    ------
    ValueError
        If there are none; the message names the folder.
    """
    place = folder or notebooks_folder()
    found = sorted(place.glob("*.ipynb")) if place is not None else []
    if not found:
        raise ValueError(f"no notebooks (*.ipynb) in {place or './notebooks'}")
    return found


def run_notebooks(
    notebooks: Sequence[Path], parameters: Mapping[str, object], out: Path, *, progress: bool = False
) -> Iterator[Execution]:
    """Run notebooks one after the other into ``out``, each with the parameters that it declares.

    Parameters
    ----------
    notebooks
        Paths of notebooks.
    parameters
        Name -> value. ``eta`` also fills ``etas``, as a list of one.
    out
        Folder for the executed notebooks.
    progress
        Whether to show a progress bar per notebook.

    Yields
    ------
    Execution
        In the order given, each as soon as it is done.

    Raises
    ------
    ValueError
        If a parameter is in none of the notebooks; nothing has run then.
    """
    declared = {path: declared_parameters(path) for path in notebooks}
    for name in parameters:
        if not any(fitting_parameters(found, {name: None}) for found in declared.values()):
            raise ValueError(f"no notebook has the parameter {name}")
    out.mkdir(parents=True, exist_ok=True)
    for path, found in declared.items():
        chosen = fitting_parameters(found, parameters)
        if missing := missing_extra(path):
            yield Execution(path.stem, out / path.name, skipped=missing)
        else:
            yield run_notebook(path, chosen, out / path.name, progress=progress, formats=("png", "svg"))


def run_notebook(
    source: Path,
    parameters: Mapping[str, object],
    target: Path,
    *,
    progress: bool = False,
    formats: Sequence[str] = ("png",),
    save_often: bool = True,
) -> Execution:
    """Return how the execution of one notebook into ``target`` ended; may be called from several threads at once.

    Nothing that goes wrong in a notebook is raised: a full disk or a kernel that died is an error of that notebook.
    ``save_often`` saves after every cell, so that a notebook whose kernel dies is kept up to there; it takes a few per
    cent longer.
    """
    import papermill

    start, error, died = time.perf_counter(), "", False
    try:
        with kernel_settings(*formats) as settings:
            papermill.execute_notebook(
                source,
                target,
                parameters=dict(parameters),
                kernel_name="python3",
                progress_bar=progress,
                request_save_on_cell_execute=save_often,
                resources={"metadata": {"path": str(source.parent)}},  # papermill's own cwd is that of the process
                **settings,
            )
    except papermill.PapermillExecutionError as failure:
        error = f"{failure.ename}: {failure.evalue}"
    except Exception as failure:  # as a kernel that died, a full disk: the other notebooks still run
        error = f"{type(failure).__name__}: {failure}"
        died = isinstance(failure, RuntimeError)  # DeadKernelError, or it died before its first reply
    return Execution(source.stem, target, error, time.perf_counter() - start, died)


def missing_extra(path: Path) -> str:
    """Return what a notebook needs that is not installed, with the command that installs it; empty where nothing is."""
    needed = "analysis_helpers.measure" in path.read_text(encoding="utf-8")
    if not needed or all(map(find_spec, ("torch", "transformers"))):
        return ""
    return "it needs PyTorch and transformers: pip install 'entropy-batch-diagnostics[measure]'"


def declared_parameters(path: Path) -> dict[str, dict[str, Any]]:
    """Return what the ``parameters`` cell of a notebook declares: name -> default, inferred_type_name, help."""
    import papermill

    found: dict[str, dict[str, Any]] = papermill.inspect_notebook(path)
    return found


def fitting_parameters(declared: Mapping[str, object], parameters: Mapping[str, Any]) -> dict[str, object]:
    """Return the parameters that a notebook declares; ``eta`` (one or several) also fills ``etas``."""
    chosen = {name: value for name, value in parameters.items() if name in declared}
    if "eta" in parameters:
        etas = parameters["eta"] if isinstance(parameters["eta"], tuple) else (parameters["eta"],)
        filled = {"etas": list(etas)} | chosen | {"eta": etas[0]}
        chosen = {name: value for name, value in filled.items() if name in declared}
    return chosen


@contextmanager
def kernel_settings(*formats: str) -> Iterator[dict[str, Any]]:
    """Yield options of nbclient that give a kernel its own settings instead of the user's IPython configuration.

    Nothing of the process is changed, so that threads do not disturb each other.
    """
    from traitlets.config import Config

    with tempfile.TemporaryDirectory(prefix=KERNEL_FOLDER) as folder:
        profile = Path(folder) / "profile_default"
        profile.mkdir()
        (profile / "ipython_kernel_config.py").write_text(
            _KERNEL_CONFIG.replace("FORMATS", repr(set(formats))), encoding="utf-8"
        )
        yield {
            "extra_arguments": [f"--ipython-dir={folder}"],
            "config": Config({"KernelManager": {"transport_encryption": "auto"}}),
            "store_widget_state": False,  # controls answer only to a kernel that runs
            "shutdown_kernel": "immediate",  # nothing is left to be saved in a kernel whose notebook is through
        }


@dataclass(frozen=True)
class Job:
    """A notebook to run: its path, its parameters, and the path of the executed notebook."""

    source: Path
    parameters: Mapping[str, object]
    target: Path


def run_job(job: Job, stopped: Event | None = None) -> Execution:
    """Return how a job ended; it runs once more if its kernel died, unless everything is being stopped."""
    from jupyter_core.utils import ensure_event_loop

    try:
        execution = run_notebook(job.source, job.parameters, job.target, save_often=False)
        if execution.kernel_died and not (stopped and stopped.is_set()):
            execution = run_notebook(job.source, job.parameters, job.target)
        return execution
    finally:
        ensure_event_loop().close()  # of this thread; nothing else would close it


def run_here(jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, Execution]]:
    """Run jobs on threads of this process; yield each with how it ended, as soon as it is done.

    If the caller stops early or is interrupted, no further job starts and running kernels are killed.
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

    Workers must have this package installed and the same files under the same paths. A worker that dies repeatedly is
    an error of its job.

    Raises
    ------
    ValueError
        If the scheduler cannot be reached.
    """
    from dask.distributed import Client, as_completed as completed

    try:
        client = Client(address, timeout="10s")
    except OSError as error:
        raise ValueError(f"no Dask scheduler answers at {address} ({error})") from None
    with client:
        futures = {client.submit(run_job, job, pure=False): job for job in jobs}
        try:
            for future in completed(futures):
                job, failure = futures[future], future.exception()
                failed = Execution(job.source.stem, job.target, f"{type(failure).__name__}: {failure}")
                yield job, failed if failure else future.result()
        finally:
            client.cancel(list(futures))


def _kill_kernels() -> None:
    """Kill the kernels that notebooks run in, and no other child process."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        try:
            if any(KERNEL_FOLDER in argument for argument in child.cmdline()):
                child.kill()
        except psutil.NoSuchProcess:  # it ended meanwhile
            continue
