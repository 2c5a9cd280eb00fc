"""Take a run of 262,144 sequences from file to figure; print time and memory of each step, and how time grows.

Each size has a process of its own. Time is processor time, of the fastest round. Memory is the peak of a step beyond
what the process held before (Linux only).
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import analysis_helpers as ah
from analysis_helpers import inference
from analysis_helpers.plots import plot_influence_tails
from analysis_helpers.runs.folders import _parsed
from tests.building import ETAS, random_run, write_like_a_real_file

SIZES = (2_048, 16_384, 262_144)
SUBSETS = 2_000
SHARE = 64  # a subset holds one sequence in so many: 4,096 of 262,144
MOST_MEMORY, MOST_GROWTH = 2.5, 1.1
ROUNDS = 7

Taken = dict[str, tuple[float, float]]  # step -> processor seconds, bytes


def draw_tails(runs: Mapping[str, ah.Run]) -> None:
    plot_influence_tails(inference.influence_table(runs, ETAS[0])).savefig(BytesIO())
    plt.close("all")


def steps(path: Path) -> dict[str, Callable[[], object]]:
    """Return each step's name and what it does, from the file to the figure."""
    [run] = ah.load_runs([path]).values()
    size, eta = run.n // SHARE, ETAS[0]
    chosen = {"num_samples": SUBSETS, "estimator": "ratio", "sampler": "disjoint"}

    def loaded() -> ah.Runs:
        _parsed.cache_clear()  # each file is parsed once a process
        return ah.load_runs([path])

    def fresh() -> dict[str, ah.Run]:
        return {"run_01": replace(run)}  # nothing is known of it yet

    return {
        "load": loaded,
        "write": lambda: ah.write_run(path.with_name("again.json"), run),
        "closed form": lambda: ah.err_rel_standard_error(replace(run), eta, size),
        "subsets": lambda: ah.simulate_err_rel_across_runs(fresh(), [eta], size, **chosen),  # type: ignore[arg-type]
        "decomposition": lambda: ah.decompose_err_rel(fresh(), eta),
        "figure": lambda: draw_tails(fresh()),
    }


def measured(path: Path) -> Taken:
    """Return what the steps take in this process."""
    draw_tails({"run_01": random_run()})  # imports
    found = {}
    for name, action in steps(path).items():
        seconds, memory = [], []
        for _ in range(ROUNDS):
            before, used = resident("VmRSS"), time.process_time()
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # sets the peak back
            action()
            seconds.append(time.process_time() - used)
            memory.append(resident("VmHWM") - before)
        found[name] = min(seconds), max(memory)
    return found


def resident(name: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith(name))


def main() -> None:
    """Write the files, take the steps at each size, and print a table."""
    # A pool of threads spins while it waits, which counts as processor time.
    one = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    found: list[Taken] = []
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES:
            path = Path(folder) / f"E_{size}" / "run_01" / "results.json"
            file_bytes = write_like_a_real_file(path, random_run(size))
            print(f"N = {size:,}: a file of {file_bytes / 1e6:.1f} MB")
            command = [sys.executable, "-m", "tests.benchmarks.large", str(path)]
            found.append(json.loads(subprocess.run(command, check=True, capture_output=True, env=one).stdout))
            path.unlink()
    print(f"\n{'step':16}" + "".join(f"{f'N = {size:,}':>22}" for size in SIZES) + f"{'exponent':>10}  target   met")
    for name in found[0]:
        growth = float(np.polyfit(np.log(SIZES), np.log([taken[name][0] for taken in found]), 1)[0])
        cells = [f"{taken[name][0]:8.3f} s {f'{taken[name][1] / 1e6:.0f} MB':>8}" for taken in found]
        met = "yes" if growth <= MOST_GROWTH else "NO"
        print(f"{name:16}" + "".join(f"{cell:>22}" for cell in cells) + f"{growth:>10.2f}  <= {MOST_GROWTH}   {met}")
    ratio = found[-1]["load"][1] / file_bytes
    met = "yes" if ratio <= MOST_MEMORY else "NO"
    print(f"\nload, memory by bytes of the file: {ratio:.2f}  <= {MOST_MEMORY}  {met}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measured(Path(sys.argv[1]))))
    else:
        main()
