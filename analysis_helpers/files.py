"""Writing a file so that a reader finds all of it or none, whatever happens meanwhile."""

from __future__ import annotations

from pathlib import Path


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
