"""Runs in folders ``batch/run/results.json``: load, write and list them.

A file may be compressed, ``results.json.gz``. `load_runs` reads a batch folder as it is. `sound_runs` and
`sound_batches` also skip runs whose totals do not add up or that lack a required field. `inventory` lists every run, in
any place, with what it supports and its problems, and raises for none of them. Hidden files and folders are skipped; a
leading ``~`` is the home folder. A file is parsed once per process, unless it changes.
"""

from __future__ import annotations

import gzip
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeVar

import pandas as pd

from .._checks import RunError, checked_choice, warn_about_runs
from .collection import Runs
from .json import encode_run, parse_run
from .run import Run, require_run, skipped_steps

RESULTS_FILE = "results.json"

_NAMES = (RESULTS_FILE, f"{RESULTS_FILE}.gz")
_NEARLY_NAMED = re.compile(r"results[\W\d_]*\.json(\.gz)?")  # such as results2.json
_NUMBER = re.compile(r"\d+")
_T = TypeVar("_T")
_DEEPEST = 6  # depth of folders searched below a data root
_MOST_PARSED = 64  # files whose runs are kept in memory


def load_runs(
    source: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], *, on_error: Literal["raise", "skip"] = "raise"
) -> Runs:
    """Return the runs of a batch folder, or of a list of results files, by name; copies are left out with a warning.

    Parameters
    ----------
    source
        A batch folder such as ``data_samples/E_2048`` (names: those of the run folders, in alphabetical order), or
        paths of results files in any place (names: ``batch/run``, in the order given).
    on_error
        "raise" stops at the first bad file; "skip" skips it with one warning.

    Raises
    ------
    RunError
        If a file breaks a rule, no file could be loaded, or the folder is missing or has no runs; the message then says
        what was expected and what is there.
    ValueError
        If ``on_error`` is unknown or two paths give the same key.

    Examples
    --------
    >>> import tempfile
    >>> measured = {"h_new": {1e-6: [0.9]}, "log_weights": {1e-6: [0.0]}}
    >>> run = Run.from_arrays(token_counts=[2], h_base=[1.0], gdotv=[-1.0], **measured)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_run(f"{folder}/E_1/run_01/results.json", run)
    ...     load_runs(f"{folder}/E_1")["run_01"] == run
    True
    """
    checked_choice(on_error, "on_error", ("raise", "skip"))
    paths = _named_paths(source)
    if on_error == "raise":
        return Runs({name: read_run(path) for name, path in paths.items()})
    return Runs(_loaded(paths, read_run))


def result_files(folder: str | os.PathLike[str], depth: int = 1) -> list[Path]:
    """Return the results files ``depth`` levels below ``folder``, sorted.

    Raises
    ------
    RunError
        If the folder cannot be read or holds no results file at that depth; the message says what is there.
    """
    root, problem = Path(folder).expanduser(), "holds no runs"
    try:
        next(root.iterdir(), None)
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    files = _at_depth(_json_files(root, depth), root, depth)
    if not files:
        wanted = root.joinpath(*["*"] * depth, RESULTS_FILE)
        raise RunError(str(root), "folder", f"{problem}; looked for {wanted}; {_listing(root)}")
    return files


def read_run(path: str | os.PathLike[str]) -> Run:
    """Return the run of one results file.

    Raises
    ------
    RunError
        If the file cannot be read or breaks a rule.

    Examples
    --------
    >>> read_run("nowhere/results.json")
    Traceback (most recent call last):
        ...
    analysis_helpers._checks.RunError: nowhere/results.json: file cannot be read (No such file or directory)
    """
    file = Path(path).expanduser()
    try:
        state = file.stat()
        if not stat.S_ISREG(state.st_mode):  # reading from a pipe may never end
            raise RunError(str(file), "file", "must be a regular file")
        return _parsed(file, state.st_size, state.st_mtime_ns, state.st_ino)
    except (OSError, EOFError, zlib.error) as error:
        raise RunError(str(file), "file", f"cannot be read ({getattr(error, 'strerror', None) or error})") from None


@lru_cache(maxsize=_MOST_PARSED)
def _parsed(file: Path, *_: object) -> Run:
    """Return the run of a file, given its size, time of last change and inode."""
    data = file.read_bytes()
    return parse_run(gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data, str(file))


