"""A sweep from its options to its page: plan, run with progress, tables, page."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TextIO

from .engines import run_here, run_on_cluster
from .execute import find_notebooks
from .sweep import INDEX, RESULTS, RUNLOG, Outcome, plan_sweep, run_sweep
from .sweep_page import write_sweep_page
from .sweep_tables import results_table, runlog_table, write_table


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
    reruns, skipped = plan_sweep(_chosen(find_notebooks(folder), names), options)
    run = partial(run_on_cluster, address=scheduler) if scheduler else partial(run_here, workers=workers or _cores())
    progress = _Progress(len(reruns), stream or sys.stderr)
    for name, reason in skipped.items():
        progress.tell(f"{name} left out: {reason}")
    outcomes: list[Outcome] = []
    index = out / INDEX
    with _termination_as_interrupt():
        try:
            for outcome in run_sweep(reruns, out, run):
                outcomes.append(outcome)
                progress.add(outcome)
        finally:  # what finished is told of, whatever happened then
            progress.close()
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


class _Progress:
    """A bar on a terminal, and a plain line for each notebook elsewhere."""

    def __init__(self, total: int, stream: TextIO) -> None:
        self._total, self._stream, self._counts = total, stream, Counter[str]()
        self._bar = None
        if stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, unit="notebook", file=stream)

    def tell(self, line: str) -> None:
        if self._bar is not None:
            self._bar.write(line, file=self._stream)
        else:
            print(line, file=self._stream, flush=True)

    def add(self, outcome: Outcome) -> None:
        self._counts[outcome.status] += 1
        done = sum(self._counts.values())
        how = outcome.error or f"{outcome.status} ({outcome.seconds:.1f} s)"
        if self._bar is None:
            self.tell(f"[{done}/{self._total}] {outcome.rerun.name}: {how}")
            return
        if outcome.error:
            self.tell(f"{outcome.rerun.name}: {how}")
        self._bar.set_postfix(
            done=self._counts["done"] + self._counts["kept"],
            failed=self._counts["failed"],
            left=self._total - done,
            refresh=False,
        )
        self._bar.update()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
