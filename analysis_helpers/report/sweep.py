"""Reports and sweeps: notebooks run with one or every combination of parameters, into one folder with a first page.

`make_report` runs them once. `make_sweep` writes ``results.csv`` (every estimate), ``runlog.csv`` (every rerun) and
``index.html`` (answers, key figures, links); a rerun is finished once its notebook is in ``out/notebooks`` with a stamp
that says what it was made from, so the same command resumes a sweep that was killed. Everything is checked before
anything runs, and made in a working folder, then renamed. What neither wrote is neither deleted nor replaced.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import json
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from threading import Thread
from typing import Any

import pandas as pd

from ..inference import QUESTIONS
from ..runs import RESULTS_FILE, write_in_one_step
from .execution import (
    Execution,
    How,
    Job,
    find_notebooks,
    fitting_parameters,
    missing_extra,
    package_digest,
    prepare,
    run_jobs,
    tell,
)
from .pages import collected_result, key_figure, notebook_page, page_exporter, rendered, write_first_page, write_page
from .parameters import ParameterError, Parameters, convert_parameter, read_parameters, resolve_data_root, shown

NOTEBOOKS, PAGES, FIGURES, FAILED = "notebooks", "pages", "figures", "failed"
INDEX, RESULTS, RUNLOG = TABLES = ("index.html", "results.csv", "runlog.csv")
STAMP = "analysis_sweep"
PARAMETER = "param."  # before the name of a parameter, so that it is not taken for an estimate

_MAPPED = {  # columns of results that are shown by step size and batch size
    "linear": QUESTIONS["linear"],
    "linear_enough": "Is one batch enough for that?",
    "recorded": QUESTIONS["recorded"],
    "recorded_enough": "Is one batch enough for that?",
}
_LOCK, _WORKING = ".sweep.lock", ".sweep-working"
_LONGEST_NAME = 100  # characters of a file name, so that endings fit whatever the file system

Ended = tuple[Job, Execution]


def make_report(
    options: Mapping[str, Sequence[object]], out: Path, how: How, *, folder: Path | None = None
) -> tuple[Path, int]:
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
    prepare(how)
    jobs, skipped = plan(find_notebooks(folder), options, sweep=False)
    pages = {job.name: f"{job.name}.html" for job in jobs}
    files = [INDEX, FAILED, *pages.values(), *(f"{NOTEBOOKS}/{name}.ipynb" for name in pages)]
    Thread(target=page_exporter).start()  # not in this thread, where Ctrl-C could leave it half imported
    with _working_folder(out, "report", files) as working:
        shutil.rmtree(out / FAILED, ignore_errors=True)
        notebooks = (made := working / "report") / NOTEBOOKS
        notebooks.mkdir(parents=True)
        stopped = {name: Execution(name, notebooks / f"{name}.ipynb", "stopped before it ended") for name in pages}
        missing = {name: Execution(name, Path(), skipped=reason) for name, reason in skipped.items()}
        ended, sections = {**stopped, **missing}, {}
        try:
            # The last notebooks take longest: begun first, they are not waited for alone.
            with closing(_followed(run_jobs(jobs[::-1], notebooks, how), len(jobs))) as running:
                for job, execution in running:
                    ended[job.name] = execution
                    sections[job.name] = write_page(execution, made, pages)
                    ended[job.name] = replace(execution, error=sections[job.name]["error"])
        finally:  # what ran is shown, also after an interrupt
            for name in ended.keys() - sections:
                sections[name] = write_page(ended[name], made, pages)
            write_first_page([sections[name] for name in sorted(sections)], made)
            failed = sum(bool(execution.error) for execution in ended.values())
            place = out / FAILED if failed else out
            _move(made, place)
        if failed and (out / INDEX).exists():
            tell(f"the report in {out} is an earlier one, which is kept")
        return place / INDEX, failed


def make_sweep(
    options: Mapping[str, Sequence[object]],
    out: Path,
    how: How,
    *,
    names: Sequence[str] = (),
    folder: Path | None = None,
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
    prepare(how)
    jobs, skipped = plan(find_notebooks(folder, names), options)
    Thread(target=page_exporter).start()
    ended: list[Ended] = []
    for name, reason in skipped.items():
        tell(f"skipped {name}: {reason}")
    try:
        with closing(_followed(run_sweep(jobs, out, how), len(jobs))) as running:
            ended.extend(running)
    finally:  # what finished is reported, also after an interrupt
        if ended:
            order = [job.name for job in jobs]
            ended.sort(key=lambda pair: order.index(pair[0].name))
            results = results_table(ended)
            write_table(results, out / RESULTS)
            write_table(runlog_table(ended), out / RUNLOG)
            write_sweep_page(ended, skipped, results, out)
    return out / INDEX, sum(bool(execution.error) for _, execution in ended)


def plan(
    notebooks: Sequence[Path], options: Mapping[str, Sequence[object]], *, sweep: bool = True
) -> tuple[list[Job], dict[str, str]]:
    """Return the jobs for every combination of options, and the skipped notebooks with the reason.

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
    import papermill

    declared = {path.resolve(): papermill.inspect_notebook(path) for path in notebooks}
    _check_names(options, {name for found in declared.values() for name in found})
    swept = [name for name in options if name != "data_root" and sweep]
    jobs: dict[str, Job] = {}
    skipped: dict[str, str] = {}
    for path, found in declared.items():
        names = [name for name in options if fitting_parameters(found, {name: None})]
        if swept and not set(names) & set(swept):
            skipped[path.stem] = f"it has none of the parameters {', '.join(swept)}"
        elif missing := missing_extra(path):
            skipped[path.stem] = missing
        else:
            digest = _notebook_digest(path)
            for values in product(*(options[name] for name in names)):
                job = _job(path, digest, found, dict(zip(names, values, strict=True)), sweep)
                jobs.setdefault(job.name, job)
    return list(jobs.values()), skipped


