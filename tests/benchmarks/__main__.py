"""Measure the suite against plain loops and peers; print one table and write it as JSON.

Each pair is measured in interleaved rounds in one process; a ratio is that of the medians. Ratios on a busy or noisy
machine vary by some ten per cent: targets have room for that, and nothing is asserted here.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any

import numpy as np

from analysis_helpers import (
    Run,
    Runs,
    compare_err_rel_distributions,
    err_rel_standard_error,
    inventory,
    load_runs,
    simulate_err_rel,
    simulate_err_rel_across_runs,
    synthetic_runs,
    verdict,
    write_run,
)
from analysis_helpers.estimators import columns
from analysis_helpers.execution.sweep import find_notebooks, missing_extra
from analysis_helpers.notebook import Explorer, read_parameters
from analysis_helpers.runs.folders import _parsed
from analysis_helpers.subsampling import subset_sums
from tests.benchmarks import baselines

REPOSITORY = Path(__file__).parent.parent.parent
ETAS = (1.6e-6, 3.2e-6)
SIZE, SAMPLES = 256, 1000
Action = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One line of the table; ``target`` is the least ratio wanted."""

    what: str
    baseline: str
    ratio: float
    target: float


def timed(action: Action) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def ratio_of(baseline: Action, ours: Action, rounds: int = 7) -> float:
    """Return how many times as fast ours is: the ratio of medians over interleaved rounds, after one to warm up."""
    baseline()
    ours()
    taken = [(timed(baseline), timed(ours)) for _ in range(rounds)]
    return median(one for one, _ in taken) / median(other for _, other in taken)


def loading(root: Path) -> list[Row]:
    paths = sorted(root.glob("E_*/*/results.json"))

    def load() -> None:
        _parsed.cache_clear()  # each file is parsed once a process, and here once a round
        load_runs(paths)

    ratio = ratio_of(lambda: baselines.load_with_json(paths), load)
    return [Row(f"load {len(paths)} runs", "json.load + NumPy", ratio, 5)]


def costs(root: Path, rounds: int = 5) -> list[float]:
    """Return the seconds that loading, listing and judging the runs of a data root take, the least of a few rounds."""
    _parsed.cache_clear()
    runs = load_runs(root / "E_64")

    def verdict_of_fresh() -> float:
        fresh = Runs({name: replace(run) for name, run in runs.items()})
        return timed(partial(verdict, fresh, ETAS[0], 64))

    def parsing(action: Action) -> float:
        _parsed.cache_clear()
        return timed(action)

    load, listed = partial(load_runs, root / "E_64"), partial(inventory, root)
    return [
        min(parsing(load) for _ in range(rounds)),
        min(parsing(listed) for _ in range(rounds)),
        min(verdict_of_fresh() for _ in range(rounds)),
    ]


def many_runs(few: int = 100, many: int = 1_000) -> list[Row]:
    """Load, list and judge ten times as many runs, in at most twelve times the time."""
    base = list(synthetic_runs(20, 64, ETAS).values())
    taken = []
    with tempfile.TemporaryDirectory() as folder:
        for count in (few, many):
            for k in range(count):  # each of another content
                run = replace(base[k % len(base)], logp=-np.arange(64.0) - k / 7)
                write_run(Path(folder, str(count), "E_64", f"run_{k:04d}", "results.json"), run)
            taken.append(costs(Path(folder, str(count))))
    times = 1.2 * many / few
    named = zip(("load", "list", "verdict of"), *taken, strict=True)
    return [Row(f"{what} {many:,} runs", f"{times:g} x {few} runs", times * one / all_, 1) for what, one, all_ in named]


