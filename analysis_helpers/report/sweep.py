"""Notebooks rerun with every combination of parameters, into one folder that can be resumed.

A rerun is finished once its notebook stands in ``out/notebooks`` under its own name, with a stamp that says what it was
made from. It is written elsewhere and renamed, so a sweep that is killed leaves whole notebooks or none, and the same
command goes on where it was. Nothing that a sweep did not make is deleted or replaced.

What a sweep found, as two tables: every estimate, and how every rerun went.

The page of a sweep: a map of verdicts, the key figure of every rerun, and a table that links to all of them.

It needs no server and no scripts, and loads nothing from a network.

A sweep from its options to its page: plan, run with progress, tables, page.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any, TextIO

import pandas as pd

from ..inference import QUESTIONS
from ..runs import RESULTS_FILE, write_in_one_step
from .execution import Execution, Job, declared_parameters, find_notebooks, fitting_parameters, run_here, run_on_cluster
from .pages import collected_result, key_figure, notebook_page
from .parameters import ParameterError, Parameters, convert_parameter, read_parameters, resolve_data_root

NOTEBOOKS, PAGES, FIGURES = "notebooks", "pages", "figures"
STAMP = "analysis_sweep"

INDEX, RESULTS, RUNLOG = TABLES = ("index.html", "results.csv", "runlog.csv")

_LOCK, _WORKING, _MARKER = ".sweep.lock", ".sweep-working", ".sweep"
_LONGEST_NAME = 100  # characters of a file name, so that endings fit whatever the file system
_TYPES = {float: "a number", int: "a whole number", list: "a list", bool: "True or False", str: "text"}


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
        File name of what comes of it, without ending.
    key
        Digest of all that it is made from: parameters, notebook, package, and the names, sizes and times of the data.
    """

    source: Path
    parameters: Mapping[str, object]
    name: str
    key: str

    @property
    def place(self) -> tuple[str, tuple[tuple[float, str], ...], str]:
        """What reruns are sorted by: notebook, then parameters, numbers by size."""
        return self.source.stem, tuple(_sortable(value) for value in self.parameters.values()), self.name


@dataclass(frozen=True)
class Outcome:
    """How a rerun ended: ``status`` is "done", "kept" (from an earlier sweep) or "failed", with its ``error``."""

    rerun: Rerun
    status: str
    error: str
    seconds: float
    path: Path