def run_sweep(jobs: Sequence[Job], out: Path, how: How) -> Iterator[Ended]:
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
        for folder in (NOTEBOOKS, PAGES, FIGURES):
            (out / folder).mkdir(exist_ok=True)
        waiting = []
        for job in jobs:
            path = out / NOTEBOOKS / f"{job.name}.ipynb"
            stamp = _stamp_of(path)
            if not stamp["error"] and (stamp["key"], stamp["package"][1]) == (job.key, package_digest()):
                package = tuple(stamp["package"])
                yield job, Execution(job.name, path, "", stamp["seconds"], kept=True, package=package)
            else:
                waiting.append(job)
        for job, execution in run_jobs(waiting, working, how) if waiting else ():
            yield job, _finish(job, execution, out)


def results_table(ended: Sequence[Ended]) -> pd.DataFrame:
    """Return a row per notebook, set of parameters and estimate, from the results that notebooks display.

    Returns
    -------
    DataFrame
        Columns notebook, ``param.`` and the name of each parameter, then the estimates. It does not depend on the
        place of the checkout: a data root is given relative to the folder of the notebook.
    """
    import nbformat

    rows: list[dict[str, Any]] = []
    for job, execution in ended:
        result, folder = collected_result(nbformat.read(execution.path, as_version=4)), job.source.parent
        given = dict(result.get("parameters", {}))
        if "data_root" in given:
            given["data_root"] = Path(os.path.relpath(folder / given["data_root"], folder)).as_posix()
        parameters = {f"{PARAMETER}{name}": value for name, value in sorted(given.items())}
        for row in result.get("rows", []):
            cells = {"notebook": job.source.stem, **parameters, **row}
            rows.append({k: json.dumps(v) if isinstance(v, (list, dict)) else v for k, v in cells.items()})
    names = list(dict.fromkeys(name for row in rows for name in row))
    first = ["notebook", *sorted(name for name in names if name.startswith(PARAMETER))]
    return pd.DataFrame(rows, columns=first + [name for name in names if name not in first])