def write_run(path: str | os.PathLike[str], run: Run) -> None:
    """Write a run as a results file that loads back equal; folders are created, an existing file is replaced.

    Raises
    ------
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> import tempfile
    >>> run = synthetic_runs(1, 16)["run_01"]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_run(f"{folder}/E_16/run_01/results.json", run)
    ...     read_run(f"{folder}/E_16/run_01/results.json") == run
    True
    """
    require_run(run)
    target = Path(path).expanduser()
    target.parent.mkdir(parents=True, exist_ok=True)
    write_in_one_step(target, encode_run(run))


def inventory(data_root: str | os.PathLike[str]) -> pd.DataFrame:
    """Return a table of every run below ``data_root``; a run that cannot be used is listed, not raised.

    Returns
    -------
    DataFrame
        Columns batch, run, sequences (missing where the file cannot be used), etas, supports (see `Run.supports`),
        same_as (another row with the same content, or empty), problem (empty if there is none). A run that is not at
        ``batch/run/results.json`` is not loaded from this data root; its problem says where it should be.

    Raises
    ------
    RunError
        If the folder is missing or holds no runs.

    Examples
    --------
    >>> import tempfile
    >>> from analysis_helpers import synthetic_runs, write_run
    >>> with tempfile.TemporaryDirectory() as root:
    ...     write_run(f"{root}/E_32/run_01/results.json", synthetic_runs(1, 32)["run_01"])
    ...     inventory(root)[["batch", "run", "sequences", "problem"]].to_dict("records")
    [{'batch': 'E_32', 'run': 'run_01', 'sequences': 32, 'problem': ''}]
    """
    root = Path(data_root).expanduser()
    files = _json_files(root, _DEEPEST)
    in_place = set(_at_depth(files, root, 2))
    rows: dict[str, tuple[object, ...]] = {}
    first: dict[str, str] = {}  # digest -> name
    for path in sorted(files, key=lambda path: (path not in in_place, path)):  # so that a misplaced copy is the copy
        name = (path.parent if path in in_place else path).relative_to(root).as_posix()
        try:
            run = read_run(path)
        except RunError as error:
            if _NEARLY_NAMED.fullmatch(path.name):
                rows[name] = (None, (), "", "", str(error).removeprefix(f"{path}: "))
            continue
        original = first.setdefault(run.digest, name)
        misplaced = [] if path in in_place else [f"is loaded only from {root / f'E_{run.n}' / '*' / RESULTS_FILE}"]
        problem = "; ".join([*misplaced, *run.problems, *skipped_steps(run)])
        rows[name] = (run.n, run.etas, ", ".join(run.supports), "" if original == name else original, problem)
    if not rows:
        result_files(root, depth=2)  # raises
    listed = {folder for name in rows for folder in (root / name, *(root / name).parents)}
    for folder in _unfilled({folder for path in in_place for folder in path.parents[:2]}, listed):
        problem = f"holds no {RESULTS_FILE}; {_listing(folder)}"
        rows[folder.relative_to(root).as_posix()] = (None, (), "", "", problem)
    columns = ["batch", "run", "sequences", "etas", "supports", "same_as", "problem"]
    table = [(*name.rpartition("/")[::2], *rows[name]) for name in sorted(rows)]
    return pd.DataFrame(table, columns=columns).astype({"sequences": "Int64"})


def sound_runs(folder: str | os.PathLike[str], *, needs: Sequence[str] = ()) -> Runs:
    """Return the runs of a batch folder that load, add up and record what is needed; others are skipped with a warning.

    Parameters
    ----------
    folder
        A batch folder.
    needs
        What a run must record: any of "linear", "score", "baseline_entropy", "logp". With "linear", runs without
        the denominator correction are skipped where others have it.

    Raises
    ------
    RunError
        If the folder is missing or holds no runs, or every run is skipped; as `NotRecordedError`, if none records a
        need.

    Examples
    --------
    >>> import tempfile
    >>> from analysis_helpers import synthetic_runs
    >>> with tempfile.TemporaryDirectory() as root:
    ...     write_run(f"{root}/E_32/run_01/results.json", synthetic_runs(1, 32)["run_01"])
    ...     list(sound_runs(f"{root}/E_32")), list(sound_batches(root))
    (['run_01'], ['E_32'])
    """
    return load_runs(folder, on_error="skip").sound(str(folder), needs)


def sound_batches(data_root: str | os.PathLike[str]) -> dict[str, Runs]:
    """Return the runs of every batch folder by `sound_runs`; a batch with no usable run is skipped with a warning.

    Raises
    ------
    RunError
        If the folder is missing or holds no runs, or every run is skipped.

    Examples
    --------
    >>> sound_batches("nowhere")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    analysis_helpers._checks.RunError: nowhere: folder cannot be read (No such file or directory); ...
    """
    folders = sorted({path.parent.parent for path in result_files(data_root, depth=2)})
    return _loaded({folder.name: folder for folder in folders}, sound_runs, str(data_root))


