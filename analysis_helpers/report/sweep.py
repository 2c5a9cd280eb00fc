"""Sweeps: notebooks rerun with every combination of parameters, into one folder, with tables and a page.

`run_and_report` does it all: plan, run with progress, write ``results.csv`` (every estimate), ``runlog.csv`` (every
rerun) and ``index.html`` (answers, key figures, links). A rerun is finished once its notebook is in ``out/notebooks``
with a stamp that says what it was made from; it is written elsewhere and renamed, so the same command resumes a sweep
that was killed. Files that no sweep wrote are neither deleted nor replaced. For a single set of parameters use
``python -m analysis_helpers report``.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any, Literal, TextIO

import pandas as pd

from ..inference import QUESTIONS
from ..runs import RESULTS_FILE, write_in_one_step
from .execution import (
    Execution,
    Job,
    declared_parameters,
    find_notebooks,
    fitting_parameters,
    missing_extra,
    run_here,
    run_on_cluster,
)
from .pages import collected_result, key_figure, notebook_page, rendered
from .parameters import ParameterError, Parameters, convert_parameter, read_parameters, resolve_data_root

NOTEBOOKS, PAGES, FIGURES = "notebooks", "pages", "figures"
INDEX, RESULTS, RUNLOG = TABLES = ("index.html", "results.csv", "runlog.csv")
STAMP = "analysis_sweep"
PARAMETER = "param."  # before the name of a parameter, so that it is not taken for an estimate

_LOCK, _WORKING, _MARKER = ".sweep.lock", ".sweep-working", ".sweep"
_LONGEST_NAME = 100  # characters of a file name, so that endings fit whatever the file system


@dataclass(frozen=True)
class Rerun:
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
        Digest of all that it is made from: parameters, notebook, package, and the names, sizes and times of the data.
    """

    source: Path
    parameters: Mapping[str, object]
    name: str
    key: str

    @property
    def place(self) -> tuple[str, list[tuple[float, str]], str]:
        """Sort key: notebook, then parameters, numbers by size."""
        return self.source.stem, [_sort_key(value) for value in self.parameters.values()], self.name


@dataclass(frozen=True)
class Outcome:
    """How a rerun ended: "done", "kept" (from an earlier sweep) or "failed", with its ``error``."""

    rerun: Rerun
    status: Literal["done", "kept", "failed"]
    error: str
    seconds: float
    path: Path


def run_and_report(
    options: Mapping[str, Sequence[str]],
    out: Path,
    *,
    names: Sequence[str] = (),
    folder: Path | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    stream: TextIO | None = None,
) -> tuple[Path, int]:
    """Return the path of the page of a sweep, and the number of notebooks that failed.

    Parameters
    ----------
    options
        Parameter -> values as text.
    out
        Folder of the sweep.
    names
        Notebooks to rerun, by name; none: all.
    folder
        Folder of notebooks.
    workers
        Notebooks at once; None: the number of cores.
    scheduler
        Address of a Dask scheduler to run on instead.
    stream
        Where progress is written; None: standard error.

    Raises
    ------
    ValueError
        If a parameter or notebook is unknown, a value wrong, or the folder in use; nothing has run then.
    """
    from tqdm import tqdm

    from analysis_helpers import __version__

    stream = stream or sys.stderr
    reruns, skipped = plan_sweep(_chosen(find_notebooks(folder), names), options)
    run = partial(run_on_cluster, address=scheduler) if scheduler else partial(run_here, workers=workers or _cores())
    outcomes: list[Outcome] = []
    # With disable=None the bar shows on a terminal only; lines are written everywhere.
    with tqdm(total=len(reruns), unit="notebook", file=stream, disable=None) as bar:
        for name, reason in skipped.items():
            bar.write(f"skipped {name}: {reason}", file=stream)
        try:
            for outcome in run_sweep(reruns, out, run):
                outcomes.append(outcome)
                how = outcome.error or f"{outcome.status} ({outcome.seconds:.1f} s)"
                bar.write(f"[{len(outcomes)}/{len(reruns)}] {outcome.rerun.name}: {how}", file=stream)
                stream.flush()
                bar.update()
        finally:  # what finished is reported, also after an interrupt
            if outcomes:
                results = results_table(outcomes)
                write_table(results, out / RESULTS)
                write_table(runlog_table(outcomes, __version__), out / RUNLOG)
                write_sweep_page(outcomes, skipped, results, out)
    return out / INDEX, sum(outcome.status == "failed" for outcome in outcomes)