def calls_of_a_verdict() -> list[Row]:
    """Count the calls of the package's functions in one verdict on sample data, with warm imports and fresh runs."""
    package, batches = str(REPOSITORY / "analysis_helpers"), ("E_2048", "E_256")
    loaded = [load_runs(REPOSITORY / "data_samples" / batch) for batch in batches]
    calls: list[str] = []

    def count(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(package):
            calls.append(frame.f_code.co_name)

    for _ in ("imports", "counted"):
        calls.clear()
        large, small = (Runs({name: replace(run) for name, run in runs.items()}) for runs in loaded)
        sys.setprofile(count)
        verdict(large, ETAS[0], SIZE, small_runs=small)
        sys.setprofile(None)
    return [Row("function calls of a verdict", "a third of 10,763", 10_763 / 3 / len(calls), 1)]


def against_the_loop(runs: Mapping[str, Run]) -> list[Row]:
    name, run = next(iter(runs.items()))
    loop = partial(baselines.loop_over_choices, size=SIZE, samples=SAMPLES)
    loop_one, loop_all = partial(loop, {name: run}, ETAS[:1]), partial(loop, runs, ETAS)
    one = partial(simulate_err_rel, run, ETAS[0], num_samples=SAMPLES)
    every = partial(simulate_err_rel_across_runs, runs, ETAS, SIZE, num_samples=SAMPLES)
    ratio, disjoint = {"estimator": "ratio"}, {"sampler": "disjoint"}
    rows: list[tuple[str, Action, Action, float]] = [
        ("sequential, one run and eta", loop_one, partial(one, SIZE), 1),
        ("sequential, ratio, one run and eta", loop_one, partial(one, SIZE, **ratio), 1),
        (f"sequential, {len(runs)} runs x 2 etas", loop_all, every, 6),
        (f"disjoint, {len(runs)} runs x 2 etas", loop_all, partial(every, **disjoint), 12),
        ("disjoint, ratio, one run", loop_one, partial(one, SIZE, **ratio, **disjoint), 4),
        ("disjoint, n = 0.75 N, one run", partial(loop_one, size=1536), partial(one, 1536, **disjoint), 5),
    ]
    return [Row(what, "loop of one choice a subset", ratio_of(base, ours), target) for what, base, ours, target in rows]


def against_peers(run: Run) -> list[Row]:
    batch = columns(run, ETAS[0], "ratio")
    values = np.ascontiguousarray(batch.values.T)
    statistic = partial(baselines.ratio_statistic, eta=ETAS[0], score_entropy=batch.full.score_entropy, reference=-1e-3)
    err_rel, of_small_run = statistic(values), statistic(values[:, :SIZE])  # what a bootstrap would resample

    def of_sums(sums: Any) -> float:
        true, linear = batch.estimate(sums)
        return float(linear - true) / -1e-3

    chosen: dict[str, Any] = {"estimator": "ratio", "sampler": "disjoint", "reference": -1e-3}
    ours = partial(simulate_err_rel, run, ETAS[0], SIZE, num_samples=SAMPLES, **chosen)
    peers: list[tuple[str, Action, float]] = [
        ("scipy.stats.bootstrap", lambda: baselines.scipy_bootstrap(of_small_run, SIZE, SAMPLES), 1.1),
        ("arch.bootstrap.IIDBootstrap", lambda: baselines.arch_bootstrap(of_small_run, SIZE, SAMPLES), 3),
        ("sklearn ShuffleSplit", lambda: baselines.shuffle_split(err_rel, run.n, SIZE, SAMPLES), 7),
        ("pandas.DataFrame.sample", lambda: baselines.frame_sample(values, of_sums, SIZE, SAMPLES), 40),
    ]
    rows = [Row("disjoint, ratio, one run", name, ratio_of(peer, ours, 5), target) for name, peer, target in peers]
    draws = partial(baselines.loop_over_ratios, err_rel, run.n, SIZE, 2000)

    def closed() -> float:
        fresh = replace(run)  # nothing is known of it yet
        return err_rel_standard_error(fresh, ETAS[0], SIZE, reference=-1e-3)

    calls = 20  # a call is so short that one alone would measure the caches
    ratio = calls * ratio_of(draws, lambda: [closed() for _ in range(calls)])
    return [*rows, Row("closed form", "loop of 2,000 draws", ratio, 500)]


def large_batches() -> list[Row]:
    rows = []
    for total, size, samples, target in ((65_536, 1_024, 400, 2.0), (1_000_000, 10_000, 100, 1.0)):
        values = np.random.default_rng(0).normal(size=(2, total)).T
        loop = partial(baselines.loop_over_differences, values, size, samples)
        ours = partial(subset_sums, values, size, samples, sampler="disjoint")
        ratio = ratio_of(loop, lambda ours=ours: ours(np.random.default_rng(0)), 5)  # type: ignore[misc]
        rows.append(Row(f"disjoint, N = {total:,}, n = {size:,}", "loop", ratio, target))
    return rows


def quietly(*command: object) -> None:
    subprocess.run([sys.executable, "-m", *map(str, command)], check=True, capture_output=True)


def notebooks(reruns: int = 24) -> list[Row]:
    """Run notebooks: one report or sweep against papermill commands one after another."""
    places = [path for path in find_notebooks() if not missing_extra(path)]
    source = next(path for path in places if path.stem.startswith("02"))
    with tempfile.TemporaryDirectory() as folder:

        def papermill(path: Path, *options: object) -> Path:
            quietly("papermill", path, f"{folder}/out.ipynb", "--cwd", path.parent, *options)
            return path

        def sweep(name: str, sizes: Sequence[int], *options: object) -> None:
            given = [part for size in sizes for part in ("--subset-size", size)]
            chosen = ["--notebook", source.stem, "--out", f"{folder}/{name}"]
            quietly("analysis_helpers", "sweep", *chosen, *given, *options)

        sizes = [32 + 8 * k for k in range(reruns)]
        few = sizes[:9]
        one = timed(lambda: papermill(source))
        alone = timed(partial(sweep, "first", few[:1], "--workers", 1))
        several = timed(partial(sweep, "several", few, "--workers", 1))
        report = partial(quietly, "analysis_helpers", "report", "--out", f"{folder}/report")
        ours, again = timed(report), timed(report)
        whole = timed(lambda: [papermill(path) for path in places])
        swept = timed(partial(sweep, "all", sizes))
        every = timed(lambda: [papermill(source, "-p", "subset_size", size) for size in sizes])
    return [
        Row(f"report of {len(places)} notebooks", "papermill commands", whole / ours, 4),
        Row("report on unchanged data", "first report", ours / again, 10),
        Row(f"sweep of {reruns} reruns", "papermill commands", every / swept, 6.5),
        Row("one more rerun in a sweep, one worker", "papermill command", one * (len(few) - 1) / (several - alone), 4),
    ]


def starting(root: Path) -> list[Row]:
    """Time whole processes: the command that prints a verdict, and the first verdict after the imports."""
    first = (
        "import numpy, pandas, time, analysis_helpers as ah; runs = ah.load_runs('E_2048')\n"
        "start = time.perf_counter(); ah.verdict(runs, 1.6e-6, 256); print(time.perf_counter() - start)"
    )

    def run(code: str) -> bytes:
        return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=root).stdout

    imports = partial(run, "import numpy, pandas")
    ratio = ratio_of(imports, partial(quietly, "analysis_helpers", "verdict", root))
    beside = median(timed(imports) for _ in range(7)) / median(float(run(first)) for _ in range(7))
    rows = [("verdict command", ratio, 1 / 2.5), ("first verdict, imports aside", beside, 2)]
    return [Row(what, "import numpy, pandas", found, target) for what, found, target in rows]


