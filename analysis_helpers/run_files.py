"""Results files on disk: find them in a batch folder, read them into runs, write runs."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from .checks import RunError, checked_choice, warn_about_runs
from .files import read_whole, write_in_one_step
from .results_json import encode_run, parse_run
from .results_text import Content, check_opening
from .runs import Run

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
    """Read one results file.

    Raises
    ------
    RunError
        If the file cannot be read or breaks a rule.
    """
    return parse_run(read_content(path), str(path))


def read_content(path: str | os.PathLike[str]) -> Content:
    """Return the content of a results file, or raise a `RunError` that says why it cannot be read."""
    try:
        return read_whole(path, lambda start: check_opening(start, str(path)))
    except OSError as error:
        raise RunError(str(path), "file", f"cannot be read ({error.strerror})") from None
    except MemoryError:
        raise RunError(str(path), "file", "needs more memory than is free") from None


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