def runlog_table(ended: Sequence[Ended]) -> pd.DataFrame:
    """Return a row per rerun: file, notebook, parameters, status, seconds, error, version and digest of the package.

    Version and digest are those of the package where it ran.
    """
    rows = [
        {
            "file": f"{job.name}.ipynb",
            "notebook": job.source.stem,
            "parameters": json.dumps(job.parameters, sort_keys=True),
            "status": execution.status,
            "seconds": round(execution.seconds, 3),
            "error": execution.error or execution.skipped,
            "version": execution.package[0],
            "digest": execution.package[1][:12],
        }
        for job, execution in ended
    ]
    return pd.DataFrame(rows)


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV, numbers with 10 significant digits, completely or not at all."""
    write_in_one_step(path, table.to_csv(index=False, float_format="%.10g", lineterminator="\n"))


def write_sweep_page(ended: Sequence[Ended], skipped: Mapping[str, str], results: pd.DataFrame, out: Path) -> Path:
    """Write ``out/index.html`` and return its path; the page has no scripts and loads nothing from a network.

    Parameters
    ----------
    ended
        How the reruns ended.
    skipped
        Skipped notebooks, with the reason.
    results
        From `results_table`.
    out
        Folder of the sweep.
    """
    import nbformat

    names = dict.fromkeys(name for job, _ in ended for name in job.parameters)
    roots = {str(job.parameters["data_root"]) for job, _ in ended if "data_root" in job.parameters}
    notebooks = {
        job.name: nbformat.read(execution.path, as_version=4) for job, execution in ended if not execution.error
    }
    figures = {name: figure for name, notebook in notebooks.items() if (figure := key_figure(notebook))}
    shared = Counter(figures.values())
    first = {figure: name for name, figure in reversed(figures.items())}
    values = {
        "counts": Counter(execution.status for _, execution in ended),
        "skipped": skipped,
        "maps": [found for column, title in _MAPPED.items() if (found := _verdict_map(results, column, title))],
        "names": [name for name in names if name != "data_root"],
        "data_roots": sorted(roots),
        "ended": ended,
        "findings": {name: (figure[1], shared[figure]) for figure, name in first.items()},
        "text": shown,
    }
    write_in_one_step(out / INDEX, rendered("sweep.html", values))
    return out / INDEX


def _followed(ended: Iterable[Ended], total: int) -> Generator[Ended]:
    """Yield what ended, and tell how; with a progress bar on a terminal."""
    from tqdm import tqdm

    with tqdm(total=total, unit="notebook", file=sys.stderr, disable=None) as bar:
        for count, (job, execution) in enumerate(ended, 1):
            how = execution.error or execution.skipped or f"{execution.status} ({execution.seconds:.1f} s)"
            tell(f"[{count}/{total}] {job.name}: {how}")
            bar.update()
            yield job, execution


# --- planning ---------------------------------------------------------------------------------------------------------


def _check_names(options: Mapping[str, Sequence[object]], known: set[str]) -> None:
    if len(options.get("data_root", ())) > 1:
        raise ValueError(
            f"data_root must be one folder for all of a sweep, got {', '.join(map(str, options['data_root']))}"
        )
    for name in options:
        if name not in known and not (name == "eta" and "etas" in known):
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}"
            raise ValueError(f"no notebook has the parameter {name}; {hint}")


def _job(
    path: Path, digest: str, declared: Mapping[str, Mapping[str, Any]], given: dict[str, object], sweep: bool
) -> Job:
    if "data_root" in given and Path(str(given["data_root"])).is_dir():  # kernels start in another folder
        given["data_root"] = str(Path(str(given["data_root"])).resolve())
    defaults = {name: _literal(entry["default"]) for name, entry in declared.items()}
    chosen = fitting_parameters(declared, given)
    values = {name: _typed(name, value, defaults[name]) for name, value in chosen.items()}
    everything = {**defaults, **values}
    read_parameters(everything)
    made_from = [values, digest, _data_state(everything.get("data_root"))]
    key = hashlib.sha256(json.dumps(made_from, sort_keys=True, default=str).encode()).hexdigest()
    return Job(path, values, _file_name(path.stem, values) if sweep else path.stem, key)


def _typed(name: str, value: object, default: object) -> object:
    """Return a value given as text in the type of one of our parameters, else in that of the notebook's default."""
    import msgspec

    if name in Parameters.__struct_fields__:
        found = convert_parameter(name, value)
        return list(found) if isinstance(found, tuple) else found
    if default is None:
        return value
    try:
        return msgspec.convert(_literal(value) if isinstance(default, list) else value, type(default), strict=False)
    except msgspec.ValidationError:
        raise ParameterError(f"{name} must be of type {type(default).__name__}, got {value!r}") from None


def _literal(text: Any) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _file_name(notebook: str, parameters: Mapping[str, object]) -> str:
    """Return a file name that says what was run; a digest keeps it unique where it had to be altered to be safe."""
    texts = [f"{name}={shown(value, '+')}" for name, value in parameters.items() if name != "data_root"]
    plain = "_".join([notebook, *texts])
    safe = re.sub(r"[^A-Za-z0-9._=+-]+", "-", plain).strip(".-") or "notebook"
    if safe == plain and len(plain) <= _LONGEST_NAME:
        return plain
    return f"{safe[:_LONGEST_NAME]}~{hashlib.sha256(plain.encode()).hexdigest()[:8]}"


