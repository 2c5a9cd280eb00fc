"""Measure the suite against plain loops and peers; print one table and write it as JSON.

Each pair is measured in interleaved rounds in one process; a ratio is that of the medians. Ratios on a busy or noisy
machine vary by some ten per cent: targets have room for that, and nothing is asserted here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from analysis_helpers import Run, err_rel_standard_error, load_runs, simulate_err_rel, simulate_err_rel_across_runs
from analysis_helpers._checks import FloatArray
from analysis_helpers.estimators import columns
from analysis_helpers.subsampling import SAMPLERS, Sampler, subset_sums
from tests.benchmarks import baselines

REPOSITORY = Path(__file__).parent.parent.parent
ETAS = (1.6e-6, 3.2e-6)
SIZE = 256
Action = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One line of the table; ``target`` is the least ratio wanted, or with ``at_most`` the largest."""

    what: str
    baseline: str
    ratio: float
    target: float
    at_most: bool = False

    @property
    def met(self) -> bool:
        """Whether the ratio is on the right side of the target."""
        return self.ratio <= self.target if self.at_most else self.ratio >= self.target


def ratio_of(baseline: Action, ours: Action, rounds: int = 7) -> float:
    """Return how many times as fast ours is: the ratio of medians over interleaved rounds, after one to warm up."""
    baseline()
    ours()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for action, taken in zip((baseline, ours), times, strict=True):
            start = time.perf_counter()
            action()
            taken.append(time.perf_counter() - start)
    return median(times[0]) / median(times[1])


def loading(root: Path) -> list[Row]:
    paths = sorted(root.glob("E_*/*/results.json"))
    ratio = ratio_of(lambda: baselines.load_with_json(paths), lambda: load_runs(paths))
    return [Row(f"load {len(paths)} runs", "json.load + NumPy", ratio, 7)]


def against_the_loop(runs: Mapping[str, Run], samples: int = 1000) -> list[Row]:
    name, run = next(iter(runs.items()))
    loop_one = partial(baselines.loop_over_choices, {name: run}, ETAS[:1], SIZE, samples)
    loop_all = partial(baselines.loop_over_choices, runs, ETAS, SIZE, samples)
    one = partial(simulate_err_rel, run, ETAS[0], SIZE, num_samples=samples)
    everything = partial(simulate_err_rel_across_runs, runs, ETAS, SIZE, num_samples=samples)
    loop = "loop of one choice a subset"
    return [
        Row("sequential, one run and eta", loop, ratio_of(loop_one, one), 1),
        Row("sequential, ratio, one run and eta", loop, ratio_of(loop_one, partial(one, estimator="ratio")), 1),
        Row(f"sequential, {len(runs)} runs x 2 etas", loop, ratio_of(loop_all, everything), 6),
        Row(
            f"disjoint, {len(runs)} runs x 2 etas",
            loop,
            ratio_of(loop_all, partial(everything, sampler="disjoint")),
            12,
        ),
        Row(
            "disjoint, ratio, one run", loop, ratio_of(loop_one, partial(one, estimator="ratio", sampler="disjoint")), 4
        ),
        Row(
            "disjoint, n = 0.75 N, one run",
            loop,
            ratio_of(
                partial(baselines.loop_over_choices, {name: run}, ETAS[:1], 1536, samples),
                partial(simulate_err_rel, run, ETAS[0], 1536, num_samples=samples, sampler="disjoint"),
            ),
            5,
        ),
    ]


def against_peers(run: Run, samples: int = 1000) -> list[Row]:
    batch = columns(run, ETAS[0], "ratio")
    values = np.ascontiguousarray(batch.values.T)
    entropy, total = batch.full.score_entropy, run.num_sequences
    err_rel = baselines.ratio_statistic(values, ETAS[0], entropy, -1e-3)
    of_small_run = baselines.ratio_statistic(
        values[:, :SIZE], ETAS[0], entropy, -1e-3
    )  # what a bootstrap would resample

    def of_sums(sums: FloatArray) -> float:
        true, linear = batch.estimate(sums)
        return float(linear - true) / -1e-3

    ours = partial(
        simulate_err_rel,
        run,
        ETAS[0],
        SIZE,
        num_samples=samples,
        estimator="ratio",
        sampler="disjoint",
        reference=-1e-3,
    )
    peers: list[tuple[str, Action, float]] = [
        ("scipy.stats.bootstrap", lambda: baselines.scipy_bootstrap(of_small_run, SIZE, samples), 1.1),
        ("arch.bootstrap.IIDBootstrap", lambda: baselines.arch_bootstrap(of_small_run, SIZE, samples), 3),
        ("sklearn ShuffleSplit", lambda: baselines.shuffle_split(err_rel, total, SIZE, samples), 7),
        ("pandas.DataFrame.sample", lambda: baselines.frame_sample(values, of_sums, SIZE, samples), 40),
    ]
    return [
        Row("disjoint, ratio, one run", name, ratio_of(peer, ours, rounds=5), target) for name, peer, target in peers
    ]


def large_batches() -> list[Row]:
    rows = []
    for total, size, samples, target in ((65_536, 1_024, 400, 2.0), (1_000_000, 10_000, 100, 1.0)):
        values = np.random.default_rng(0).normal(size=(2, total)).T

        def loop(values: FloatArray = values, size: int = size, samples: int = samples) -> list[float]:
            rng, (first, second) = np.random.default_rng(0), np.ascontiguousarray(values.T)
            found = []
            for _ in range(samples):
                chosen = rng.choice(len(first), size=size, replace=False)
                found.append(float(first[chosen].sum() - second[chosen].sum()))
            return found

        def ours(values: FloatArray = values, size: int = size, samples: int = samples) -> FloatArray:
            return subset_sums(values, size, samples, np.random.default_rng(0), sampler="disjoint")

        rows.append(Row(f"disjoint, N = {total:,}, n = {size:,}", "loop", ratio_of(loop, ours, rounds=5), target))
    return rows