def write_in_one_step(path: Path, content: bytes | str) -> None:
    """Write a file completely or not at all: under a temporary name, then renamed. Text is UTF-8.

    Raises
    ------
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_in_one_step(Path(folder) / "note.txt", "whole")
    ...     [(path.name, path.read_text()) for path in Path(folder).iterdir()]
    [('note.txt', 'whole')]
    """
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    partial.replace(path)


def _loaded(paths: Mapping[str, Path], load: Callable[[Path], _T], source: str = "") -> dict[str, _T]:
    """Return the runs that load, by name; others are skipped with a warning. If none is left, raise for the source."""
    loaded: dict[str, _T] = {}
    reasons: dict[str, str] = {}
    for name, path in paths.items():
        try:
            loaded[name] = load(path)
        except RunError as error:
            reasons[name] = str(error)
            warn_about_runs(f"skipped {name}: {error}")
    if not loaded:
        why = "; ".join(f"{name}: {reason}" if source else reason for name, reason in reasons.items())
        raise RunError(source or ", ".join(reasons), "folder", f"holds no run that can be used ({why})")
    return loaded


def _named_paths(source: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> dict[str, Path]:
    if isinstance(source, (str, os.PathLike)):
        place = Path(source).expanduser()
        if not (os.access(place, os.F_OK) and place.is_file()):  # is_file raises without permission
            files = {path.parent: path for path in result_files(place)}
            for folder in _unfilled(set(files), set(files)):
                warn_about_runs(f"skipped {folder.name}: holds no {RESULTS_FILE}; {_listing(folder)}")
            return {folder.name: path for folder, path in files.items()}
        source = [source]
    paths = [Path(p).expanduser() for p in source]
    if not paths:
        raise ValueError("no results files given: source is an empty list of paths")
    folders = [Path(os.path.normpath(p.absolute())).parent for p in paths]
    named = {f"{folder.parent.name}/{folder.name}": path for folder, path in zip(folders, paths, strict=True)}
    if len(named) < len(paths):
        there = ", ".join(map(str, paths))
        raise ValueError(f"two of the {len(paths)} paths have the same batch and run name: {there}")
    return named


def _json_files(root: Path, depth: int) -> list[Path]:
    """Return possible results files at most ``depth`` folders below; circular links are not followed.

    An unreadable folder counts as possible: reading it then gives the reason.
    """
    files: list[Path] = []
    unreadable: list[OSError] = []
    for place, folders, names in os.walk(root, followlinks=True, onerror=unreadable.append):
        real, deeper = Path(os.path.realpath(place)), len(Path(place).relative_to(root).parts) < depth
        shown = [name for name in (*names, *folders) if not name.startswith(".")]
        files += [Path(place, name) for name in shown if name.endswith((".json", ".json.gz"))]
        below = [name for name in folders if deeper and name in shown]
        folders[:] = [name for name in below if not real.is_relative_to(os.path.realpath(Path(place, name)))]
    files += [Path(error.filename, RESULTS_FILE) for error in unreadable if Path(error.filename) != root]
    return sorted(files)


def _at_depth(files: Sequence[Path], root: Path, depth: int) -> list[Path]:
    """Return the files to load: one from each folder ``depth`` levels below."""
    first = {path.parent: path for path in reversed(files) if path.name in _NAMES}  # of sorted files
    return sorted(path for path in first.values() if len(path.relative_to(root).parts) == depth + 1)


def _listing(folder: Path, most: int = 8) -> str:
    """Return the contents of the nearest readable folder, as text."""
    place = next(p for p in (folder.absolute(), *folder.absolute().parents) if os.access(p, os.R_OK) and p.is_dir())
    names = sorted(p.name + ("/" if p.is_dir() else "") for p in place.iterdir())
    shown = ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
    return f"in {place} there is {shown or 'nothing'}"


def _unfilled(filled: set[Path], listed: set[Path]) -> list[Path]:
    """Return unlisted folders beside filled ones whose names differ from theirs in digits only."""
    like = {_NUMBER.sub("0", str(folder)) for folder in filled}
    beside = (place for parent in {folder.parent for folder in filled} for place in parent.iterdir())
    folders = {place for place in beside if _NUMBER.sub("0", str(place)) in like} - listed
    return sorted(place for place in folders if place.is_dir() or place.is_symlink())
