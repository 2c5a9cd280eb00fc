"""Take a run of 262,144 sequences from file to figure; print time and memory of each step, and how they grow.

Each size has a process of its own. Time is processor time, of the fastest round. Memory is the largest *anonymous*
memory during a step beyond that of the imported package, as seen from outside (Linux only): pages of files do not
count, the system may drop them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from threading import Event, Thread

import matplotlib.pyplot as plt

from analysis_helpers import (
    decompose_err_rel,
    err_rel_standard_error,
    load_runs,
    simulate_err_rel_across_runs,
    write_run,
)
from analysis_helpers.inference.health import contribution_table
from analysis_helpers.plots.runs import plot_contribution_tails
from tests.benchmarks.__main__ import exponent
from tests.building import ETAS, random_run, write_like_a_real_file

Round = tuple[str, float, float, float]

SIZES = (2_048, 16_384, 262_144)
SUBSETS = 2_000
SHARE = 64  # a subset holds one sequence in so many: 4,096 of 262,144
MOST_MEMORY, MOST_GROWTH = 0.6, 1.1
ROUNDS = 7


@dataclass(frozen=True)
class Step:
    """What one step took: processor seconds, and bytes beyond the imported package (None: not known)."""

    name: str
    seconds: float
    memory: float | None


def steps(path: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield each step's name and what it does, from the file to the figure."""
    yield "load", lambda: load_runs([path])
    runs = load_runs([path])
    [run] = runs.values()
    size, eta = run.num_sequences // SHARE, ETAS[0]
    yield "write", lambda: write_run(path.with_name("again.json"), run)

    def figure() -> None:
        plot_contribution_tails(contribution_table(runs, eta)).savefig(BytesIO())
        plt.close("all")

    yield "closed form", lambda: err_rel_standard_error(run, eta, size)
    yield (
        "subsets",
        lambda: simulate_err_rel_across_runs(
            runs, [eta], size, num_samples=SUBSETS, estimator="ratio", sampler="disjoint"
        ),
    )
    yield "decomposition", lambda: decompose_err_rel(runs, eta)
    yield "figure", figure


def take_steps(path: Path) -> None:
    """Take the steps in this process; print what each round took (name, start, end, processor seconds), a line each."""
    plot_contribution_tails(contribution_table({"run_01": random_run()}, ETAS[0])).savefig(BytesIO())  # imports
    print(json.dumps(["ready", time.monotonic(), time.monotonic(), 0.0]), flush=True)
    for name, action in steps(path):
        for _ in range(ROUNDS):
            start, used = time.monotonic(), time.process_time()
            action()
            print(json.dumps([name, start, time.monotonic(), time.process_time() - used]), flush=True)


def measured(path: Path) -> list[Step]:
    """Return what the steps take in a fresh process."""
    command = [sys.executable, "-m", "tests.benchmarks.large", str(path)]
    # A pool of threads spins while it waits, which counts as processor time.
    one = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=one) as process, watched(process.pid) as seen:
        assert process.stdout is not None
        rounds: list[Round] = [json.loads(line) for line in process.stdout]
    if process.returncode:
        raise SystemExit(f"the steps stopped with status {process.returncode}")
    return [_step(name, rounds, seen) for name in dict.fromkeys(name for name, *_ in rounds) if name != "ready"]


@contextmanager
def watched(process: int) -> Iterator[list[tuple[float, int]]]:
    """Collect the anonymous memory of a process and when it was so, until it ends."""
    seen: list[tuple[float, int]] = []
    ended = Event()
    thread = Thread(target=_watch, args=(process, seen, ended))
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def anonymous_memory(process: int) -> int | None:
    """Return the anonymous memory of a process in bytes, or None where that is not known."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:")), None)


def _watch(process: int, seen: list[tuple[float, int]], ended: Event) -> None:
    while not ended.wait(0.002):
        memory = anonymous_memory(process)
        if memory is not None:
            seen.append((time.monotonic(), memory))


def _step(name: str, rounds: list[Round], seen: list[tuple[float, int]]) -> Step:
    mine = [r for r in rounds if r[0] == name]
    ready = next(start for what, start, *_ in rounds if what == "ready")
    before = [memory for when, memory in seen if when <= ready]
    during = [memory for when, memory in seen if mine[0][1] <= when <= mine[-1][2]]
    memory = float(max(during) - before[-1]) if before and during else None
    return Step(name, min(used for *_, used in mine), memory)


def main() -> None:
    """Write the files, take the steps at each size, and print two tables."""
    found: dict[int, list[Step]] = {}
    file_bytes: dict[int, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES:
            path = Path(folder) / f"E_{size}" / "run_01" / "results.json"
            start = time.monotonic()
            file_bytes[size] = write_like_a_real_file(path, random_run(size, curvature=True))
            print(f"N = {size:,}: {file_bytes[size] / 1e6:.1f} MB, written in {time.monotonic() - start:.1f} s")
            found[size] = measured(path)
            path.unlink()
    largest = SIZES[-1]
    print(f"\n{'step':16}" + "".join(f"{f'N = {size:,}':>22}" for size in SIZES) + f"{'exponent':>10}  target   met")
    for k, step in enumerate(found[largest]):
        _print_step(step.name, [found[size][k] for size in SIZES])
    sums = [Step("all", sum(s.seconds for s in found[size]), None) for size in SIZES]
    _print_step("all", sums)
    load = found[largest][0].memory
    if load is not None:
        ratio = load / file_bytes[largest]
        met = "yes" if ratio <= MOST_MEMORY else "NO"
        print(f"\nload, anonymous memory by bytes of the file: {ratio:.2f}  <= {MOST_MEMORY}  {met}")
    print(f"subsets: {SUBSETS:,} disjoint ones of N / {SHARE}, {largest // SHARE:,} of {largest:,}")


def _print_step(name: str, taken: list[Step]) -> None:
    growth = exponent(list(SIZES), [step.seconds for step in taken])
    cells = [f"{s.seconds:8.3f} s {'' if s.memory is None else f'{s.memory / 1e6:.0f} MB':>8}" for s in taken]
    met = "yes" if growth <= MOST_GROWTH else "NO"
    print(f"{name:16}" + "".join(f"{cell:>22}" for cell in cells) + f"{growth:>10.2f}  <= {MOST_GROWTH}   {met}")


if __name__ == "__main__":
    take_steps(Path(sys.argv[1])) if len(sys.argv) > 1 else main()