def _notebook_digest(path: Path) -> str:
    """Return the digest of the cells of a notebook, without the outputs it stores."""
    import nbformat

    cells = nbformat.read(path, as_version=4).cells
    content = [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in cells]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _data_state(data_root: object) -> list[tuple[str, int, int]]:
    if data_root is None:
        return []
    root = resolve_data_root(str(data_root))
    found = ((path, path.stat()) for path in sorted(root.glob(f"*/*/{RESULTS_FILE}*")) if path.is_file())
    return [(path.relative_to(root).as_posix(), state.st_size, state.st_mtime_ns) for path, state in found]


# --- running ----------------------------------------------------------------------------------------------------------


@contextmanager
def _working_folder(out: Path, kind: str, files: Iterable[str]) -> Iterator[Path]:
    """Lock a folder for one report or sweep, until the process ends, and yield a place for what is unfinished.

    It is marked as one of its kind. Where it is not yet, none of ``files``, which are to be written, may exist.
    """
    from filelock import FileLock, Timeout

    out.mkdir(parents=True, exist_ok=True)
    working, marker = out / _WORKING, out / f".{kind}"
    try:
        with FileLock(out / _LOCK, timeout=0):
            if there := [out / name for name in files if not marker.exists() and (out / name).exists()]:
                raise ValueError(
                    f"{there[0]} exists and was not written by a {kind}; move it, or choose another folder"
                )
            marker.write_text(f"A {kind} of analysis_helpers writes here.\n", encoding="utf-8")
            shutil.rmtree(working, ignore_errors=True)  # left by one that was killed
            working.mkdir()
            try:
                yield working
            finally:
                shutil.rmtree(working, ignore_errors=True)
    except Timeout:
        raise ValueError(
            f"another report or sweep is running in {out}; wait for it, or choose another folder"
        ) from None


def _move(folder: Path, place: Path) -> None:
    """Move all files of a folder to another, replacing those there, the first page last."""
    for path in sorted(folder.rglob("*"), key=lambda path: path.name == INDEX):
        if path.is_file():
            target = place / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)


def _stamp_of(path: Path) -> Mapping[str, Any]:
    """Return the stamp of a finished notebook; where there is none, one with an error."""
    import nbformat

    try:
        stamp: Mapping[str, Any] = nbformat.read(path, as_version=4).metadata[STAMP]
    except Exception:  # there is no file, or it is damaged: nbformat raises many kinds
        return {"error": "not finished"}
    return stamp


def _finish(job: Job, execution: Execution, out: Path) -> Execution:
    """Stamp an executed notebook, write its page and figure, and move it to its place last."""
    import nbformat

    made = execution.path if execution.path.is_file() else job.source  # it may have failed before the first cell
    notebook = nbformat.read(made, as_version=4)
    nbformat.write(notebook, execution.path)
    page, problem = notebook_page(execution.path, index=f"../{INDEX}")
    error = execution.error or problem
    write_in_one_step(out / PAGES / f"{job.name}.html", page)
    if figure := key_figure(notebook):
        write_in_one_step(out / FIGURES / f"{job.name}.png", figure[0])
    seconds = round(execution.seconds, 3)
    told = error or execution.skipped  # run again by the next sweep
    notebook.metadata[STAMP] = {"key": job.key, "error": told, "seconds": seconds, "package": execution.package}
    nbformat.write(notebook, execution.path)
    return replace(execution, path=execution.path.replace(out / NOTEBOOKS / execution.path.name), error=error)


# --- tables and page --------------------------------------------------------------------------------------------------


def _verdict_map(results: pd.DataFrame, column: str, title: str) -> dict[str, Any] | None:
    """Return the answers by eta (rows) and batch size (columns); None if no notebook of the sweep gives them."""
    eta, size = f"{PARAMETER}eta", f"{PARAMETER}subset_size"
    if not {eta, size, column} <= set(results.columns):
        return None
    given = results.dropna(subset=[eta, size, column])
    if given.empty:
        return None
    answers = given.pivot_table(column, index=eta, columns=size, aggfunc=_counted, fill_value="")
    rows = [{"eta": f"{eta:g}", "cells": cells} for eta, *cells in answers.itertuples()]
    return {"title": title, "sizes": [f"{n:,.0f}" for n in answers.columns], "rows": rows}


def _counted(answers: pd.Series[str]) -> str:
    """Return the answer of all reruns, or how many gave each answer."""
    counts = sorted(Counter(answers).items())
    return counts[0][0] if len(counts) == 1 else ", ".join(f"{count} x {answer}" for answer, count in counts)
