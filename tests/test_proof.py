"""The package against the second implementation in `tests.plain`, over grids, on the sample data and on real runs.

Both read the same files. They must agree to nine digits: nothing here is a matter of chance.
"""

from __future__ import annotations

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

from analysis_helpers import (
    Run,
    check_prediction,
    compare_err_rel_distributions,
    decompose_err_rel,
    err_rel_standard_error,
    load_runs,
    predict_err_rel,
    reference_true_totals,
    required_batch_size,
    sample_err_rel_across_runs,
    simulate_err_rel,
    trusted_eta,
    verdict,
)
from analysis_helpers.estimators import EstimatorName, estimate
from analysis_helpers.inference.decomposition import pool_decomposition
from analysis_helpers.inference.planning import Goal, budget_table, error_by_size, plan_batch_size
from analysis_helpers.inference.prediction import pooled_check
from tests.conftest import REPOSITORY
from tests.plain import answers, errors, estimates
from tests.plain.reading import Batch, mean_true_total, read_batches

ETAS = [1.6e-6, 3.2e-6]
ESTIMATORS: tuple[EstimatorName, ...] = ("partial_sum", "ratio", "matched")


def same(expected: Any) -> Any:
    """Return what equals the expected number, or numbers, to nine digits."""
    return pytest.approx(expected, rel=1e-9, abs=1e-10)


@dataclass(frozen=True)
class Grid:
    """What is compared: subset sizes, seeds, subsets of each, tolerances, probabilities, batch sizes."""

    sizes: tuple[int, ...]
    seeds: tuple[int, ...]
    draws: int
    tolerances: tuple[float, ...]
    probabilities: tuple[float, ...]
    batches: tuple[int, ...]


QUICK = Grid((16, 256), (0,), 5, (0.25, 0.5), (0.9,), (16, 256, 2048))
WIDE = Grid(
    (1, 16, 100, 256, 1024, 1500, 2048),
    (0, 1, 42, 2**31),
    15,
    (0.05, 0.25, 0.3, 0.5, 0.75, 1.0, 2.0),
    (0.5, 0.8, 0.9, 0.95, 0.99),
    (1, 2, 16, 64, 100, 256, 300, 1000, 2048, 4096, 100_000),
)


@dataclass(frozen=True)
class Side:
    """The same runs twice, as the package reads them and as the second implementation does, and the grid for them."""

    large: dict[str, Run]
    small: dict[str, Run]
    plain_large: dict[str, Batch]
    plain_small: dict[str, Batch]
    grid: Grid


@cache
def side(root: Path, grid: Grid) -> Side:
    large, small = root / "E_2048", root / "E_256"
    return Side(load_runs(large), load_runs(small), read_batches(large), read_batches(small), grid)


@pytest.fixture(
    params=[
        "sample",
        pytest.param("sample, wide", marks=pytest.mark.slow),
        pytest.param("real", marks=pytest.mark.slow),
    ]
)
def runs(request: pytest.FixtureRequest) -> Side:
    if request.param == "real":
        return side(request.getfixturevalue("research_root"), WIDE)
    return side(REPOSITORY / "data_samples", QUICK if request.param == "sample" else WIDE)


def pairs(runs: Side) -> Iterable[tuple[str, Run, Batch]]:
    """Return every run with its twin."""
    for package, plain in ((runs.large, runs.plain_large), (runs.small, runs.plain_small)):
        assert list(package) == list(plain)
        yield from ((name, run, plain[name]) for name, run in package.items())


def test_the_second_implementation_shares_no_code_with_the_package() -> None:
    for path in (Path(__file__).parent / "plain").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
                known = {"__future__", "collections", "dataclasses", "functools", "json", "math", "pathlib", "typing"}
                for module in modules:
                    assert module.split(".")[0] in known | {"numpy", "scipy"} or module.startswith("tests.plain")


