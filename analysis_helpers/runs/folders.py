"""Reading and writing a file whole or not at all, whatever happens meanwhile.

Results files on disk: find them in a batch folder, read them into runs, write runs.

Tables about runs: what is there, what each says in total, and how its contributions are spread.

Whether runs add up, and the runs of a folder that do: what is left out is left out with a warning and a reason.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from .._checks import RunError, checked_choice, warn_about_runs
from .json import encode_run, parse_run
from .run import FIELDS_BEHIND, Run, integrity_problems


def write_in_one_step(path: Path, content: bytes | str) -> None:
    """Write under a temporary name beside ``path``, then rename; an existing file is replaced. Text is UTF-8.

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


RESULTS_FILE = "results.json"
_A_FILE = "is a file, not a folder"


def load_runs(
    source: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], *, on_error: str = "raise"
) -> dict[str, Run]:
    """Load runs from a batch folder, or from a list of results files.

    Parameters
    ----------
    source
        A batch folder such as ``data_samples/E_2048`` (keys of the answer: names of the run folders, in alphabetical
        order), or paths of results files (keys: ``batch/run``, in the order given).
    on_error
        "raise" stops at the first bad file; "skip" leaves it out with one warning.

    Returns
    -------
    dict
        Name of the run -> `Run`.

    Raises
    ------
    RunError
        If a file breaks a rule, if no file could be loaded, or if the folder is missing or holds no runs: then the
        message says what was looked for and what is there.
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
    runs: dict[str, Run] = {}
    failure: RunError | None = None
    for name, path in _named_paths(source).items():
        try:
            runs[name] = read_run(path)
        except RunError as error:
            if on_error == "raise":
                raise
            warn_about_runs(f"skipped {name}: {error}")
            failure = error  # only the last: its traceback holds on to what was read
    if failure is not None and not runs:
        raise failure
    return runs


def result_files(folder: str | os.PathLike[str], depth: int = 1) -> list[Path]:
    """Return the results files ``depth`` folders below ``folder``, sorted; say what is there where there are none.

    Raises
    ------
    RunError
        If the folder is missing, is not a folder, or holds no results file at that depth.
    """
    root, pattern = Path(folder), "/".join(["*"] * depth + [RESULTS_FILE])
    folders = "/".join(["*"] * depth)
    if problem := _no_folder(root):
        raise RunError(
            str(root), "folder", f"{problem}; looked for {root / pattern}; {_what_is_in(_nearest_folder(root))}"
        )
    found = sorted(place / RESULTS_FILE for place in root.glob(folders) if _is_there(place / RESULTS_FILE))
    if not found:
        raise RunError(str(root), "folder", f"holds no runs; looked for {root / pattern}; {_what_is_in(root)}")
    return found


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
    return parse_run(_content(path), str(path))


def write_run(path: str | os.PathLike[str], run: Run) -> None:
    """Write a run as a results file that loads back equal; folders are made, an existing file is replaced in one step.

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
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_in_one_step(target, encode_run(run))