def plan_sweep(notebooks: Sequence[Path], options: Mapping[str, Sequence[str]]) -> tuple[list[Rerun], dict[str, str]]:
    """Return the reruns for every combination of options, and the skipped notebooks with the reason.

    Every parameter is checked before anything runs.

    Parameters
    ----------
    notebooks
        Paths of notebooks.
    options
        Parameter -> values as text. ``eta`` also fills ``etas``. A notebook takes those that it has; one that has none
        but ``data_root`` is skipped.

    Raises
    ------
    ValueError
        If an option is in no notebook, or a value of the wrong type or against a rule; one sentence, with a suggestion.
    """
    declared = {path.resolve(): declared_parameters(path) for path in notebooks}
    _check_names(options, {name for found in declared.values() for name in found})
    swept = [name for name in options if name != "data_root"]
    reruns: dict[str, Rerun] = {}
    skipped: dict[str, str] = {}
    for path, found in declared.items():
        names = [name for name in options if fitting_parameters(found, {name: None})]
        if swept and not set(names) & set(swept):
            skipped[path.stem] = f"it has none of the parameters {', '.join(swept)}"
            continue
        if missing := missing_extra(path):
            skipped[path.stem] = missing
            continue
        digest = _notebook_digest(path)
        for values in product(*(options[name] for name in names)):
            rerun = _rerun(path, digest, found, dict(zip(names, values, strict=True)))
            reruns.setdefault(rerun.name, rerun)
    return sorted(reruns.values(), key=lambda rerun: rerun.place), skipped


def run_sweep(
    reruns: Sequence[Rerun], out: Path, run: Callable[[Sequence[Job]], Iterator[tuple[Job, Execution]]]
) -> Iterator[Outcome]:
    """Run what is not finished yet, and yield how each rerun ended, those that are kept first.

    Parameters
    ----------
    reruns
        From `plan_sweep`.
    out
        Folder of the sweep, created if missing. Everything is written below it.
    run
        Runs jobs and yields each with how it ended: `run_here` or `run_on_cluster`.

    Raises
    ------
    ValueError
        If another sweep is running in the folder, or a file to be written exists and is of no sweep.
    """
    out.mkdir(parents=True, exist_ok=True)
    with _working_folder(out) as working:
        _claim(out, reruns)
        waiting: dict[Path, Rerun] = {}
        for rerun, stamp in [(rerun, _stamp_of(_finished(out, rerun))) for rerun in reruns]:
            if stamp and stamp["key"] == rerun.key and not stamp["error"]:
                yield Outcome(rerun, "kept", "", float(stamp["seconds"]), _finished(out, rerun))
            else:
                waiting[working / f"{rerun.name}.ipynb"] = rerun
        jobs = [Job(rerun.source, rerun.parameters, target) for target, rerun in waiting.items()]
        for job, execution in run(jobs) if jobs else ():
            yield _finish(waiting[job.target], execution, out)