def test_full_batches(runs: Side) -> None:
    for _, run, plain in pairs(runs):
        assert run.delta_h_per_lr == plain.linear_total
        for eta, estimator in product(run.etas, ESTIMATORS):
            expected = estimates.changes(plain, eta, range(plain.size), estimator)
            assert estimate(run, eta, estimator) == pytest.approx(expected, rel=1e-9)


def test_reference_totals(runs: Side) -> None:
    for eta, total in reference_true_totals(runs.large).items():
        assert total == pytest.approx(mean_true_total(runs.plain_large, eta), rel=1e-12)


def test_draws_of_every_estimator_size_and_seed(runs: Side) -> None:
    grid, reference = runs.grid, -1e-3
    for eta, estimator, n, seed in product(ETAS, ESTIMATORS, grid.sizes, grid.seeds):
        for name, run in list(runs.large.items())[: 2 if grid is QUICK else 4]:
            rng = np.random.default_rng(seed)
            expected = estimates.subset_errors(
                runs.plain_large[name], eta, n, grid.draws, rng, estimator=estimator, reference=reference
            )
            found = simulate_err_rel(
                run, eta, n, num_samples=grid.draws, seed=seed, estimator=estimator, reference=reference
            )
            assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_draws_over_runs_and_etas_from_one_stream(runs: Side) -> None:
    grid = runs.grid
    for estimator, n, seed in product(ESTIMATORS[:2], grid.sizes[:4], grid.seeds):
        expected = estimates.distributed_errors(runs.plain_large, ETAS, n, 5, seed, estimator)
        references = None if estimator == "partial_sum" else reference_true_totals(runs.large)
        found = sample_err_rel_across_runs(
            runs.large, ETAS, subset_size=n, samples_per_eta=5, seed=seed, estimator=estimator, references=references
        )
        for eta in ETAS:
            values = found.loc[found["eta"] == eta, "err_rel"].tolist()
            assert values == pytest.approx(expected[eta], rel=1e-9, abs=1e-9)


def test_comparisons_of_subsets_with_actual_runs(runs: Side) -> None:
    for eta, estimator, n in product(ETAS, ESTIMATORS, runs.grid.sizes[:4]):
        found = compare_err_rel_distributions(
            runs.large, runs.small, eta, sample_size=n, num_samples=5, seed=3, estimator=estimator
        )
        expected = estimates.compared_errors(runs.plain_large, eta, n, 5, 3, estimator)
        assert found.synthetic["err_rel"].tolist() == same(expected)
        reference = mean_true_total(runs.plain_large, eta)
        actual = [estimates.full_error(b, eta, reference, estimator) for b in runs.plain_small.values()]
        assert found.actual["err_rel"].tolist() == same(actual)


def test_disjoint_subsets_that_use_every_sequence_average_to_the_exact_partial_sum(runs: Side) -> None:
    # Groups of whole permutations hold every sequence equally often: no Monte-Carlo error is left in a mean.
    for eta, (name, run) in product(ETAS, runs.large.items()):
        plain = runs.plain_large[name]
        everything = estimates.full_error(plain, eta, -1e-3, "partial_sum")
        found = simulate_err_rel(run, eta, 256, num_samples=80, sampler="disjoint", reference=-1e-3)
        assert float(found.mean()) == pytest.approx(everything * 256 / plain.size, rel=1e-9)


def test_standard_errors_of_fresh_batches_and_of_subsets(runs: Side) -> None:
    for _, run, plain in pairs(runs):
        for eta, estimator in product(ETAS, ("partial_sum", "ratio", "matched")):
            spread = errors.spread(errors.error_influence(plain, eta, -1e-3, estimator))
            for n in (size for size in runs.grid.sizes if size <= plain.size):
                subset = err_rel_standard_error(run, eta, n, reference=-1e-3, estimator=estimator, population="run")
                expected = errors.subset_standard_error(plain, eta, n, -1e-3, estimator)
                assert subset == pytest.approx(expected, rel=1e-9)
                if estimator != "partial_sum":
                    fresh = err_rel_standard_error(run, eta, n, reference=-1e-3, estimator=estimator)
                    assert fresh == pytest.approx(spread / math.sqrt(n), rel=1e-9)


