"""Work that a stopped process does not lose: values are written as they are computed, and found again."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from zipfile import BadZipFile

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from .._checks import warn_about_runs
from ..runs import RESULTS_FILE, Run, load_runs, merge_runs, write_in_one_step, write_run

Arrays = tuple[NDArray[Any], ...]
_T = TypeVar("_T")

_UNFINISHED = "unfinished"  # folder inside that of the run


def resumed(path: Path | None, items: Iterable[_T], compute: Callable[[_T], Arrays]) -> Iterator[tuple[_T, Arrays]]:
    """Yield each item with the arrays that ``compute`` returns for it; those that are in the file are read from it.

    What is computed is appended, item by item. A record cut off by a kill or a full disk is computed again. Without a
    path nothing is kept.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "squares"
    ...     some = list(resumed(path, [1, 2], lambda k: (np.array(k * k),)))
    ...     again = list(resumed(path, [1, 2, 3], lambda k: (np.array(-k),)))
    >>> [int(value) for _, [value] in again]  # two were found
    [1, 4, -3]
    """
    if path is None:
        yield from ((item, compute(item)) for item in items)
        return
    with path.open("a+b", buffering=0) as file:
        file.seek(0)
        for item in items:
            start = file.tell()
            if (values := _read(file)) is None:
                values, made = compute(item), io.BytesIO()
                np.savez(made, *values)
                file.truncate(start)
                _append(file, made.tell().to_bytes(8) + made.getvalue(), path)
            yield item, values


def _read(file: BinaryIO) -> Arrays | None:
    """Return the arrays of the next record, or None if there is none or it is damaged."""
    try:
        content = file.read(int.from_bytes(file.read(8)))
        with np.load(io.BytesIO(content)) as stored:
            return tuple(stored.values())
    except (BadZipFile, EOFError, MemoryError, OverflowError, ValueError):
        return None


def _append(file: BinaryIO, content: bytes, path: Path) -> None:
    rest = memoryview(content)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as error:  # which does not know the name
        raise OSError(error.errno, error.strerror, str(path)) from None


def inputs_digest(*parts: Any) -> str:
    """Return a digest of models, arrays and what JSON can hold: a name for the computation that they enter."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, torch.nn.Module):
            tensors = {name: x for name, x in part.state_dict().items() if isinstance(x, torch.Tensor)}
            for name, values in sorted(tensors.items()):
                found.update(name.encode())
                found.update(values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        else:
            found.update(part.tobytes() if isinstance(part, np.ndarray) else json.dumps(part).encode())
    return found.hexdigest()[:16]


@dataclass(frozen=True)
class Claim:
    """A run that this process works at, and no other process with the same rank.

    Attributes
    ----------
    run, work
        Folder of the run, and that of its unfinished work inside it.
    """

    run: Path
    work: Path

    def finish(self, run: Run, rank: int, world_size: int) -> Path | None:
        """Write the run of this rank, the whole if it is the last of them, and return its path if so."""
        write_run(self.work / f"rank_{rank:03d}" / RESULTS_FILE, run)
        with _alone(self.run.parent):
            parts = sorted(self.work.glob(f"rank_*/{RESULTS_FILE}"))
            if len(parts) < world_size:
                return None
            write_run(self.run / RESULTS_FILE, merge_runs(load_runs(parts)) if world_size > 1 else run)
            shutil.rmtree(self.work)
            return self.run / RESULTS_FILE


@contextmanager
def claimed(batch: Path, command: Mapping[str, str], rank: int = 0) -> Iterator[Claim]:
    """Yield a run of this command, for this rank: one that was stopped, or a new one; stopped ones of others are named.

    Raises
    ------
    OSError
        If the folder cannot be written.

    Warns
    -----
    RunWarning
        If runs of other commands were stopped.
    """
    text, locked = json.dumps(dict(command), indent=1), f"rank_{rank:03d}.lock"
    batch.mkdir(parents=True, exist_ok=True)
    with _alone(batch):
        run, lock = _taken_up(batch, text, locked) or _new(batch, text, locked)
    try:
        yield Claim(run, run / _UNFINISHED)
    except BaseException:
        if {path.name for path in (run / _UNFINISHED).iterdir()} <= {"command.json", locked}:  # nothing to go on from
            shutil.rmtree(run)
        raise
    finally:
        lock.release()


def _alone(batch: Path) -> FileLock:
    return FileLock(batch / ".lock")


def _taken_up(batch: Path, text: str, locked: str) -> tuple[Path, FileLock] | None:
    for command in sorted(batch.glob(f"*/{_UNFINISHED}/command.json")):
        run, found, lock = command.parent.parent, command.read_text(encoding="utf-8"), FileLock(command.parent / locked)
        try:
            lock.acquire(timeout=0)
        except Timeout:  # another process is at it
            continue
        if found == text:
            return run, lock
        lock.release()
        options = ", ".join(f"{name} {value}" for name, value in json.loads(found).items())
        warn_about_runs(f"{run} was stopped; its command goes on from there ({options}), or delete the folder")
    return None


def _new(batch: Path, text: str, locked: str) -> tuple[Path, FileLock]:
    run = next(place for k in count(1) if not (place := batch / f"run_{k:02d}").exists())
    (run / _UNFINISHED).mkdir(parents=True)
    lock = FileLock(run / _UNFINISHED / locked)
    lock.acquire(timeout=0)
    write_in_one_step(run / _UNFINISHED / "command.json", text)
    return run, lock
