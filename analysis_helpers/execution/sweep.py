"""Reports and sweeps: notebooks run with one or every combination of parameters, into one folder with a first page.

`make_report` runs them once. `make_sweep` writes ``results.csv`` (every estimate), ``runlog.csv`` (every rerun) and
``index.html`` (answers, key figures, links); a rerun is finished once its notebook is in ``out/notebooks`` with a stamp
that says what it was made from, so the same command resumes a sweep that was killed. Everything is checked before
anything runs, and made in a working folder, then renamed. What neither wrote is neither deleted nor replaced.
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
import sys
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from threading import Thread
from typing import Any

import nbformat
from filelock import FileLock, Timeout
from tqdm import tqdm

from .._checks import checked_choice
from ..notebook import assigned, convert_parameter, data_state, notebooks_folder, read_parameters, shown
from ..runs import write_in_one_step
from .engine import Execution, How, Job, digest, package_digest, run_jobs, tell
from .kernels import warm_up
from .pages import (
    FIGURES,
    INDEX,
    PAGES,
    TABLES,
    page_exporter,
    write_first_page,
    write_page,
    write_rerun,
    write_summary,
)

NOTEBOOKS, FAILED = "notebooks", "failed"
STAMP = "analysis_sweep"
_LOCK, _WORKING = ".sweep.lock", ".sweep-working"
_LONGEST_NAME = 100  # characters of a file name, so that endings fit whatever the file system

Options = Mapping[str, Sequence[object]]  # parameter -> values


def make_report(options: Options, out: Path, how: How, *, folder: Path | None = None) -> tuple[Path, int]:
    """Return the path of the first page of a report, and the number of notebooks that failed.

    If any failed, or it is interrupted, the report is in ``out/failed``, and an earlier one stays as it is.

    Parameters
    ----------
    options
        Parameter -> one value.
    out
        Folder of the report.
    how
        How notebooks are run; figures are made as PNG and SVG.
    folder
        Folder of notebooks.

    Raises
    ------
    ValueError
        If a parameter is unknown, a value wrong, or the folder in use; nothing has run then.
    """
    _warm_up(how)
    jobs, skipped = plan(find_notebooks(folder), options, sweep=False)
    pages = [job.name for job in jobs]
    files = [INDEX, FAILED, *(f"{name}.html" for name in pages), *(f"{NOTEBOOKS}/{name}.ipynb" for name in pages)]
    with _working_folder(out, "report", files) as working:
        shutil.rmtree(out / FAILED, ignore_errors=True)
        (notebooks := working / NOTEBOOKS).mkdir()
        stopped = [Execution(job, notebooks / f"{job.name}.ipynb", "stopped before it ended") for job in jobs]
        sections: dict[str, dict[str, Any]] = {}
        try:
            # The last notebooks take longest: begun first, they are not waited for alone.
            with closing(_followed(run_jobs(jobs[::-1], notebooks, how), len(jobs))) as running:
                for execution in running:
                    sections[execution.job.name] = write_page(execution, working, pages)
        finally:  # what ran is shown, also after an interrupt
            for execution in (*stopped, *skipped):
                if execution.job.name not in sections:
                    sections[execution.job.name] = write_page(execution, working, pages)
            failed = sum(bool(section["error"]) for section in sections.values())
            place = out / FAILED if failed else out
            shutil.copytree(working, place, dirs_exist_ok=True, copy_function=os.replace)
            index = write_first_page([sections[name] for name in sorted(sections)], place)
        if failed and (out / INDEX).exists():
            tell(f"the report in {out} is an earlier one, which is kept")
        return index, failed


def make_sweep(
    options: Options, out: Path, how: How, *, names: Sequence[str] = (), folder: Path | None = None
) -> tuple[Path, int]:
    """Return the path of the page of a sweep, and the number of notebooks that failed.

    Parameters
    ----------
    options
        Parameter -> values, as text or in their types.
    out
        Folder of the sweep.
    how
        How notebooks are run.
    names
        Notebooks to rerun, by name; none: all.
    folder
        Folder of notebooks.

    Raises
    ------
    ValueError
        If a parameter or notebook is unknown, a value wrong, or the folder in use; nothing has run then.
    """
    _warm_up(how)
    jobs, skipped = plan(find_notebooks(folder, names), options)
    ended: list[Execution] = []
    for execution in skipped:
        tell(f"skipped {execution.job.name}: {execution.skipped}")
    try:
        with closing(_followed(run_sweep(jobs, out, how), len(jobs))) as running:
            ended.extend(running)
    finally:  # what finished is reported, also after an interrupt
        if ended:
            order = [job.name for job in jobs]
            ended.sort(key=lambda execution: order.index(execution.job.name))
            write_summary(ended, skipped, out)
    return out / INDEX, sum(bool(execution.error) for execution in ended)


def find_notebooks(folder: Path | None = None, names: Sequence[str] = ()) -> list[Path]:
    """Return the notebooks to run, sorted: those in ``folder``, else in ``./notebooks``, else those of the package.

    Raises
    ------
    ValueError
        If there are none, or none of a name; the message names the folder.
    """
    place = folder or notebooks_folder()
    found = {path.stem: path for path in sorted(place.glob("*.ipynb"))}
    if not found:
        raise ValueError(f"no notebooks (*.ipynb) in {place}")
    return [found[checked_choice(name, "notebook", found)] for name in names or found]


def missing_extra(path: Path) -> str:
    """Return what a notebook needs that is not installed, with the command that installs it; empty where nothing is."""
    needed = "analysis_helpers.measure" in path.read_text(encoding="utf-8")
    if not needed or all(map(find_spec, ("torch", "transformers"))):
        return ""
    return 'it needs PyTorch and transformers: pip install ".[measure]" in a checkout'


def plan(notebooks: Sequence[Path], options: Options, *, sweep: bool = True) -> tuple[list[Job], list[Execution]]:
    """Return the jobs for every combination of options, and the notebooks that are skipped, each with the reason.

    Every parameter is checked before anything runs.

    Parameters
    ----------
    notebooks
        Paths of notebooks.
    options
        Parameter -> values. ``eta`` also fills ``etas``. A notebook takes those that it has.
    sweep
        Whether a notebook that has none of the options but ``data_root`` is skipped, and files are named by parameters.

    Raises
    ------
    ValueError
        If an option is in no notebook, or a value of the wrong type or against a rule; one sentence, with a suggestion.
    """
    cells = {path.resolve(): nbformat.read(path, as_version=4).cells for path in notebooks}
    declared = {path: _declared(of_notebook) for path, of_notebook in cells.items()}
    _check_names(options, set().union(*declared.values()))
    swept = [name for name in options if name != "data_root" and sweep]
    jobs: dict[str, Job] = {}
    skipped: list[Execution] = []
    for path, defaults in declared.items():
        names = [name for name in options if _takes(defaults, name)]
        reason = missing_extra(path)
        if swept and not set(names) & set(swept):
            reason = f"it has none of the parameters {', '.join(swept)}"
        if reason:
            skipped.append(Execution(Job(path, {}, path.stem), skipped=reason))
            continue
        for values in product(*(options[name] for name in names)):
            job = _job(path, cells[path], defaults, dict(zip(names, values, strict=True)), sweep)
            jobs.setdefault(job.name, job)
    return list(jobs.values()), skipped


def run_sweep(jobs: Sequence[Job], out: Path, how: How) -> Iterator[Execution]:
    """Run what is not finished yet, and yield how each job ended, those that are kept first.

    Parameters
    ----------
    jobs
        From `plan`.
    out
        Folder of the sweep, created if missing. Everything is written below it.
    how
        How notebooks are run.

    Raises
    ------
    ValueError
        If a report or another sweep is running in the folder, or a file to be written exists and is of no sweep.
    """
    places = ((NOTEBOOKS, "ipynb"), (PAGES, "html"), (FIGURES, "png"))
    files = [f"{place}/{job.name}.{ending}" for job in jobs for place, ending in places]
    with _working_folder(out, "sweep", [*TABLES, *files]) as working:
        for place, _ in places:
            (out / place).mkdir(exist_ok=True)
        kept = {job.name: found for job in jobs if (found := _kept(job, out))}
        yield from kept.values()
        waiting = [job for job in jobs if job.name not in kept]
        for execution in run_jobs(waiting, working, how) if waiting else ():
            yield _finished(execution, out)


def _followed(ended: Iterable[Execution], total: int) -> Generator[Execution]:
    """Yield what ended, and tell how; with a progress bar on a terminal. What makes pages is imported meanwhile."""
    Thread(target=page_exporter).start()  # not in this thread, where Ctrl-C could leave it half imported
    with tqdm(total=total, unit="notebook", file=sys.stderr, disable=None) as bar:
        for count, execution in enumerate(ended, 1):
            how = execution.error or execution.skipped or f"{execution.status} ({execution.seconds:.1f} s)"
            tell(f"[{count}/{total}] {execution.job.name}: {how}")
            bar.update()
            yield execution


def _warm_up(how: How) -> None:
    """Start what kernels are forked from; it imports while this process goes on."""
    if not how.cold and how.scheduler is None:
        warm_up()
    import_module("papermill")  # now, and not in several threads at once


# --- planning ---------------------------------------------------------------------------------------------------------


def _declared(cells: Sequence[Any]) -> dict[str, Any]:
    """Return name -> default of the parameters of a notebook."""
    return assigned("\n".join(cell.source for cell in cells if "parameters" in cell.metadata.get("tags", ())))


def _takes(declared: Collection[str], name: str) -> bool:
    return name in declared or (name == "eta" and "etas" in declared)


def _check_names(options: Options, known: set[str]) -> None:
    if len(roots := options.get("data_root", ())) > 1:
        raise ValueError(f"data_root must be one folder for all of a sweep, got {', '.join(map(str, roots))}")
    for name in options:
        if not _takes(known, name):
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}"
            raise ValueError(f"no notebook has the parameter {name}; {hint}")


def _job(path: Path, cells: Sequence[Any], defaults: Mapping[str, Any], given: dict[str, object], sweep: bool) -> Job:
    if "eta" in given:
        given.setdefault("etas", [given["eta"]])
    values = {name: convert_parameter(name, v, defaults[name]) for name, v in given.items() if name in defaults}
    found = read_parameters({**defaults, **values})
    if "data_root" in values:  # kernels start in another folder
        values["data_root"] = str(found.root.resolve())
    content = [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in cells]  # outputs do not count
    made_from = [values, content, data_state(found.root) if found.data_root else None]
    return Job(path, values, _file_name(path.stem, values) if sweep else path.stem, digest(made_from))


def _file_name(notebook: str, parameters: Mapping[str, object]) -> str:
    """Return a file name that says what was run; a digest keeps it unique where it had to be altered to be safe."""
    texts = [f"{name}={shown(value, '+')}" for name, value in parameters.items() if name != "data_root"]
    plain = "_".join([notebook, *texts])
    safe = re.sub(r"[^A-Za-z0-9._=+-]+", "-", plain).strip(".-") or "notebook"
    if safe == plain and len(plain) <= _LONGEST_NAME:
        return plain
    return f"{safe[:_LONGEST_NAME]}~{digest(plain)[:8]}"


# --- running ----------------------------------------------------------------------------------------------------------


@contextmanager
def _working_folder(out: Path, kind: str, files: Iterable[str]) -> Iterator[Path]:
    """Lock a folder for one report or sweep, until the process ends, and yield a place for what is unfinished.

    It is marked as one of its kind. Where it is not yet, none of ``files``, which are to be written, may exist.
    """
    out.mkdir(parents=True, exist_ok=True)
    working, marker = out / _WORKING, out / f".{kind}"
    try:
        with FileLock(out / _LOCK, timeout=0), ExitStack() as afterwards:
            if there := [out / name for name in files if not marker.exists() and (out / name).exists()]:
                raise ValueError(
                    f"{there[0]} exists and was not written by a {kind}; move it, or choose another folder"
                )
            marker.write_text(f"A {kind} of analysis_helpers writes here.\n", encoding="utf-8")
            shutil.rmtree(working, ignore_errors=True)  # left by one that was killed
            working.mkdir()
            afterwards.callback(shutil.rmtree, working, ignore_errors=True)
            yield working
    except Timeout:
        raise ValueError(
            f"another report or sweep is running in {out}; wait for it, or choose another folder"
        ) from None


def _kept(job: Job, out: Path) -> Execution | None:
    """Return how a job ended in an earlier sweep; None where it did not, or was made from something else."""
    path = out / NOTEBOOKS / f"{job.name}.ipynb"
    try:
        stamp = nbformat.read(path, as_version=4).metadata[STAMP]
    except Exception:  # there is no file or stamp, or it is damaged: nbformat raises many kinds
        return None
    version, package = stamp["package"]
    if (stamp["key"], package) != (job.key, package_digest()):
        return None
    return Execution(job, path, seconds=stamp["seconds"], kept=True, package=(version, package))


def _finished(execution: Execution, out: Path) -> Execution:
    """Write the page, the figure and, last, the notebook; if nothing failed, with a stamp that it is finished."""
    job = execution.job
    made = execution.path if execution.path.is_file() else job.source  # it may have failed before the first cell
    notebook = nbformat.read(made, as_version=4)
    problem = write_rerun(job, notebook, out)
    ended = replace(execution, path=out / NOTEBOOKS / f"{job.name}.ipynb", error=execution.error or problem)
    if ended.status == "done":
        seconds = round(execution.seconds, 3)
        notebook.metadata[STAMP] = {"key": job.key, "seconds": seconds, "package": execution.package}
    write_in_one_step(ended.path, nbformat.writes(notebook))
    return ended