def test_standard_errors_are_those_of_leaving_out_one_sequence_at_a_time(runs: Side) -> None:
    # The jackknife and the gradient differ by what is of second order, a few parts in N = 256.
    for name, estimator in product(list(runs.small)[: 1 if runs.grid is QUICK else 4], ("ratio", "matched")):
        jackknife = errors.delete_one_standard_error(runs.plain_small[name], ETAS[0], -1e-3, estimator)
        found = err_rel_standard_error(runs.small[name], ETAS[0], reference=-1e-3, estimator=estimator)
        assert found == pytest.approx(jackknife, rel=0.03)


@pytest.mark.parametrize("adjusted", [False, True])
def test_parts_of_the_error_and_their_pooled_means(runs: Side, adjusted: bool) -> None:
    for eta in ETAS:
        table = decompose_err_rel(runs.large, eta, score_adjusted=adjusted)
        reference = mean_true_total(runs.plain_large, eta)
        parts = [errors.decomposed(b, eta, reference, adjusted=adjusted) for b in runs.plain_large.values()]
        pooled = pool_decomposition(table)
        for name, se in (
            ("err_rel", "se"),
            ("linear_minus_matched", "linear_minus_matched_se"),
            ("matched_minus_true", "matched_minus_true_se"),
        ):
            assert table[name].tolist() == pytest.approx([part[name].value for part in parts], rel=1e-8, abs=1e-9)
            assert table[se].tolist() == pytest.approx([part[name].se for part in parts], rel=1e-8)
            expected = errors.pooled([part[name] for part in parts])
            assert pooled[name].tolist() == pytest.approx([expected.value], rel=1e-8, abs=1e-9)
            assert pooled[se].tolist() == pytest.approx([expected.se], rel=1e-8)
        scores = [errors.score_z(batch) for batch in runs.plain_large.values()]
        assert table["score_z"].tolist() == same(scores)


def test_predictions_and_where_actual_runs_fall(runs: Side) -> None:
    for eta in ETAS:
        known, reference = answers.pilot(runs.plain_large, eta), mean_true_total(runs.plain_large, eta)
        for n in runs.grid.batches:
            found, expected = predict_err_rel(runs.large, eta, n), answers.next_run(known, n)
            assert (found.mean, found.tau) == same((known.mean.value, known.mean.tau))
            assert (found.sd, found.df) == pytest.approx((expected.sds[-1], expected.freedoms[-1]), rel=1e-8)
            for level in runs.grid.probabilities:
                # The narrowest of all sizes up to n; the package compares four to each doubling.
                half = found.interval(level)[1] - found.mean
                assert expected.half(level) * (1 - 1e-9) <= half <= expected.half(level) * 1.005
            for tolerance in runs.grid.tolerances:
                within = expected.within(tolerance)
                assert within - 0.002 <= found.probability_within(tolerance) <= within * (1 + 1e-9)
        checked = check_prediction(runs.large, runs.small, eta)
        for value, pit, plain in zip(checked["err_rel"], checked["pit"], runs.plain_small.values(), strict=True):
            assert value == same(estimates.full_error(plain, eta, reference))
            assert pit == pytest.approx(answers.next_run(known, plain.size).percentile(value), abs=1e-9)
        together = pooled_check(runs.large, runs.small, eta)
        expected_p = answers.agreement(known, runs.plain_small, eta, reference)
        assert (together.p_sum_z2, together.p_mean_z) == pytest.approx(expected_p, rel=1e-8)


