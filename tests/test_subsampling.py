from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis_helpers.subsampling import subset_sums

VALUES = np.arange(14.0).reshape(7, 2) ** 2


@given(st.integers(1, 7), st.integers(1, 5), st.integers(0, 2**32))
def test_each_subset_is_one_choice_from_the_stream(size: int, samples: int, seed: int) -> None:
    sums = subset_sums(VALUES, size, samples, np.random.default_rng(seed))
    rng = np.random.default_rng(seed)
    plain = [sum(VALUES[i] for i in rng.choice(7, size=size, replace=False)) for _ in range(samples)]
    assert np.allclose(sums, plain, rtol=1e-13)


def test_subsets_are_drawn_without_replacement() -> None:
    powers = np.array([[2.0**i] for i in range(10)])  # a sum of distinct powers of 2 shows which were drawn
    sums = subset_sums(powers, 4, 500, np.random.default_rng(1))[:, 0].astype(int)
    assert all(bin(drawn).count("1") == 4 for drawn in sums)


def test_every_subset_is_equally_likely() -> None:
    # 35 subsets of 3 out of 7, 35,000 draws: chi-square with 34 degrees of freedom exceeds 74 with probability 1e-4.
    powers = np.array([[2.0**i] for i in range(7)])
    drawn = subset_sums(powers, 3, 35_000, np.random.default_rng(5))[:, 0]
    known = [sum(2.0**i for i in chosen) for chosen in combinations(range(7), 3)]
    counts = np.array([(drawn == total).sum() for total in known])
    assert counts.sum() == 35_000
    assert ((counts - 1000) ** 2 / 1000).sum() < 74


def test_the_subset_of_all_has_the_full_sums() -> None:
    sums = subset_sums(VALUES, 7, 3, np.random.default_rng(0))
    assert np.allclose(sums, VALUES.sum(axis=0), rtol=1e-14)


def test_columns_side_by_side_share_their_subsets() -> None:
    apart = [subset_sums(part, 3, 50, np.random.default_rng(2)) for part in (VALUES, VALUES * 3)]
    together = subset_sums(np.hstack([VALUES, VALUES * 3]), 3, 50, np.random.default_rng(2))
    assert np.allclose(together, np.hstack(apart), rtol=1e-13)


@pytest.mark.parametrize(
    ("size", "samples", "sampler", "message"),
    [
        (8, 1, "sequential", "subset_size must be at most 7, the number of sequences, got 8"),
        (0, 1, "sequential", "subset_size must be a whole number of at least 1, got 0"),
        (2.0, 1, "sequential", "subset_size must be a whole number of at least 1, got 2.0"),
        (2, 0, "sequential", "num_samples must be a whole number of at least 1, got 0"),
        (2, 1, "bootstrap", "sampler must be one of 'sequential', 'disjoint', got 'bootstrap'"),
    ],
)
def test_bad_arguments_are_named(size: int, samples: int, sampler: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        subset_sums(VALUES, size, samples, np.random.default_rng(0), sampler=sampler)
