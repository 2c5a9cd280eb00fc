"""The package against the second implementation in `tests.plain`, on the sample data and on real runs.

Both read the same files and must agree to nine digits: nothing here is a matter of chance.
"""

import ast
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import analysis_helpers as ah
from analysis_helpers.estimators import EstimatorName
from tests.building import estimate
from tests.conftest import REPOSITORY
from tests.plain import errors, estimates
from tests.plain.reading import Batch, mean_true_total, read_batches

ETAS = [1.6e-6, 3.2e-6]
ESTIMATORS: tuple[EstimatorName, ...] = ("partial_sum", "ratio", "matched")


def same(expected: Any) -> Any:
    """Return what equals the expected number, or numbers, to nine digits."""
    return pytest.approx(expected, rel=1e-9, abs=1e-10)


@dataclass(frozen=True)
class Side:
    """The same runs as the package and as the second implementation read them; sizes, seeds and draws to compare."""

    large: ah.Runs
    small: ah.Runs
    plain_large: dict[str, Batch]
    plain_small: dict[str, Batch]
    sizes: tuple[int, ...]
    seeds: tuple[int, ...]
    draws: int

    def pairs(self) -> Iterable[tuple[ah.Run, Batch]]:
        """Return every run with its twin."""
        for package, plain in ((self.large, self.plain_large), (self.small, self.plain_small)):
            assert list(package) == list(plain)
            yield from zip(package.values(), plain.values(), strict=True)


@cache
def side(root: Path, wide: bool) -> Side:
    folders = root / "E_2048", root / "E_256"
    grid = ((1, 16, 100, 256, 1024, 1500, 2048), (0, 1, 42, 2**31), 15) if wide else ((16, 256), (0,), 5)
    large, small = map(ah.load_runs, folders)
    plain_large, plain_small = map(read_batches, folders)
    return Side(large, small, plain_large, plain_small, *grid)


slow = pytest.mark.slow  # loops over up to 2,048 sequences for every subset


@pytest.fixture(params=["sample", pytest.param("sample, wide", marks=slow), pytest.param("real", marks=slow)])
def runs(request: pytest.FixtureRequest) -> Side:
    root = request.getfixturevalue("research_root") if request.param == "real" else REPOSITORY / "data_samples"
    return side(root, request.param != "sample")


def test_the_second_implementation_shares_no_code_with_the_package() -> None:
    known = {"__future__", "collections", "dataclasses", "functools", "json", "math", "pathlib", "typing", "numpy"}
    for path in (Path(__file__).parent / "plain").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not isinstance(node, ast.Import) or {alias.name for alias in node.names} <= known
            if isinstance(node, ast.ImportFrom):
                assert str(node.module).split(".")[0] in known or str(node.module).startswith("tests.plain")


def test_full_batches_and_their_contributions(runs: Side) -> None:
    for run, plain in runs.pairs():
        absolute = sum(map(abs, plain.linear))  # terms cancel, and real files hold a total of single precision
        assert run.delta_h_per_lr == pytest.approx(sum(plain.linear), abs=1e-7 * absolute)
        for eta, estimator in product(run.etas, ESTIMATORS):
            expected = estimates.changes(plain, eta, range(plain.size), estimator)
            assert estimate(run, eta, estimator) == pytest.approx(expected, rel=1e-9)
        for eta in ETAS:
            single = [estimates.changes(plain, eta, [i], "partial_sum") for i in range(plain.size)]
            assert np.transpose(ah.per_sequence_contributions(run, eta)) == pytest.approx(np.array(single), rel=1e-9)


def test_draws_of_every_estimator_size_and_seed(runs: Side) -> None:
    for eta, estimator, n, seed in product(ETAS, ESTIMATORS, runs.sizes, runs.seeds):
        name = f"run_0{1 + seed % 4}"
        chosen: Any = {"estimator": estimator, "reference": -1e-3}
        rng = np.random.default_rng(seed)
        expected = estimates.subset_errors(runs.plain_large[name], eta, n, runs.draws, rng, **chosen)
        found = ah.simulate_err_rel(runs.large[name], eta, n, num_samples=runs.draws, seed=seed, **chosen)
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_draws_over_runs_and_etas_from_one_stream_and_their_summary(runs: Side) -> None:
    for estimator, n, seed in product(ESTIMATORS[:2], runs.sizes[:4], runs.seeds):
        expected = estimates.distributed_errors(runs.plain_large, ETAS, n, 5, seed, estimator)
        references = None if estimator == "partial_sum" else ah.reference_true_totals(runs.large)
        found = ah.sample_err_rel_across_runs(
            runs.large, ETAS, subset_size=n, samples_per_eta=5, seed=seed, estimator=estimator, references=references
        )
        for eta, *row in ah.summarize_err_rel_distribution(found).itertuples(index=False):
            values = found.loc[found["eta"] == eta, "err_rel"].tolist()
            assert values == pytest.approx(expected[eta], rel=1e-9, abs=1e-9)
            assert row == same(estimates.summary(expected[eta]))


def test_comparisons_of_subsets_with_actual_runs(runs: Side) -> None:
    for eta, estimator, n in product(ETAS, ESTIMATORS, runs.sizes[:4]):
        found = ah.compare_err_rel_distributions(
            runs.large, runs.small, eta, sample_size=n, num_samples=5, seed=3, estimator=estimator
        )
        expected = estimates.compared_errors(runs.plain_large, eta, n, 5, 3, estimator)
        assert found.synthetic["err_rel"].tolist() == same(expected)
        reference = mean_true_total(runs.plain_large, eta)
        actual = [estimates.full_error(b, eta, reference, estimator) for b in runs.plain_small.values()]
        collected = ah.collect_err_rel_across_runs(runs.small, eta, reference, estimator=estimator)
        assert found.actual["err_rel"].tolist() == collected["err_rel"].tolist() == same(actual)


def test_standard_errors_of_fresh_batches_and_of_subsets(runs: Side) -> None:
    for (run, plain), eta, estimator in product(runs.pairs(), ETAS, ESTIMATORS):
        fresh_too = estimator != "partial_sum"
        spread = errors.spread(errors.left_out(plain, eta, -1e-3, estimator)) if fresh_too else math.nan
        for n in (size for size in runs.sizes if size <= plain.size):
            subset = ah.err_rel_standard_error(run, eta, n, reference=-1e-3, estimator=estimator, population="run")
            assert subset == pytest.approx(errors.subset_standard_error(plain, eta, n, -1e-3, estimator), rel=1e-9)
            if fresh_too:
                fresh = ah.err_rel_standard_error(run, eta, n, reference=-1e-3, estimator=estimator)
                assert fresh == pytest.approx(spread / math.sqrt(n), rel=1e-9)


@pytest.mark.parametrize("adjusted", [False, True])
def test_parts_of_the_error(runs: Side, adjusted: bool) -> None:
    for eta in ETAS:
        table = ah.decompose_err_rel(runs.large, eta, score_adjusted=adjusted)
        reference = mean_true_total(runs.plain_large, eta)
        parts = [errors.decomposed(b, eta, reference, adjusted=adjusted) for b in runs.plain_large.values()]
        for name in ("err_rel", "linear_minus_matched", "matched_minus_true"):
            values, errors_of = zip(*(part[name] for part in parts), strict=True)
            assert table[name].tolist() == pytest.approx(values, rel=1e-8, abs=1e-9)
            se = "se" if name == "err_rel" else f"{name}_se"
            assert table[se].tolist() == pytest.approx(errors_of, rel=1e-8)
        assert table["score_z"].tolist() == same([errors.score_z(batch) for batch in runs.plain_large.values()])