def plan_sweep(notebooks: Sequence[Path], options: Mapping[str, Sequence[str]]) -> tuple[list[Rerun], dict[str, str]]:
    """Return the reruns for every combination of options, and the notebooks left out with the reason.

    Every parameter is checked before anything runs.

    Parameters
    ----------
    notebooks
        Paths of notebooks.
    options
        Parameter -> values as text. ``eta`` also fills ``etas``. A notebook takes those that it has; one that has none
        but ``data_root`` is left out.

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
        digest = _notebook_digest(path)
        for values in product(*(options[name] for name in names)):
            rerun = _rerun(path, digest, found, dict(zip(names, values, strict=True)))
            reruns.setdefault(rerun.name, rerun)
    return sorted(reruns.values(), key=lambda rerun: rerun.place), skipped


def run_sweep(
    reruns: Sequence[Rerun],
    out: Path,
    run: Callable[[Sequence[Job]], Iterator[tuple[Job, Execution]]],
) -> Iterator[Outcome]:
    """Run what is not finished yet, and yield how each rerun ended, those that are kept first.

    Parameters
    ----------
    reruns
        From `plan_sweep`.
    out
        Folder of the sweep; made where it is missing. Everything is written below it.
    run
        Runs jobs and yields each with how it ended: `engines.run_here` or `engines.run_on_cluster`.

    Raises
    ------
    ValueError
        If another sweep is at work in the folder, or a file is in the way that no sweep made.
    """
    out.mkdir(parents=True, exist_ok=True)
    with _locked(out), _working_folder(out) as working:
        _claim(out, reruns)
        stamps = {rerun.name: _stamp_of(_finished(out, rerun)) for rerun in reruns}
        kept = [rerun for rerun in reruns if _is_kept(stamps[rerun.name], rerun)]
        for rerun in kept:
            stamp = stamps[rerun.name] or {}
            yield Outcome(rerun, "kept", "", float(stamp["seconds"]), _finished(out, rerun))
        waiting = {working / f"{rerun.name}.ipynb": rerun for rerun in reruns if rerun not in kept}
        jobs = [Job(rerun.source, rerun.parameters, target) for target, rerun in waiting.items()]
        for job, execution in run(jobs) if jobs else ():
            rerun = waiting[job.target]
            yield _finish(rerun, execution, out)


def _claim(out: Path, reruns: Sequence[Rerun]) -> None:
    """Make the folder one of sweeps; refuse where a file of no sweep stands where one is to be written."""
    marker = out / _MARKER
    ours = [f"{PAGES}/{rerun.name}.html" for rerun in reruns] + [f"{FIGURES}/{rerun.name}.png" for rerun in reruns]
    if not marker.exists():
        for name in (*TABLES, *ours):
            if (out / name).exists():
                raise ValueError(_in_the_way(out / name))
    for folder in (NOTEBOOKS, PAGES, FIGURES):
        (out / folder).mkdir(exist_ok=True)
    marker.write_text("A sweep of analysis_helpers writes here.\n", encoding="utf-8")


def _in_the_way(path: Path) -> str:
    return f"{path} is in the way: no sweep made it; move it, or choose another folder"


def _check_names(options: Mapping[str, Sequence[str]], known: set[str]) -> None:
    if len(options.get("data_root", ())) > 1:
        raise ValueError(f"data_root must be one folder for all of a sweep, got {', '.join(options['data_root'])}")
    for name in options:
        if name in known or (name == "eta" and "etas" in known):
            continue
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(sorted(known))}"
        raise ValueError(f"no notebook of the sweep has the parameter {name}{hint}")


def _rerun(path: Path, digest: str, declared: Mapping[str, Mapping[str, Any]], texts: Mapping[str, str]) -> Rerun:
    chosen = fitting_parameters(declared, {name: _resolved(name, text) for name, text in texts.items()})
    defaults = {name: _literal(entry["default"]) for name, entry in declared.items()}
    values = {name: _typed(name, value, type(defaults[name])) for name, value in chosen.items()}
    everything = {**defaults, **values}
    read_parameters(everything)
    shown = {name: value for name, value in values.items() if name != "data_root"}
    return Rerun(path, values, _file_name(path.stem, shown), _key(digest, values, everything))


def _resolved(name: str, text: str) -> str:
    # Kernels start in the folder of their notebook: a path given here must mean the same there.
    return str(Path(text).resolve()) if name == "data_root" and Path(text).is_dir() else text


def _typed(name: str, value: object, kind: type) -> object:
    """Return a value given as text in the type of one of our parameters, else in that of the notebook's default."""
    import msgspec

    if name in Parameters.__struct_fields__:
        found = convert_parameter(name, value)
        return list(found) if isinstance(found, tuple) else found
    if kind not in _TYPES:
        return value
    try:
        return msgspec.convert(_literal(str(value)) if kind is list else value, kind, strict=False)
    except msgspec.ValidationError:
        raise ParameterError(f"{name} must be {_TYPES[kind]}, got {value!r}") from None


def _literal(text: str) -> Any:
    import ast

    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _file_name(notebook: str, parameters: Mapping[str, object]) -> str:
    """Return a file name that says what was run; where that had to be altered to be safe, a digest makes it unique."""
    plain = "_".join([notebook, *(f"{name}={_text(value)}" for name, value in parameters.items())])
    safe = re.sub(r"[^A-Za-z0-9._=+-]+", "-", plain).strip(".-") or "notebook"
    if safe == plain and len(plain) <= _LONGEST_NAME:
        return plain
    return f"{safe[:_LONGEST_NAME]}~{hashlib.sha256(plain.encode()).hexdigest()[:8]}"


def _text(value: object) -> str:
    if isinstance(value, list):
        return "+".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _sortable(value: object) -> tuple[float, str]:
    if isinstance(value, list):
        return _sortable(value[0]) if value else (0.0, "")
    return (float(value), "") if isinstance(value, (int, float)) else (0.0, str(value))


