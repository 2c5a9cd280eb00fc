from __future__ import annotations

import io
from pathlib import Path

import pytest

from analysis_helpers.sweep_run import run_and_report
from tests.sweeping import write_notebook

pytest.importorskip("papermill", reason="the extra 'notebooks' is not installed")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_notebook(tmp_path / "notebooks" / "tiny.ipynb").parent


def test_elsewhere_progress_is_a_plain_line_for_each_notebook(tmp_path: Path, folder: Path) -> None:
    told = io.StringIO()
    index, failed = run_and_report({"label": ["a", "fail"]}, tmp_path / "out", folder=folder, workers=1, stream=told)
    lines = told.getvalue().splitlines()
    assert lines[0].startswith("[1/2] tiny_label=a: done (")
    assert lines[1] == "[2/2] tiny_label=fail: ValueError: asked to fail"
    assert (index, failed) == (tmp_path / "out" / "index.html", 1)


def test_on_a_terminal_there_is_a_bar_with_what_is_done_failed_and_left(tmp_path: Path, folder: Path) -> None:
    told = Terminal()
    run_and_report({"label": ["a", "fail"]}, tmp_path / "out", folder=folder, workers=1, stream=told)
    assert "2/2 [" in told.getvalue()
    assert "done=1, failed=1" in told.getvalue()
    assert "tiny_label=fail: ValueError: asked to fail" in told.getvalue()


def test_what_is_left_out_is_told(tmp_path: Path, folder: Path) -> None:
    write_notebook(folder / "other.ipynb", parameters="unrelated: int = 1  # nothing", body="1")
    told = io.StringIO()
    run_and_report({"label": ["a"]}, tmp_path / "out", folder=folder, stream=told)
    assert told.getvalue().splitlines()[0] == "other left out: it has none of the parameters label"