def results_table(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """Return a row per notebook, set of parameters and estimate, from the results that notebooks display.

    Returns
    -------
    DataFrame
        Columns notebook, ``param.`` and the name of each parameter, then the estimates. It does not depend on the
        number of workers, the order in which notebooks finished, or the place of the checkout: a data root is given
        relative to the folder of the notebook.
    """
    import nbformat

    rows: list[dict[str, Any]] = []
    for outcome in _sorted(outcomes):
        result, folder = collected_result(nbformat.read(outcome.path, as_version=4)), outcome.rerun.source.parent
        given = dict(result.get("parameters", {}))
        if "data_root" in given:
            given["data_root"] = Path(os.path.relpath(folder / given["data_root"], folder)).as_posix()
        parameters = {f"{PARAMETER}{name}": value for name, value in sorted(given.items())}
        for row in result.get("rows", []):
            cells = {"notebook": outcome.rerun.source.stem, **parameters, **row}
            rows.append({k: json.dumps(v) if isinstance(v, (list, dict)) else v for k, v in cells.items()})
    names = list(dict.fromkeys(name for row in rows for name in row))
    first = ["notebook", *sorted(name for name in names if name.startswith(PARAMETER))]
    return pd.DataFrame(rows, columns=first + [name for name in names if name not in first])


def runlog_table(outcomes: Sequence[Outcome], version: str) -> pd.DataFrame:
    """Return a row per rerun: file, notebook, parameters, status, seconds, error, package version, git commit."""
    rows = [
        {
            "file": f"{outcome.rerun.name}.ipynb",
            "notebook": outcome.rerun.source.stem,
            "parameters": json.dumps(outcome.rerun.parameters, sort_keys=True),
            "status": outcome.status,
            "seconds": round(outcome.seconds, 3),
            "error": outcome.error,
        }
        for outcome in _sorted(outcomes)
    ]
    return pd.DataFrame(rows).assign(version=version, commit=_commit())


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV, numbers with 10 significant digits, completely or not at all."""
    write_in_one_step(path, table.to_csv(index=False, float_format="%.10g", lineterminator="\n"))


def write_sweep_page(outcomes: Sequence[Outcome], skipped: Mapping[str, str], results: pd.DataFrame, out: Path) -> Path:
    """Write ``out/index.html`` and return its path; the page has no scripts and loads nothing from a network.

    Parameters
    ----------
    outcomes
        How the reruns ended.
    skipped
        Skipped notebooks, with the reason.
    results
        From `results_table`.
    out
        Folder of the sweep.
    """
    reruns = [outcome.rerun for outcome in _sorted(outcomes)]
    names = dict.fromkeys(name for rerun in reruns for name in rerun.parameters)
    roots = {str(rerun.parameters["data_root"]) for rerun in reruns if "data_root" in rerun.parameters}
    figures = {path.stem for path in (out / FIGURES).glob("*.png")}
    values = {
        "counts": Counter(outcome.status for outcome in outcomes),
        "skipped": skipped,
        "maps": [found for column, title in QUESTIONS.items() if (found := _verdict_map(results, column, title))],
        "names": [name for name in names if name != "data_root"],
        "data_roots": sorted(roots),
        "outcomes": _sorted(outcomes),
        "figures": {outcome.rerun.name for outcome in outcomes if not outcome.error} & figures,
        "text": partial(_text, separator=", "),
    }
    write_in_one_step(out / INDEX, rendered("sweep.html", values))
    return out / INDEX


def _sorted(outcomes: Sequence[Outcome]) -> list[Outcome]:
    return sorted(outcomes, key=lambda outcome: outcome.rerun.place)


def _chosen(notebooks: Sequence[Path], names: Sequence[str]) -> list[Path]:
    there = {path.stem: path for path in notebooks}
    for name in names:
        if name not in there:
            raise ValueError(f"there is no notebook {name}; there are {', '.join(there)}")
    return [there[name] for name in names] if names else list(notebooks)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --- planning ---------------------------------------------------------------------------------------------------------


def _check_names(options: Mapping[str, Sequence[str]], known: set[str]) -> None:
    if len(options.get("data_root", ())) > 1:
        raise ValueError(f"data_root must be one folder for all of a sweep, got {', '.join(options['data_root'])}")
    for name in options:
        if name not in known and not (name == "eta" and "etas" in known):
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}"
            raise ValueError(f"no notebook of the sweep has the parameter {name}; {hint}")


def _rerun(path: Path, digest: str, declared: Mapping[str, Mapping[str, Any]], given: dict[str, str]) -> Rerun:
    if "data_root" in given and Path(given["data_root"]).is_dir():  # kernels start in another folder
        given["data_root"] = str(Path(given["data_root"]).resolve())
    defaults = {name: _literal(entry["default"]) for name, entry in declared.items()}
    chosen = fitting_parameters(declared, given)
    values = {name: _typed(name, value, defaults[name]) for name, value in chosen.items()}
    everything = {**defaults, **values}
    read_parameters(everything)
    made_from = [values, digest, _package_digest(), _data_state(everything.get("data_root"))]
    key = hashlib.sha256(json.dumps(made_from, sort_keys=True, default=str).encode()).hexdigest()
    return Rerun(path, values, _file_name(path.stem, values), key)


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
    shown = [f"{name}={_text(value, '+')}" for name, value in parameters.items() if name != "data_root"]
    plain = "_".join([notebook, *shown])
    safe = re.sub(r"[^A-Za-z0-9._=+-]+", "-", plain).strip(".-") or "notebook"
    if safe == plain and len(plain) <= _LONGEST_NAME:
        return plain
    return f"{safe[:_LONGEST_NAME]}~{hashlib.sha256(plain.encode()).hexdigest()[:8]}"


def _text(value: object, separator: str) -> str:
    if isinstance(value, list):
        return separator.join(_text(part, separator) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _sort_key(value: object) -> tuple[float, str]:
    if isinstance(value, list):
        return _sort_key(value[0] if value else "")
    return (float(value), "") if isinstance(value, (int, float)) else (0.0, str(value))


def _notebook_digest(path: Path) -> str:
    """Return the digest of the cells of a notebook, without the outputs it stores."""
    import nbformat

    cells = nbformat.read(path, as_version=4).cells
    content = [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in cells]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@cache
def _package_digest() -> str:
    return _folder_digest(Path(__file__).parent.parent)


def _folder_digest(folder: Path) -> str:
    """Return the digest of all modules below a folder, with their paths."""
    digest = hashlib.sha256()
    for module in sorted(folder.rglob("*.py")):
        digest.update(module.relative_to(folder).as_posix().encode() + module.read_bytes())
    return digest.hexdigest()


def _data_state(data_root: object) -> list[tuple[str, int, int]]:
    if data_root is None:
        return []
    root = resolve_data_root(str(data_root))
    found = ((path, path.stat()) for path in sorted(root.glob(f"*/*/{RESULTS_FILE}*")) if path.is_file())
    return [(path.relative_to(root).as_posix(), state.st_size, state.st_mtime_ns) for path, state in found]


# --- running ----------------------------------------------------------------------------------------------------------


@contextmanager
def _working_folder(out: Path) -> Iterator[Path]:
    """Lock the folder for one sweep, until the process ends, and yield a place for unfinished notebooks."""
    from filelock import FileLock, Timeout

    working = out / _WORKING
    try:
        with FileLock(out / _LOCK, timeout=0):
            shutil.rmtree(working, ignore_errors=True)  # left by a sweep that was killed
            working.mkdir()
            try:
                yield working
            finally:
                shutil.rmtree(working, ignore_errors=True)
    except Timeout:
        raise ValueError(f"another sweep is running in {out}; wait for it, or choose another folder") from None


def _claim(out: Path, reruns: Sequence[Rerun]) -> None:
    """Mark the folder as one of sweeps; refuse if a file that is to be written exists and is of no sweep."""
    marker = out / _MARKER
    pages = (f"{PAGES}/{rerun.name}.html" for rerun in reruns)
    figures = (f"{FIGURES}/{rerun.name}.png" for rerun in reruns)
    for name in () if marker.exists() else (*TABLES, *pages, *figures):
        if (out / name).exists():
            raise _not_ours(out / name)
    for folder in (NOTEBOOKS, PAGES, FIGURES):
        (out / folder).mkdir(exist_ok=True)
    marker.write_text("A sweep of analysis_helpers writes here.\n", encoding="utf-8")


def _finished(out: Path, rerun: Rerun) -> Path:
    return out / NOTEBOOKS / f"{rerun.name}.ipynb"


def _not_ours(path: Path) -> ValueError:
    return ValueError(f"{path} exists and was not written by a sweep; move it, or choose another folder")


def _stamp_of(path: Path) -> Mapping[str, Any] | None:
    """Return the stamp of a finished notebook, or None if there is no notebook yet."""
    import nbformat

    if not path.exists():
        return None
    try:
        stamp: Mapping[str, Any] = nbformat.read(path, as_version=4).metadata[STAMP]
    except Exception:  # nbformat raises many kinds for what is not a notebook
        raise _not_ours(path) from None
    return stamp


def _finish(rerun: Rerun, execution: Execution, out: Path) -> Outcome:
    """Stamp an executed notebook, write its page and figure, and move it to its place last."""
    import nbformat

    made = execution.path if execution.path.is_file() else rerun.source  # it may have failed before the first cell
    notebook = nbformat.read(made, as_version=4)
    nbformat.write(notebook, execution.path)
    error = execution.error
    try:
        page = notebook_page(execution.path)
    except Exception as failure:  # nbconvert and its templates raise many kinds; the other notebooks go on
        page = "<!doctype html><title>No page</title><p>This notebook cannot be shown as a page.</p>"
        error = error or f"its page cannot be made ({type(failure).__name__}: {failure})"
    write_in_one_step(out / PAGES / f"{rerun.name}.html", page)
    figure = key_figure(notebook)
    if figure is not None:
        write_in_one_step(out / FIGURES / f"{rerun.name}.png", figure)
    notebook.metadata[STAMP] = {"key": rerun.key, "error": error, "seconds": round(execution.seconds, 3)}
    nbformat.write(notebook, execution.path)
    finished = execution.path.replace(_finished(out, rerun))
    return Outcome(rerun, "failed" if error else "done", error, execution.seconds, finished)


# --- tables and page --------------------------------------------------------------------------------------------------


def _commit() -> str:
    """Return the git commit of the package; empty outside a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


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