def _key(digest: str, parameters: Mapping[str, object], everything: Mapping[str, object]) -> str:
    parts = {
        "parameters": parameters,
        "notebook": digest,
        "package": _package_digest(),
        "data": _data_state(everything.get("data_root")),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _notebook_digest(path: Path) -> str:
    """Return the digest of what a notebook says, whatever outputs it stores."""
    import nbformat

    cells = nbformat.read(path, as_version=4).cells
    content = [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in cells]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@cache
def _package_digest() -> str:
    return _folder_digest(Path(__file__).parent.parent)


def _folder_digest(folder: Path) -> str:
    """Return the digest of all modules below a folder, their paths included."""
    digest = hashlib.sha256()
    for module in sorted(folder.rglob("*.py")):
        digest.update(module.relative_to(folder).as_posix().encode() + module.read_bytes())
    return digest.hexdigest()


def _data_state(data_root: object) -> list[tuple[str, int, int]]:
    if data_root is None:
        return []
    root = resolve_data_root(str(data_root))
    found = sorted(path for path in root.glob(f"*/*/{RESULTS_FILE}") if path.is_file())
    states = [(path.relative_to(root).as_posix(), path.stat()) for path in found]
    return [(name, state.st_size, state.st_mtime_ns) for name, state in states]


def _finished(out: Path, rerun: Rerun) -> Path:
    return out / NOTEBOOKS / f"{rerun.name}.ipynb"


def _stamp_of(path: Path) -> dict[str, Any] | None:
    """Return the stamp of a finished notebook, or None where there is none yet."""
    import nbformat

    if not path.exists():
        return None
    try:
        stamp = nbformat.read(path, as_version=4).metadata.get(STAMP)
    except Exception:  # not a notebook: nbformat raises many kinds
        stamp = None
    if stamp is None:
        raise ValueError(_in_the_way(path))
    return dict(stamp)


def _is_kept(stamp: Mapping[str, Any] | None, rerun: Rerun) -> bool:
    return stamp is not None and stamp["key"] == rerun.key and not stamp["error"]


def _finish(rerun: Rerun, execution: Execution, out: Path) -> Outcome:
    """Stamp an executed notebook, write its page and figure, and put it in its place last."""
    import nbformat

    target = _finished(out, rerun)
    made = execution.path if execution.path.is_file() else rerun.source  # it may have failed before the first cell
    notebook = nbformat.read(made, as_version=4)
    nbformat.write(notebook, execution.path)
    page, unreadable = _page(execution.path)
    error = execution.error or unreadable
    write_in_one_step(out / PAGES / f"{rerun.name}.html", page)
    figure = key_figure(notebook)
    if figure is not None:
        write_in_one_step(out / FIGURES / f"{rerun.name}.png", figure)
    notebook.metadata[STAMP] = {"key": rerun.key, "error": error, "seconds": round(execution.seconds, 3)}
    nbformat.write(notebook, execution.path)
    execution.path.replace(target)
    return Outcome(rerun, "failed" if error else "done", error, execution.seconds, target)


def _page(path: Path) -> tuple[str, str]:
    """Return the page of a notebook, and an error where outputs of its own making cannot be shown as one."""
    try:
        return notebook_page(path), ""
    except Exception as error:  # nbconvert and its templates raise many kinds; the other notebooks go on
        return "<!doctype html><title>No page</title><p>This notebook cannot be shown as a page.</p>", (
            f"its page cannot be made ({type(error).__name__}: {error})"
        )


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold the folder for one sweep; the lock ends with the process, however that ends."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(out / _LOCK, timeout=0):
            yield
    except Timeout:
        raise ValueError(f"another sweep is at work in {out}; wait for it, or choose another folder") from None


@contextmanager
def _working_folder(out: Path) -> Iterator[Path]:
    """Make a folder for unfinished notebooks; what a killed sweep left there is removed, as only sweeps write there."""
    working = out / _WORKING
    shutil.rmtree(working, ignore_errors=True)
    working.mkdir()
    try:
        yield working
    finally:
        shutil.rmtree(working, ignore_errors=True)


PARAMETER = "param."  # before the name of a parameter, so that it is not taken for an estimate


def results_table(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """Return a row for each notebook, set of parameters and estimate, from the results that notebooks collect.

    Returns
    -------
    DataFrame
        Columns notebook, ``param.`` and the name of each parameter of the notebook, then its estimates. The same
        whatever the number of workers, the order in which notebooks finished, and the working folder: a data root is
        given as seen from the folder of the notebook.
    """
    rows: list[dict[str, Any]] = []
    for outcome in _sorted(outcomes):
        result = _result(outcome)
        given = _wherever_it_lies(result.get("parameters", {}), outcome.rerun.source.parent)
        parameters = {f"{PARAMETER}{name}": _cell(value) for name, value in sorted(given.items())}
        for row in result.get("rows", []):
            estimates = {name: _cell(value) for name, value in row.items()}
            rows.append({"notebook": outcome.rerun.source.stem, **parameters, **estimates})
    names = list(dict.fromkeys(name for row in rows for name in row))
    first = ["notebook", *sorted(name for name in names if name.startswith(PARAMETER))]
    return pd.DataFrame(rows, columns=first + [name for name in names if name not in first])


def runlog_table(outcomes: Sequence[Outcome], version: str) -> pd.DataFrame:
    """Return a row for each rerun: file, notebook, parameters, status, seconds, error, package version, git commit."""
    commit = _commit()
    rows = [
        {
            "file": f"{outcome.rerun.name}.ipynb",
            "notebook": outcome.rerun.source.stem,
            "parameters": json.dumps(outcome.rerun.parameters, sort_keys=True),
            "status": outcome.status,
            "seconds": round(outcome.seconds, 3),
            "error": outcome.error,
            "version": version,
            "commit": commit,
        }
        for outcome in _sorted(outcomes)
    ]
    return pd.DataFrame(rows)


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV, numbers with 10 significant digits, in one step."""
    write_in_one_step(path, table.to_csv(index=False, float_format="%.10g", lineterminator="\n"))


def _sorted(outcomes: Sequence[Outcome]) -> list[Outcome]:
    return sorted(outcomes, key=lambda outcome: outcome.rerun.place)


def _result(outcome: Outcome) -> dict[str, Any]:
    import nbformat

    return collected_result(nbformat.read(outcome.path, as_version=4))


def _wherever_it_lies(parameters: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return parameters with the data root as a path from the notebook's folder, the same in every checkout."""
    found = dict(parameters)
    if "data_root" in found:
        found["data_root"] = Path(os.path.relpath(folder / found["data_root"], folder)).as_posix()
    return found


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, (list, dict)) else value


def _commit() -> str:
    """Return the commit that the package is at; empty where it is not in a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def write_sweep_page(outcomes: Sequence[Outcome], skipped: Mapping[str, str], results: pd.DataFrame, out: Path) -> Path:
    """Write ``out/index.html`` and return its path.

    Parameters
    ----------
    outcomes
        How the reruns ended.
    skipped
        Notebooks left out, with the reason.
    results
        From `sweep_tables.results_table`.
    out
        Folder of the sweep.
    """
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("analysis_helpers"), autoescape=True)
    rows = [_row(outcome, out) for outcome in sorted(outcomes, key=lambda outcome: outcome.rerun.place)]
    page = environment.get_template("sweep.html").render(
        counts=Counter(outcome.status for outcome in outcomes),
        skipped=skipped,
        maps=[found for column, title in QUESTIONS.items() if (found := _verdict_map(results, column, title))],
        names=[
            name for name in dict.fromkeys(name for row in rows for name in row["parameters"]) if name != "data_root"
        ],
        data_roots=sorted({row["parameters"]["data_root"] for row in rows if "data_root" in row["parameters"]}),
        rows=rows,
    )
    write_in_one_step(out / INDEX, page)
    return out / INDEX


def _row(outcome: Outcome, out: Path) -> dict[str, Any]:
    name = outcome.rerun.name
    figure = f"{FIGURES}/{name}.png"
    return {
        "notebook": outcome.rerun.source.stem,
        "parameters": {key: _shown(value) for key, value in outcome.rerun.parameters.items()},
        "status": outcome.status,
        "error": outcome.error,
        "seconds": f"{outcome.seconds:.1f}",
        "page": f"{PAGES}/{name}.html",
        "figure": figure if (out / figure).is_file() and not outcome.error else "",
    }


def _verdict_map(results: pd.DataFrame, column: str, title: str) -> dict[str, Any] | None:
    """Return the answers by eta (rows) and batch size (columns); None where no notebook of the sweep gives them."""
    eta, size = f"{PARAMETER}eta", f"{PARAMETER}subset_size"
    if not {eta, size, column} <= set(results.columns):
        return None
    given = results.dropna(subset=[eta, size, column])
    if given.empty:
        return None
    etas, sizes = sorted(given[eta].unique()), sorted(given[size].unique())
    cells = [
        [_answer(given.loc[(given[eta] == one) & (given[size] == other), column].tolist()) for other in sizes]
        for one in etas
    ]
    return {
        "title": title,
        "sizes": [f"{n:,.0f}" for n in sizes],
        "rows": [{"eta": f"{one:g}", "cells": row} for one, row in zip(etas, cells, strict=True)],
    }


def _answer(answers: Sequence[str]) -> dict[str, str]:
    """Return what a cell says, and its class: that of the answer where all reruns agree."""
    if not answers:
        return {"text": "", "kind": ""}
    counts = Counter(answers)
    if len(counts) == 1:
        return {"text": answers[0], "kind": answers[0].replace(" ", "-")}
    return {"text": ", ".join(f"{count} x {answer}" for answer, count in sorted(counts.items())), "kind": "cannot-tell"}


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


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
    """Run a sweep and write its tables and page; return the path of the page and the number of notebooks that failed.

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
        Where progress is told; None: standard error.

    Raises
    ------
    ValueError
        If a parameter or notebook is unknown, a value wrong, or the folder in use; nothing has run then.
    """
    from tqdm import tqdm

    stream = stream or sys.stderr
    reruns, skipped = plan_sweep(_chosen(find_notebooks(folder), names), options)
    run = partial(run_on_cluster, address=scheduler) if scheduler else partial(run_here, workers=workers or _cores())
    outcomes: list[Outcome] = []
    index = out / INDEX
    # With disable=None the bar shows on a terminal only; lines are written everywhere.
    with _termination_as_interrupt(), tqdm(total=len(reruns), unit="notebook", file=stream, disable=None) as bar:
        for name, reason in skipped.items():
            bar.write(f"skipped {name}: {reason}", file=stream)
        try:
            for outcome in run_sweep(reruns, out, run):
                outcomes.append(outcome)
                how = outcome.error or f"{outcome.status} ({outcome.seconds:.1f} s)"
                bar.write(f"[{len(outcomes)}/{len(reruns)}] {outcome.rerun.name}: {how}", file=stream)
                stream.flush()
                bar.update()
        finally:  # what finished is written, whatever happened then
            if outcomes:
                index = _write(outcomes, skipped, out)
    return index, sum(outcome.status == "failed" for outcome in outcomes)


def _write(outcomes: Sequence[Outcome], skipped: Mapping[str, str], out: Path) -> Path:
    from analysis_helpers import __version__

    results = results_table(outcomes)
    write_table(results, out / RESULTS)
    write_table(runlog_table(outcomes, __version__), out / RUNLOG)
    return write_sweep_page(outcomes, skipped, results, out)


def _chosen(notebooks: Sequence[Path], names: Sequence[str]) -> list[Path]:
    there = {path.stem: path for path in notebooks}
    for name in names:
        if name not in there:
            raise ValueError(f"there is no notebook {name}; there are {', '.join(there)}")
    return [there[name] for name in names] if names else list(notebooks)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """Let a polite request to end stop the sweep as Ctrl-C does, so that no kernel is left behind."""

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread, where signals do not arrive
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
