from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from analysis_helpers import Run, simulate_err_rel
from analysis_helpers.partial_sum import base_entropy_share, explain_partial_sum, partial_sum_moments
from tests.building import ETAS, plain_estimate, random_run


@pytest.mark.parametrize("size", [1, 3, 7])
def test_moments_are_those_of_all_subsets_of_a_tiny_run(size: int) -> None:
    run = random_run(7)
    every = []
    for chosen in combinations(range(7), size):
        true, linear = plain_estimate(run, ETAS[0], list(chosen), "partial_sum")
        every.append((linear - true) / -0.5)
    mean, sd = partial_sum_moments(run, ETAS[0], size, reference=-0.5)
    assert mean == pytest.approx(np.mean(every), rel=1e-10)
    assert sd == pytest.approx(np.std(every), rel=1e-9, abs=1e-15)


def test_moments_are_those_of_the_draws(large_runs: dict[str, Run]) -> None:
    # 4,000 draws: the mean has a standard error of sd / 63, the SD one of sd / 89; 4 of them fail with probability
    # 1e-4.
    run = large_runs["run_04"]
    values = simulate_err_rel(run, 1.6e-6, num_samples=4000, seed=3)
    mean, sd = partial_sum_moments(run, 1.6e-6, 256)
    assert abs(values.mean() - mean) < 4 * sd / np.sqrt(4000)
    assert values.std(ddof=1) == pytest.approx(sd, rel=4 / np.sqrt(8000))


def test_the_mean_is_n_over_n_of_the_full_error(large_runs: dict[str, Run]) -> None:
    table = explain_partial_sum(large_runs, [1.6e-6, 3.2e-6], 256)
    assert len(table) == 8
    assert table["partial_sum_mean"].to_numpy() == pytest.approx(table["full_err_rel"].to_numpy() / 8, rel=1e-12)


def test_most_of_the_spread_is_difference_in_base_entropy(large_runs: dict[str, Run]) -> None:
    table = explain_partial_sum(large_runs, [1.6e-6, 3.2e-6], 256)
    assert table["base_entropy_share"].between(0.9, 1.0).all()


def test_a_run_without_differences_in_base_entropy_has_no_such_spread() -> None:
    rng = np.random.default_rng(0)
    size = 400
    run = Run.from_arrays(
        token_counts=np.full(size, 10),
        h_base=5 + rng.normal(0, 1e-4, size),
        h_new={1e-6: 4 + rng.normal(0, 0.1, size)},
        log_weights={1e-6: np.zeros(size)},
        gdotv=rng.normal(size=size),
    )
    assert base_entropy_share(run, 1e-6) < 0.05  # squared correlation of independent values: above 0.05 with p = 7e-6
