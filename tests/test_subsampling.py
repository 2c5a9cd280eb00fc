import tracemalloc
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, strategies as st
from numpy.typing import NDArray

from analysis_helpers._checks import FloatArray
from analysis_helpers.subsampling import SAMPLERS, Sampler, subset_sums

VALUES = np.arange(14.0).reshape(7, 2) ** 2
either = pytest.mark.parametrize("sampler", SAMPLERS)


def powers_of_two(size: int) -> FloatArray:
    return np.array([[2.0**i] for i in range(size)])


def membership(sums: FloatArray, size: int) -> NDArray[np.bool_]:
    """Return which sequences were drawn, shape ``(subsets, size)``, from sums of distinct powers of 2."""
    bits: NDArray[np.bool_] = (sums[:, :1].astype(np.int64) >> np.arange(size)) & 1 == 1
    return bits


@given(st.integers(1, 7), st.integers(1, 5), st.integers(0, 2**32))
def test_each_subset_is_one_choice_from_the_stream(size: int, samples: int, seed: int) -> None:
    sums = subset_sums(VALUES, size, samples, np.random.default_rng(seed))
    rng = np.random.default_rng(seed)
    plain = [sum(VALUES[i] for i in rng.choice(7, size=size, replace=False)) for _ in range(samples)]
    assert np.allclose(sums, plain, rtol=1e-13)


@either
@pytest.mark.parametrize("n", [1, 4, 5, 6, 9, 10])
def test_subsets_are_drawn_without_replacement(sampler: Sampler, n: int) -> None:
    sums = subset_sums(powers_of_two(10), n, 500, np.random.default_rng(1), sampler=sampler)
    assert (membership(sums, 10).sum(axis=1) == n).all()


@either
@pytest.mark.parametrize("n", [3, 4])
def test_every_subset_is_equally_likely(sampler: Sampler, n: int) -> None:
    # 35 subsets of 3 (or 4) out of 7, 35,000 draws: chi-square with 34 degrees of freedom exceeds 74 with probability
    # 1e-4; the two groups of a permutation repel each other, which makes it smaller.
    drawn = subset_sums(powers_of_two(7), n, 35_000, np.random.default_rng(5), sampler=sampler)[:, 0]
    known = [sum(2.0**i for i in chosen) for chosen in combinations(range(7), n)]
    counts = np.array([(drawn == total).sum() for total in known])
    assert counts.sum() == 35_000
    assert ((counts - 1000) ** 2 / 1000).sum() < 74


@pytest.mark.parametrize("n", [10, 30])
def test_groups_of_one_permutation_share_no_sequence(n: int) -> None:
    sums = subset_sums(powers_of_two(40), n, 1000, np.random.default_rng(3), sampler="disjoint")
    group = membership(sums, 40) if n == 10 else ~membership(sums, 40)  # above half of the size: what is left out
    assert (group.reshape(250, 4, 40).sum(axis=1) == 1).all()


@either
@pytest.mark.parametrize("n", [3, 5, 7])
def test_every_column_is_summed_over_the_same_sequences(sampler: Sampler, n: int) -> None:
    values = np.hstack([powers_of_two(7), 100 * powers_of_two(7) + 3])
    sums = subset_sums(values, n, 200, np.random.default_rng(4), sampler=sampler)
    assert sums[:, 1] == pytest.approx(100 * sums[:, 0] + 3 * n)
    alone = subset_sums(powers_of_two(7), n, 200, np.random.default_rng(4), sampler=sampler)
    assert alone[:, 0] == pytest.approx(sums[:, 0])


def test_disjoint_subsets_do_not_depend_on_how_many_are_asked_for_beyond_whole_chunks() -> None:
    # A chunk is 32 permutations of 4 groups; each has a stream of its own.
    few, many = (
        subset_sums(powers_of_two(40), 10, samples, np.random.default_rng(3), sampler="disjoint")
        for samples in (256, 900)
    )
    assert np.array_equal(few, many[:256])


def test_few_subsets_of_a_large_batch_are_drawn_independently() -> None:
    values = np.arange(500_000.0)[:, None]
    sums = subset_sums(values, 3, 2, np.random.default_rng(1), sampler="disjoint")
    rng = np.random.default_rng(1)
    assert sums[:, 0].tolist() == [rng.choice(500_000, size=3, replace=False).sum() for _ in range(2)]


@either
def test_scratch_memory_does_not_grow_with_the_number_of_subsets(sampler: Sampler) -> None:
    # All indices of 8,000 subsets would take 16 MiB, all gathered values 98.
    values = np.random.default_rng(0).normal(size=(6, 2048)).T
    tracemalloc.start()
    sums = subset_sums(values, 256, 8_000, np.random.default_rng(0), sampler=sampler)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak - sums.nbytes < 8 * 2**20
