"""Sums over random subsets of the sequences of a batch, drawn without replacement.

Use it to see how an estimate varies over smaller batches drawn from this one. Do not read that spread as the spread
over fresh batches: subsets of n out of N sequences vary less, by the factor sqrt(1 - n/N). This is not a bootstrap,
which draws with replacement.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ._checks import FloatArray, checked_choice, checked_count

Sampler = Literal["sequential", "disjoint"]
SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)

_BLOCK_BYTES = 1 << 20  # of indices and of gathered values: fits the cache, whatever the number of subsets
_MOST_PERMUTATIONS = 32  # per chunk; each chunk has its own random stream
_CALL = 1500  # fixed cost of one call of Generator.choice, in draws


def subset_sums(
    values: FloatArray, subset_size: int, num_samples: int, rng: np.random.Generator, *, sampler: Sampler = "sequential"
) -> FloatArray:
    """Return column sums over simple random samples of the rows, shape ``(num_samples, columns)``.

    "sequential" draws each subset by one ``rng.choice(N, size=subset_size, replace=False)``.

    "disjoint" cuts random permutations of the sequences into ``K = N // m`` groups of ``m = min(n, N - n)``; for n
    above N/2, a group is the complement of a subset. Each subset is an exact simple random sample. The groups of one
    permutation share no sequence, so their estimates are correlated by about -1/(K - 1): the Monte-Carlo error of a
    *mean* over subsets is smaller than with independent draws (nearly zero if n divides N), that of an *SD* larger by
    sqrt(K/(K - 1)). If so few subsets are asked for that permutations would cost more, they are drawn independently.
    Chunks of a fixed number of permutations have streams of their own, spawned from ``rng``.

    Columns of several runs or etas may stand side by side; they then share their subsets. Scratch memory is a few MiB
    whatever the number of subsets, and at most four numbers per sequence for large N.

    Parameters
    ----------
    values
        Shape ``(N, columns)``.
    subset_size
        Sequences in a subset, n, from 1 to N.
    num_samples
        Number of subsets.
    rng
        Source of the draws.
    sampler
        "sequential" or "disjoint".

    Raises
    ------
    ValueError
        If an argument is out of range or the sampler unknown.

    Examples
    --------
    The subset of all sequences has the full sums:

    >>> import numpy as np
    >>> subset_sums(np.array([[1.0, 10.0], [2.0, 20.0]]), 2, 1, np.random.default_rng(0))
    array([[ 3., 30.]])
    """
    checked_choice(sampler, "sampler", SAMPLERS)
    n = checked_count(subset_size, "subset_size", most=len(values), what_most=", the number of sequences")
    sums = np.empty((checked_count(num_samples, "num_samples"), values.shape[1]))
    rows = np.ascontiguousarray(values)
    if sampler == "sequential":
        _independent(rows, n, rng, sums)
    else:
        _disjoint(rows, n, rng, sums)
    return sums


def _independent(values: FloatArray, n: int, rng: np.random.Generator, sums: FloatArray) -> None:
    """Fill ``sums`` with one ``choice`` per subset, in blocks."""
    block = np.empty((min(len(sums), _fitting(n * (1 + values.shape[1]))), n), dtype=np.intp)
    add_up = _Sums(values, block.shape)
    for start in range(0, len(sums), len(block)):
        part = block[: len(sums) - start]
        for row in part:
            row[:] = rng.choice(len(values), size=n, replace=False)
        add_up(part, sums[start : start + len(part)])


def _disjoint(values: FloatArray, n: int, rng: np.random.Generator, sums: FloatArray) -> None:
    """Fill ``sums`` from groups of random permutations, or from their complements."""
    size = len(values)
    if n == size:
        sums[:] = values.sum(axis=0)
        return
    m = min(n, size - n)
    groups = size // m
    permutations = -(-len(sums) // groups)
    if permutations * size > len(sums) * (m + _CALL):
        _independent(values, m, rng, sums)
    else:
        chunk = min(_MOST_PERMUTATIONS, _fitting(size))
        _permuted(values, m, _streams(rng, -(-permutations // chunk)), chunk, sums)
    if m != n:
        np.subtract(values.sum(axis=0), sums, out=sums)


def _streams(rng: np.random.Generator, count: int) -> list[np.random.Generator]:
    """Return streams spawned from ``rng``, of the bit generator that permutes fastest."""
    sequence: Any = rng.bit_generator.seed_seq  # NumPy's stubs type it without spawn
    return [np.random.Generator(np.random.SFC64(seed)) for seed in sequence.spawn(count)]


def _permuted(values: FloatArray, m: int, streams: list[np.random.Generator], chunk: int, sums: FloatArray) -> None:
    """Fill ``sums`` from permutations cut into groups of ``m``; each chunk of them has its own stream."""
    size, width = values.shape
    groups = size // m
    block = np.empty((chunk, size), dtype=np.intp)
    at_once = min(chunk * groups, _fitting(m * width))
    add_up = _Sums(values, (at_once, m))
    for start, stream in zip(range(0, len(sums), chunk * groups), streams, strict=True):
        wanted = sums[start : start + chunk * groups]
        part = block[: -(-len(wanted) // groups)]
        part[:] = np.arange(size)  # afresh, so that a chunk depends on its own stream only
        stream.permuted(part, axis=1, out=part)
        cut = part[:, : groups * m].reshape(-1, m)[: len(wanted)]
        for first in range(0, len(wanted), at_once):
            chosen = cut[first : first + at_once]
            add_up(chosen, wanted[first : first + len(chosen)])


class _Sums:
    """Sums rows of values over sets of indices through one buffer; allocating one per call would double the time."""

    def __init__(self, values: FloatArray, shape: tuple[int, ...]) -> None:
        self._values = values
        self._gathered = np.empty((*shape, values.shape[1]))
        self._ones = np.ones(shape[-1])

    def __call__(self, chosen: NDArray[np.intp], sums: FloatArray) -> None:
        gathered = self._gathered[: len(chosen)]
        np.take(self._values, chosen, axis=0, out=gathered, mode="clip")  # in range; "raise" would copy first
        np.matmul(self._ones, gathered, out=sums)


def _fitting(numbers: int) -> int:
    """Return how many rows of ``numbers`` float64 fit into a block, at least one."""
    return max(1, _BLOCK_BYTES // (8 * numbers))
