"""Reports and sweeps: notebooks run with every combination of parameters, into one folder with a first page.

A report is a sweep with one combination. The folder holds ``index.html``, ``results.csv`` (every estimate),
``runlog.csv`` (status of each notebook), and of each notebook ``pages/NAME.html``, ``figures/NAME.png`` and, last,
``notebooks/NAME.ipynb``, with a stamp of its inputs: repeating the command runs only what has changed or did not
finish. A failed notebook is ``notebooks/NAME.unfinished.ipynb``, and its page says so. Parameters are checked before
anything runs. Other files are never touched.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from itertools import chain, product
from pathlib import Path
from threading import Thread
from typing import Any, Literal

from filelock import FileLock, Timeout
from tqdm import tqdm

from .._checks import checked_choice
from ..notebook import assigned, convert_parameter, data_digest, data_state, notebooks_folder, read_parameters, shown
from ..runs import write_in_one_step
from .engine import UNFINISHED, Execution, Job, RunOptions, clear_outputs, digest, log_line, package_digest, run_jobs
from .pages import FIGURES, INDEX, PAGES, RESULTS, RUNLOG, page_exporter, read_notebook, write_index, write_page

Kind = Literal["report", "sweep"]
Values = Mapping[str, Sequence[object]]  # parameter -> values, as text or in their types
NOTEBOOKS = "notebooks"
STAMP = "analysis_helpers"
_WRITTEN = (INDEX, RESULTS, RUNLOG, NOTEBOOKS, PAGES, FIGURES)
_LONGEST_NAME = 100  # characters of a file name, so that endings fit whatever the file system


def run_notebooks(
    kind: Kind, notebooks: Sequence[Path], values: Values, out: Path, options: RunOptions
) -> tuple[Path, int]:
    """Return the path of the first page of a report or sweep, and the number of notebooks that failed.

    Notebooks finished before an interrupt are kept, and the first page shows them.

    Parameters
    ----------
    kind
        "report": each notebook once, including those without any of the parameters; "sweep": every combination.
    notebooks
        From `find_notebooks`.
    values
        Parameter -> values; in a report, one each.
    out
        Folder of the report or sweep.
    options
        How notebooks are run; figures of a report are made as SVG too.

    Raises
    ------
    ValueError
        If a parameter is unknown, a value is invalid, or the folder is in use; nothing has run then.
    """
    jobs, skipped = plan(kind, notebooks, values)
    names = {job.name for job in jobs}
    options = replace(options, svg=kind == "report")
    for execution in skipped:
        log_line(f"{execution.job.name}: skipped: {execution.reason}")
    ended: dict[str, Execution] = {}
    with _locked(out, kind):
        try:
            with closing(_run(jobs, out, options)) as executions:
                for execution in executions:
                    ended[execution.job.name] = execution
        finally:  # finished notebooks are shown, also after an interrupt
            if ended or not jobs:
                stopped = [Execution(job, "skipped", "stopped before it ended") for job in jobs]
                in_order = [ended.get(execution.job.name, execution) for execution in stopped]
                others = [each for each in _earlier(out) if each.job.name not in names] if kind == "sweep" else []
                write_index(kind == "report", in_order + skipped + others, out)
    return out / INDEX, sum(execution.status == "failed" for execution in ended.values())


def find_notebooks(folder: Path | None = None, names: Sequence[str] = ()) -> list[Path]:
    """Return the notebooks to run, sorted: those in ``folder``, else in ``./notebooks``, else those of the package.

    Raises
    ------
    ValueError
        If there are none, or none with a given name; the message names the folder.
    """
    place = folder or notebooks_folder()
    paths = {path.stem: path for path in sorted(place.glob("*.ipynb"))}
    if not paths:
        raise ValueError(f"no notebooks (*.ipynb) in {place}")
    return [paths[checked_choice(name, "notebook", paths)] for name in names or paths]


def missing_extra(path: Path) -> str:
    """Return the missing dependencies of a notebook, with the command that installs them; empty if there are none."""
    needed = "analysis_helpers.measure" in path.read_text(encoding="utf-8")
    if not needed or all(map(find_spec, ("torch", "transformers"))):
        return ""
    return 'it needs PyTorch and transformers: pip install ".[measure]" in a checkout'


# --- planning ---------------------------------------------------------------------------------------------------------


def plan(kind: Kind, notebooks: Sequence[Path], values: Values) -> tuple[list[Job], list[Execution]]:
    """Return the jobs for every combination of values, and the notebooks that are skipped, each with the reason.

    Parameters
    ----------
    kind
        "sweep": a notebook that has no parameter but ``data_root`` is skipped, and files are named by parameters.
    notebooks
        Paths of notebooks.
    values
        Parameter -> values. ``eta`` also fills ``etas``. A notebook gets those that it has.

    Raises
    ------
    ValueError
        If no notebook has a parameter, or a value has the wrong type or breaks a rule.
    """
    cells = {path.resolve(): read_notebook(path)["cells"] for path in notebooks}
    defaults = {path: _defaults(of_notebook) for path, of_notebook in cells.items()}
    _check_names(kind, values, set().union(*defaults.values()))
    swept = [name for name in values if name != "data_root" and kind == "sweep"]
    jobs: list[Job] = []
    skipped: list[Execution] = []
    for path, declared in defaults.items():
        names = [name for name in values if _takes(declared, name)]
        reason = missing_extra(path)
        if swept and not set(names) & set(swept):
            reason = f"it has none of the parameters {', '.join(swept)}"
        if reason:
            skipped.append(Execution(Job(path, {}, path.stem), "skipped", reason))
            continue
        combinations = product(*([(name, value) for value in values[name]] for name in names))
        jobs += [_job(kind, path, cells[path], declared, dict(combination)) for combination in combinations]
    return list({job.name: job for job in jobs}.values()), skipped


def _defaults(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return name -> default of the parameters of a notebook."""
    sources = ["".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", ())]
    return assigned("\n".join(sources))


def _takes(declared: Collection[str], name: str) -> bool:
    return name in declared or (name == "eta" and "etas" in declared)


def _check_names(kind: Kind, values: Values, known: set[str]) -> None:
    for name, of_name in values.items():
        if len(of_name) > 1 and (kind == "report" or name == "data_root"):
            raise ValueError(f"a {kind} takes one value of {name}, got {', '.join(map(str, of_name))}")
        if not _takes(known, name):
            checked_choice(name, "parameter", sorted(known))


def _job(kind: Kind, path: Path, cells: Sequence[Any], declared: Mapping[str, Any], chosen: dict[str, object]) -> Job:
    if "eta" in chosen and "eta" not in declared:
        chosen.setdefault("etas", [chosen["eta"]])
    values = {name: convert_parameter(name, v, declared[name]) for name, v in chosen.items() if name in declared}
    parameters = read_parameters({**declared, **values})
    if "data_root" in values:  # kernels start in another folder
        values["data_root"] = str(parameters.root.resolve())
    # Outputs do not count.
    content = [(cell["cell_type"], "".join(cell["source"]), cell["metadata"].get("tags", [])) for cell in cells]
    state = data_state(parameters.root) if "data_root" in declared else ()
    name = _file_name(path.stem, values) if kind == "sweep" else path.stem
    data_root = str(chosen.get("data_root", declared["data_root"])) if state else ""
    data = data_digest(parameters.root, state) if state else ""
    return Job(path, values, name, digest([values, content, state]), data_root, data)


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
def _locked(out: Path, kind: Kind) -> Iterator[None]:
    """Lock a folder for one report or sweep, and mark it as one of its kind.

    If it is not marked yet, no file to be written may exist.
    """
    out.mkdir(parents=True, exist_ok=True)
    marker = out / f".{kind}"
    try:
        with FileLock(out / ".lock", timeout=0):
            if others := [out / name for name in _WRITTEN if not marker.exists() and (out / name).exists()]:
                raise ValueError(f"{others[0]} was not written by a {kind}; move it, or choose another folder")
            marker.write_text(f"A {kind} of analysis_helpers writes here.\n", encoding="utf-8")
            for name in (NOTEBOOKS, PAGES, FIGURES):
                (out / name).mkdir(exist_ok=True)
            yield
    except Timeout:
        raise ValueError(f"another report or sweep is running in {out}; wait, or choose another folder") from None


def _run(jobs: Sequence[Job], out: Path, options: RunOptions) -> Generator[Execution]:
    """Yield how each job ended, unchanged ones first, and log it; its files are in place by then."""
    unchanged = {job.name: execution for job in jobs if (execution := _unchanged(job, out))}
    # The last notebooks take longest: so they start first.
    by_notebook = sorted(jobs, key=lambda job: job.source.name, reverse=True)
    waiting = [job for job in by_notebook if job.name not in unchanged]
    if waiting:
        _warm_up(options)
    executions = chain(unchanged.values(), run_jobs(waiting, (out / NOTEBOOKS).resolve(), options) if waiting else ())
    complete: list[str] = []
    with tqdm(total=len(jobs), unit="notebook", file=sys.stderr, disable=None) as bar:  # on a terminal
        for count, ended in enumerate(executions, 1):
            execution = _stored(ended, out, {job.name for job in jobs})
            details = f": {execution.reason}" if execution.reason else f" ({execution.seconds:.1f} s)"
            log_line(f"[{count}/{len(jobs)}] {execution.job.name}: {execution.status}{details}")
            bar.update()
            complete += [execution.job.name] if execution.complete else []
            yield execution
    for name in complete:  # a cluster whose worker dies may run a notebook again after its result has arrived
        (out / NOTEBOOKS / f"{name}{UNFINISHED}").unlink(missing_ok=True)


def _warm_up(options: RunOptions) -> None:
    """Start imports while the first notebooks run."""
    from .kernels import CAN_FORK, fork_server

    if CAN_FORK and not options.cold and options.scheduler is None:
        fork_server()
    import_module("papermill")  # now, and not in several threads at once
    Thread(target=page_exporter).start()  # not in this thread, where Ctrl-C could leave it half imported


def _unchanged(job: Job, out: Path) -> Execution | None:
    """Return the execution of a job in an earlier run; None if it did not finish, or was made from something else."""
    path = out / NOTEBOOKS / f"{job.name}.ipynb"
    with suppress(OSError, ValueError, KeyError, TypeError):  # there is no file or stamp, or it is damaged
        stamp = read_notebook(path)["metadata"][STAMP]
        version, package = stamp["package"]
        if (stamp["key"], package) == (job.key, package_digest()):
            return Execution(job, "unchanged", path=path, seconds=stamp["seconds"], package=(version, package))
    return None


def _earlier(out: Path) -> Iterator[Execution]:
    """Yield the finished reruns in a folder, those of which an input has changed as skipped."""
    for path in sorted((out / NOTEBOOKS).glob("*.ipynb")):
        execution = None
        with suppress(OSError, ValueError, KeyError, TypeError):  # its source is gone, or it is no rerun
            stamp = read_notebook(path)["metadata"][STAMP]
            source, cells = Path(stamp["source"]), read_notebook(Path(stamp["source"]))["cells"]
            job = _job("sweep", source, cells, _defaults(cells), dict(stamp["parameters"]))
            execution = _unchanged(replace(job, data_root=stamp["data_root"]), out)
        if execution is None and not path.name.endswith(UNFINISHED):
            reason = "of an earlier sweep; its data, notebook or package has changed: repeat its command"
            execution = Execution(Job(path, {}, path.stem), "skipped", reason)
        if execution:
            yield execution


def _stored(execution: Execution, out: Path, names: Collection[str]) -> Execution:
    """Write page, figure and, if it is finished, the notebook with a stamp.

    If a notebook failed, the page of its earlier run is kept, if there is one.
    """
    finished, unfinished = (out / NOTEBOOKS / f"{execution.job.name}{ending}" for ending in (".ipynb", UNFINISHED))
    if execution.status == "unchanged" and not unfinished.exists():
        return execution
    if execution.path.is_file():
        notebook = read_notebook(execution.path)
    else:  # it failed before the first cell
        clear_outputs(notebook := read_notebook(execution.job.source))
    execution = replace(execution, earlier=execution.status == "failed" and finished.exists(), path=unfinished)
    problem = write_page(execution, read_notebook(finished) if execution.earlier else notebook, names, out)
    if problem and execution.complete:
        execution = replace(execution, status="failed", reason=problem)
    if execution.complete:
        job = execution.job
        stamp = {"key": job.key, "seconds": execution.seconds, "package": execution.package}
        stamp |= {"source": str(job.source), "parameters": job.parameters, "data_root": job.data_root}
        notebook["metadata"][STAMP] = stamp
        execution = replace(execution, path=finished)
    write_in_one_step(execution.path, json.dumps(notebook, indent=1, ensure_ascii=False))
    if execution.complete:
        unfinished.unlink(missing_ok=True)
    return execution
