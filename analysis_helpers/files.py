"""Reading and writing a file whole or not at all, whatever happens meanwhile."""

from __future__ import annotations

import errno
import mmap
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

LARGE = 32 * 2**20
"""Bytes from which on a file is mapped instead of read into memory."""
_START, _PIECE = 64, 2**20


def read_whole(path: str | os.PathLike[str], check_start: Callable[[bytes], None]) -> bytes | mmap.mmap:
    """Return the content of a file as it was at one moment; that of a large one is mapped and takes no memory.

    What is mapped is a copy of our own: a file that somebody cuts short while it is mapped kills its reader. Before it
    is copied, ``check_start`` sees its first bytes and may raise: what is no results file may be of any size.

    Raises
    ------
    OSError
        If the file cannot be read, is no regular file, or changes while it is read, twice in a row.
    """
    for _ in range(2):
        with open(path, "rb", opener=_open_without_waiting) as file:
            before = os.fstat(file.fileno())
            if not stat.S_ISREG(before.st_mode):  # a pipe may never end
                raise OSError(errno.EINVAL, "Not a regular file")
            if before.st_size < LARGE:
                content: bytes | mmap.mmap = file.read(before.st_size + 1)
            else:
                check_start(file.read(_START))
                content = _mapped_copy(file, before.st_size)
            after = os.fstat(file.fileno())
        if (len(content), before.st_mtime_ns) == (after.st_size, after.st_mtime_ns):
            return content
    raise OSError(errno.EBUSY, "It changes while it is read")


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


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # opening a pipe would wait for its writer


def _mapped_copy(file: BinaryIO, size: int) -> bytes | mmap.mmap:
    """Return the first ``size`` bytes, mapped from a temporary file without a name, or read where that has no room."""
    file.seek(0)
    try:
        with tempfile.TemporaryFile() as copy:
            while size > 0 and (piece := file.read(min(size, _PIECE))):
                size -= copy.write(piece)
            copy.flush()
            return mmap.mmap(copy.fileno(), 0, access=mmap.ACCESS_READ) if copy.tell() else b""
    except OSError:
        file.seek(0)
        return file.read()
