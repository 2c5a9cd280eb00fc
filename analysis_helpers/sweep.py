"""Notebooks rerun with every combination of parameters, into one folder that can be resumed.

A rerun is finished once its notebook stands in ``out/notebooks`` under its own name, with a stamp that says what it was
made from. It is written elsewhere and renamed, so a sweep that is killed leaves whole notebooks or none, and the same
command goes on where it was. Nothing that a sweep did not make is deleted or replaced.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from .engines import Job
from .execute import Execution, declared_parameters, fitting_parameters
from .files import write_in_one_step
from .notebook import check_known_parameters, resolve_data_root
from .pages import key_figure, notebook_page
from .run_files import RESULTS_FILE

NOTEBOOKS, PAGES, FIGURES = "notebooks", "pages", "figures"
STAMP = "analysis_sweep"

INDEX, RESULTS, RUNLOG = TABLES = ("index.html", "results.csv", "runlog.csv")

_LOCK, _WORKING, _MARKER = ".sweep.lock", ".sweep-working", ".sweep"
_LONGEST_NAME = 100  # characters of a file name, so that endings fit whatever the file system
_TYPES = {"float": "a number", "int": "a whole number", "list": "a list", "bool": "True or False", "str": "text"}


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
    values = {name: _typed(name, value, declared[name]) for name, value in chosen.items()}
    defaults = {name: _literal(entry["default"]) for name, entry in declared.items()}
    check_known_parameters({**defaults, **values})
    shown = {name: value for name, value in values.items() if name != "data_root"}
    return Rerun(path, values, _file_name(path.stem, shown), _key(digest, values, {**defaults, **values}))


def _resolved(name: str, text: str) -> str:
    # Kernels start in the folder of their notebook: a path given here must mean the same there.
    return str(Path(text).resolve()) if name == "data_root" and Path(text).is_dir() else text


def _typed(name: str, value: object, entry: Mapping[str, Any]) -> object:
    """Return a value given as text as the type that the notebook declares."""
    kind = entry["inferred_type_name"]
    base = str(kind).split("[")[0]
    found = (
        [_typed(name, part, {"inferred_type_name": "float"}) for part in value] if isinstance(value, list) else value
    )
    if isinstance(value, str) and base != "str":
        found = _literal(value)
        if base == "float" and isinstance(found, int) and not isinstance(found, bool):
            found = float(found)
        if base == "int" and isinstance(found, float) and found.is_integer():
            found = int(found)
    if base in _TYPES and type(found).__name__ != base:
        raise ValueError(f"{name} must be {_TYPES[base]}, got {value!r}")
    return found


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
    return _folder_digest(Path(__file__).parent)


def _folder_digest(folder: Path) -> str:
    """Return the digest of all modules below a folder, their paths included."""
    digest = hashlib.sha256()
    for module in sorted(folder.rglob("*.py")):
        digest.update(module.relative_to(folder).as_posix().encode() + module.read_bytes())
    return digest.hexdigest()


def _data_state(data_root: object) -> list[tuple[str, int, int]]:
    if data_root is None:
        return []
    root = resolve_data_root(data_root)
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