def explorer(root: Path) -> list[Row]:
    """Change a control of the explorer, against making the same draws and a plain histogram of them."""
    import matplotlib.pyplot as plt

    chosen = {
        "large_batch": "E_2048",
        "small_batch": "E_256",
        "eta": ETAS[0],
        "subset_size": SIZE,
        "estimator": "ratio",
    }
    chosen |= {"num_samples": 2000, "tolerance": 0.25, "probability": 0.9, "seed": 42}
    given = read_parameters({"data_root": str(root), **chosen})
    controls, large, small = Explorer(given), given.large_runs(), given.small_runs()

    def update() -> None:
        controls.controls["seed"].value += 1

    def plain() -> None:
        draws: Any = {"sample_size": SIZE, "num_samples": 2000, "estimator": "ratio"}
        found = compare_err_rel_distributions(large, small, ETAS[0], **draws)
        figure, ax = plt.subplots()
        ax.hist(found.synthetic["err_rel"], bins=60)
        figure.savefig(BytesIO(), format="png")
        plt.close(figure)

    return [Row("a change in the explorer", "the same draws, plain histogram", ratio_of(plain, update), 0.5)]


def main() -> None:
    root = Path(os.environ.get("RESEARCH_RUNS") or REPOSITORY / "data_samples")
    runs = load_runs(root / "E_2048")
    draws = [*against_the_loop(runs), *against_peers(next(iter(runs.values()))), *large_batches()]
    rows = [
        *loading(root),
        *many_runs(),
        *calls_of_a_verdict(),
        *starting(root.resolve()),
        *draws,
        *explorer(root),
        *notebooks(),
    ]
    print(f"{'what':42} {'baseline':30} {'ratio':>8} {'target':>8}  met")
    for row in rows:
        met = "yes" if row.ratio >= row.target else "NO"
        print(f"{row.what:42} {row.baseline:30} {row.ratio:8.2f} {f'>= {row.target:g}':>8}  {met}")
    out = REPOSITORY / "reports" / "bench.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(list(map(asdict, rows)), indent=1) + "\n", encoding="utf-8")
    print(out.relative_to(REPOSITORY))


if __name__ == "__main__":
    main()