def _content(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes of a results file, or raise a `RunError` with the reason."""
    file = Path(path)
    try:
        if file.exists() and not file.is_file():  # reading a pipe may never end
            raise RunError(str(path), "file", "must be a regular file")
        return file.read_bytes()
    except OSError as error:
        raise RunError(str(path), "file", f"cannot be read ({error.strerror})") from None


def _named_paths(source: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> dict[str, Path]:
    if isinstance(source, (str, os.PathLike)):
        if _no_folder(Path(source)) != _A_FILE:
            return {path.parent.name: path for path in result_files(source)}
        source = [source]
    paths = [Path(p) for p in source]
    if not paths:
        raise ValueError("no results files given: source is an empty list of paths")
    folders = [Path(os.path.normpath(p.absolute())).parent for p in paths]
    named = {f"{folder.parent.name}/{folder.name}": path for folder, path in zip(folders, paths, strict=True)}
    if len(named) < len(paths):
        raise ValueError(
            f"two of the {len(paths)} paths have the same batch and run name: {', '.join(map(str, paths))}"
        )
    return named


def _no_folder(path: Path) -> str:
    """Return why a path is no folder to look into, or nothing where it is one."""
    try:
        return "" if stat.S_ISDIR(path.stat().st_mode) else _A_FILE
    except (FileNotFoundError, NotADirectoryError):
        return "does not exist"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _is_there(path: Path) -> bool:
    """Return False only where no file is: one that cannot be read is listed with its problem, not passed over."""
    try:
        return bool(path.lstat())
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True


def _nearest_folder(path: Path) -> Path:
    return next((p for p in path.absolute().parents if not _no_folder(p)), Path("/"))


def _what_is_in(folder: Path, most: int = 8) -> str:
    try:
        names = sorted(p.name + ("/" if p.is_dir() else "") for p in folder.iterdir())
    except OSError as error:
        return f"{folder} cannot be listed ({error.strerror})"
    shown = ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
    return f"in {folder} there is {shown or 'nothing'}{_hint(folder, names)}"


def _hint(folder: Path, names: list[str]) -> str:
    """Return what was probably meant where the folder is one level too high or too low."""
    if any(folder.glob(f"*/{RESULTS_FILE}")):
        return f" (it is a batch folder itself: give {folder.absolute().parent})"
    below = next((name for name in names if any((folder / name).glob(f"*/{RESULTS_FILE}"))), None)
    return f" (is {folder / below} the batch folder?)" if below else ""


def inventory(data_root: str | os.PathLike[str]) -> pd.DataFrame:
    """Return a row for each ``batch/run/results.json`` below ``data_root``; a bad file is listed, not raised.

    Returns
    -------
    DataFrame
        Columns batch, run, sequences (missing where the file cannot be used), etas, supports (see `Run.supports`),
        same_as (an earlier row with the same content, or empty) and problem (empty where there is none).

    Raises
    ------
    RunError
        If the folder is missing or holds no runs; the message says what was looked for and what is there.

    Examples
    --------
    >>> import tempfile
    >>> from analysis_helpers import synthetic_runs, write_run
    >>> with tempfile.TemporaryDirectory() as root:
    ...     write_run(f"{root}/E_32/run_01/results.json", synthetic_runs(1, 32)["run_01"])
    ...     inventory(root)[["batch", "run", "sequences", "problem"]].to_dict("records")
    [{'batch': 'E_32', 'run': 'run_01', 'sequences': 32, 'problem': ''}]
    """
    seen: dict[bytes, str] = {}
    rows = [_inventory_row(path, seen) for path in result_files(data_root, depth=2)]
    return pd.DataFrame(rows).astype({"sequences": "Int64"})


def _inventory_row(path: Path, seen: dict[bytes, str]) -> dict[str, object]:
    batch, name = path.parent.parent.name, path.parent.name
    row: dict[str, object] = {"batch": batch, "run": name, "sequences": None, "etas": (), "supports": "", "same_as": ""}
    try:
        content = _content(path)
        row["same_as"] = seen.setdefault(hashlib.sha256(content).digest(), f"{batch}/{name}")
        if row["same_as"] == f"{batch}/{name}":
            row["same_as"] = ""
        run = parse_run(content, str(path))
    except RunError as error:
        return {
            **row,
            "problem": f"{error.field} {error.rule}" + ("" if error.value is None else f", got {error.value}"),
        }
    row |= {"sequences": run.num_sequences, "etas": run.etas, "supports": ", ".join(run.supports)}
    return {**row, "problem": "; ".join(integrity_problems(run))}


def sound_runs(folder: str | os.PathLike[str], *, needs: Sequence[str] = ()) -> dict[str, Run]:
    """Load the runs of a batch folder that load, add up and record what is needed; warn about each that is left out.

    Parameters
    ----------
    folder
        A batch folder.
    needs
        What a run must support (see `Run.supports`).

    Raises
    ------
    RunError
        If no run is left.

    Examples
    --------
    >>> import tempfile
    >>> from analysis_helpers import synthetic_runs
    >>> with tempfile.TemporaryDirectory() as root:
    ...     write_run(f"{root}/E_32/run_01/results.json", synthetic_runs(1, 32)["run_01"])
    ...     list(sound_runs(f"{root}/E_32")), list(sound_batches(root))
    (['run_01'], ['E_32'])
    """
    runs = load_runs(folder, on_error="skip")
    reasons = {name: _reason_to_leave_out(run, needs) for name, run in runs.items()}
    for name, reason in reasons.items():
        if reason:
            warn_about_runs(f"skipped {name} of {Path(folder).name}: {reason}")
    kept = {name: run for name, run in runs.items() if not reasons[name]}
    if not kept:
        raise RunError(str(folder), "folder", "holds no run that can be used", "; ".join(reasons.values()))
    return kept


def sound_batches(data_root: str | os.PathLike[str]) -> dict[str, dict[str, Run]]:
    """Load every batch folder below a data root by `sound_runs`; warn about a batch that has no run left.

    Raises
    ------
    RunError
        If the folder is missing or holds no runs, or no batch has a run left.

    Examples
    --------
    >>> sound_batches("nowhere")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    analysis_helpers._checks.RunError: nowhere: folder does not exist; ...
    """
    batches: dict[str, dict[str, Run]] = {}
    for folder in sorted({path.parent.parent for path in result_files(data_root, depth=2)}):
        try:
            batches[folder.name] = sound_runs(folder)
        except RunError as error:
            warn_about_runs(f"skipped {folder.name}: {error}")
    if not batches:
        raise RunError(str(data_root), "folder", "holds no run that can be used")
    return batches


def _reason_to_leave_out(run: Run, needs: Sequence[str]) -> str:
    missing = [FIELDS_BEHIND[need] for need in needs if need not in run.supports]
    return "; ".join([*(f"{field} is not recorded" for field in missing), *integrity_problems(run)])
