from __future__ import annotations

import errno
import mmap
import os
import tempfile
from pathlib import Path

import pytest

from analysis_helpers import files
from analysis_helpers.files import read_whole

FIRST, LATER = b"first" * 1000, b"later, and longer" * 1000


def no_check(start: bytes) -> None:
    """Accept any file."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "results.json").write_bytes(FIRST)
    return tmp_path / "results.json"


@pytest.fixture(params=["small", "large"])
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let the files of these tests count as small, or as large."""
    if request.param == "large":
        monkeypatch.setattr(files, "LARGE", 1)
    return str(request.param)


def write_while_reading(monkeypatch: pytest.MonkeyPatch, path: Path, contents: list[bytes]) -> None:
    """Let somebody write the next content whenever a reader has looked at the size of the file and not read it yet."""
    look, looks = os.fstat, []

    def fstat(file: int) -> os.stat_result:
        found = look(file)
        looks.append(file)
        if len(looks) % 2 and contents:
            path.write_bytes(contents.pop(0))
        return found

    monkeypatch.setattr(os, "fstat", fstat)


def test_a_file_is_read_whole(path: Path, size: str) -> None:
    assert bytes(read_whole(path, no_check)) == FIRST
    assert isinstance(read_whole(path, no_check), mmap.mmap if size == "large" else bytes)


@pytest.mark.parametrize("content", [LATER, FIRST[:10], b"", FIRST[::-1]])
def test_a_file_that_changes_once_while_it_is_read_is_read_again(
    path: Path, size: str, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.utime(path, ns=(0, 0))
    write_while_reading(monkeypatch, path, [content])
    assert bytes(read_whole(path, no_check)) == content


def test_a_file_that_changes_again_and_again_is_an_error(
    path: Path, size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_while_reading(monkeypatch, path, [LATER, FIRST])
    with pytest.raises(OSError, match="It changes while it is read"):
        read_whole(path, no_check)


def test_what_was_read_stays_whatever_happens_to_the_file(path: Path, size: str) -> None:
    content = read_whole(path, no_check)
    path.write_bytes(b"")  # a plain map would now kill its reader
    assert bytes(content) == FIRST


def test_a_large_file_is_read_into_memory_where_a_copy_has_no_room(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "LARGE", 1)
    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    assert read_whole(path, no_check) == FIRST


def test_a_large_file_with_a_wrong_start_is_not_copied(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.touch()
    os.truncate(path, 2**36)  # 64 GiB of nothing

    def refuse(start: bytes) -> None:
        raise ValueError(f"{len(start)} zeros" if not any(start) else "something")

    with pytest.raises(ValueError, match="64 zeros"):
        read_whole(path, refuse)


def test_a_mapped_file_leaves_nothing_behind(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(files, "LARGE", 1)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    content = read_whole(path, no_check)
    assert bytes(content) == FIRST
    assert [place.name for place in tmp_path.iterdir()] == ["results.json"]