def closed_form(run: Run) -> list[Row]:
    batch = columns(run, ETAS[0], "ratio")
    values = np.ascontiguousarray(batch.values.T)
    err_rel = baselines.ratio_statistic(values, ETAS[0], batch.full.score_entropy, -1e-3)
    draws = partial(baselines.loop_over_ratios, err_rel, run.num_sequences, SIZE, 2000)
    closed = partial(err_rel_standard_error, run, ETAS[0], SIZE, reference=-1e-3)
    calls = 20  # a call is so short that one alone would measure the caches
    ratio = calls * ratio_of(draws, lambda: [closed() for _ in range(calls)])
    return [Row("closed form", "loop of 2,000 draws", ratio, 500)]


def importing() -> list[Row]:
    def start(code: str) -> Action:
        return lambda: subprocess.run([sys.executable, "-c", code], check=True)

    ratio = 1 / ratio_of(start("import numpy, pandas"), start("import analysis_helpers"), rounds=11)
    return [Row("import analysis_helpers", "import numpy, pandas", ratio, 1.3, at_most=True)]


def scratch_memory(run: Run) -> list[Row]:
    values = columns(run, ETAS[0], "ratio").values
    rows = []
    for sampler in SAMPLERS:
        tracemalloc.start()
        sums = subset_sums(values, SIZE, 20_000, np.random.default_rng(0), sampler=sampler)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        rows.append(Row(f"scratch of 20,000 {sampler} subsets", "MiB", (peak - sums.nbytes) / 2**20, 8, at_most=True))
    return rows


def sweeping(reruns: int = 24) -> list[Row]:
    """Rerun a notebook with other parameters: one sweep against papermill commands one after another."""
    source = REPOSITORY / "notebooks" / "02_batch_size_comparison.ipynb"
    sizes = [32 + 8 * k for k in range(reruns // 2)]
    with tempfile.TemporaryDirectory() as folder:

        def commands() -> None:
            papermill = str(Path(sys.executable).parent / "papermill")
            for eta in ETAS:
                for size in sizes:
                    command = [papermill, str(source), f"{folder}/{eta}-{size}.ipynb", "--cwd", str(source.parent)]
                    options = ["-p", "eta", str(eta), "-p", "subset_size", str(size)]
                    subprocess.run([*command, *options], check=True, capture_output=True)

        def one_sweep() -> None:
            options = [part for eta in ETAS for part in ("--eta", str(eta))]
            options += [part for size in sizes for part in ("--subset-size", str(size))]
            command = [sys.executable, "-m", "analysis_helpers", "sweep", "--notebook", source.stem]
            subprocess.run([*command, *options, "--out", f"{folder}/sweep"], check=True, capture_output=True)

        taken = []
        for action in (one_sweep, commands):
            start = time.perf_counter()
            action()
            taken.append(time.perf_counter() - start)
    return [Row(f"sweep of {reruns} reruns", "papermill commands", taken[1] / taken[0], 3)]


def growth() -> list[str]:
    """Return how the cost of sampling grows: fitted exponents, and cost against the number of columns."""

    def seconds(samples: int = 2000, size: int = SIZE, width: int = 6, sampler: Sampler = "disjoint") -> float:
        values = np.random.default_rng(0).normal(size=(width, 2048)).T
        taken = []
        for _ in range(5):
            start = time.perf_counter()
            subset_sums(values, size, samples, np.random.default_rng(0), sampler=sampler)
            taken.append(time.perf_counter() - start)
        return median(taken)

    lines = []
    for sampler in SAMPLERS:
        samples, sizes, widths = [4000, 16_000, 64_000], [64, 128, 256, 512], [2, 8, 32]
        by_samples = [seconds(samples=s, sampler=sampler) for s in samples]
        by_size = [seconds(size=s, samples=4000, sampler=sampler) for s in sizes]
        by_width = [seconds(width=w, sampler=sampler) for w in widths]
        slope, start = np.polyfit(widths, by_width, 1)
        lines.append(
            f"{sampler}: exponent {exponent(samples, by_samples):.2f} in the number of subsets, "
            f"{exponent(sizes, by_size):.2f} in n; affine in columns: one costs {slope / start:.3f} of what is fixed"
        )
    return lines


def exponent(sizes: list[int], seconds: list[float]) -> float:
    """Return the slope of log time against log size."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def main() -> None:
    root = Path(os.environ.get("RESEARCH_RUNS") or REPOSITORY / "data_samples")
    runs = load_runs(root / "E_2048")
    run = next(iter(runs.values()))
    rows = [
        *loading(root),
        *against_the_loop(runs),
        *against_peers(run),
        *large_batches(),
        *closed_form(run),
        *importing(),
        *scratch_memory(run),
        *sweeping(),
    ]
    print(f"{'what':42} {'baseline':30} {'ratio':>8} {'target':>8}  met")
    for row in rows:
        bound = f"{'<=' if row.at_most else '>='} {row.target:g}"
        print(f"{row.what:42} {row.baseline:30} {row.ratio:8.2f} {bound:>8}  {'yes' if row.met else 'NO'}")
    lines = growth()
    print(*lines, sep="\n")
    out = REPOSITORY / "reports" / "bench.json"
    out.parent.mkdir(exist_ok=True)
    stored = {"rows": [{**asdict(row), "met": row.met} for row in rows], "growth": lines}
    out.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    print(out.relative_to(REPOSITORY))


if __name__ == "__main__":
    main()