def test_required_batch_sizes(runs: Side) -> None:
    for eta, estimator in product(ETAS, ("ratio", "matched")):
        known = answers.pilot(runs.plain_large, eta, estimator=estimator)
        for tolerance in runs.grid.tolerances:
            found = required_batch_size(runs.large, eta, target_sd=tolerance, estimator=estimator)
            assert found == answers.size_for_error(known.square_spread, tolerance)
            for probability in runs.grid.probabilities:
                found = required_batch_size(
                    runs.large, eta, tolerance=tolerance, probability=probability, estimator=estimator
                )
                assert found == answers.smallest_size(known.mean, known.square_spread, tolerance, probability)
                if estimator == "ratio" and found is not None:  # the plan and the prediction say the same
                    predicted = predict_err_rel(runs.large, eta, found).probability_within(tolerance)
                    assert predicted == pytest.approx(answers.next_run(known, found).within(tolerance), rel=1e-8)


def test_intervals_of_plans(runs: Side) -> None:
    draws = 40 if runs.grid is QUICK else 200
    for eta, tolerance in product(ETAS, runs.grid.tolerances):
        known = answers.pilot(runs.plain_large, eta)
        plan = plan_batch_size(runs.large, eta, Goal(tolerance=tolerance), num_draws=draws, seed=5)
        low, high = answers.planned_interval(known, tolerance, 0.9, draws=draws, seed=5)
        assert (plan.low or math.inf, plan.high or math.inf) == (low, high)
        plan, factor = plan_batch_size(runs.large, eta, Goal(target_sd=tolerance)), known.spread_factor()
        ends = (math.ceil(known.square_spread * f**2 / tolerance**2) for f in (1 / factor, factor))
        assert (plan.low, plan.high) == tuple(ends)


def test_tables_of_sizes_and_budgets(runs: Side) -> None:
    for eta in ETAS:
        known = answers.pilot(runs.plain_large, eta)
        table = error_by_size(runs.large, eta, runs.grid.batches, tolerance=0.5)
        for n, se, low, high in table[["n", "se", "se_low", "se_high"]].itertuples(index=False):
            plain, factor = math.sqrt(known.square_spread / n), known.spread_factor()
            assert (se, low, high) == same((plain, plain / factor, plain * factor))
        budget = budget_table(runs.large, eta, sequences=2048)
        taus = (known.mean.tau, *known.tau_interval())
        for count, each, *found in budget.itertuples(index=False):
            assert each == 2048 // count
            expected = [math.sqrt((known.square_spread / each + tau**2) / count) for tau in taus]
            assert found == pytest.approx(expected, rel=1e-8)


def test_verdicts_and_the_numbers_behind_them(runs: Side) -> None:
    grid, large = runs.grid, runs.plain_large
    known = {eta: answers.pilot(large, eta) for eta in ETAS}
    for eta, tolerance, probability in product(ETAS, grid.tolerances, grid.probabilities):
        for n in grid.batches[:: len(grid.batches) // 3]:
            found = verdict(runs.large, eta, n, tolerance=tolerance, probability=probability)
            expected = answers.answers(known[eta], n, tolerance, probability)
            assert (found.enough, found.linear_trusted) == (expected.enough, expected.linear_trusted)
            for name, value in expected.numbers.items():
                if name.startswith("next"):  # from a grid of sizes, as above
                    half = (expected.numbers["next_high"] - expected.numbers["next_low"]) / 2
                    assert abs(found.numbers[name] - value) <= 0.005 * half
                else:
                    assert found.numbers[name] == pytest.approx(value, rel=1e-8, abs=1e-9), name


def test_the_largest_eta_that_may_be_trusted(runs: Side) -> None:
    for tolerance in runs.grid.tolerances:
        trusted = [
            eta
            for eta in ETAS
            if answers.answers(answers.pilot(runs.plain_large, eta), 1, tolerance, 0.9).linear_trusted == "yes"
        ]
        assert trusted_eta(runs.large, tolerance=tolerance) == max(trusted, default=None)
