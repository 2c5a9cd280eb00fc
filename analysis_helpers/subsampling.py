"""Sums over random subsets of the sequences of a batch, drawn without replacement.

Use it to see how an estimate would scatter on smaller batches drawn from this one. Do not read its spread as that of
fresh batches: subsets of size n out of N vary less, by the factor sqrt(1 - n/N). This is not a bootstrap, which draws
with replacement.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .checks import FloatArray, checked_choice, checked_count

SAMPLERS = ("sequential", "disjoint")

_BLOCK_BYTES = 1 << 20  # of indices, and as much of gathered values: stays in cache, whatever the number of subsets
_MOST_ROWS = 32
_CALL = 1500  # what one call of Generator.choice costs beside its draws, in draws


def subset_sums(
    values: FloatArray, subset_size: int, num_samples: int, rng: np.random.Generator, *, sampler: str = "sequential"
) -> FloatArray:
    """Return column sums over simple random subsets.

    "sequential" draws each subset by one ``rng.choice(N, size=subset_size, replace=False)``, one after the other.

    "disjoint" cuts random permutations of the sequences into ``K = N // m`` groups of ``m = min(n, N - n)``; for n
    above N/2, a group is what a subset leaves out. Each subset is an exact simple random sample. The groups of one
    permutation share no sequence, so their estimates are correlated by about -1/(K - 1): the Monte-Carlo error of a
    *mean* over subsets is smaller than independent draws would give (nearly zero when n divides N), that of an *SD*
    larger by sqrt(K/(K - 1)). Where so few subsets are asked for that permutations would cost more, subsets are drawn
    independently. Streams are spawned from ``rng`` for chunks of a fixed number of permutations.

    Columns that belong to several runs or etas may stand side by side: they then share their subsets. Scratch memory is
    a few MiB whatever the number of subsets, and at most four numbers a sequence for large N.

    Parameters
    ----------
    values
        Shape ``(N, columns)``.
    subset_size
        Sequences in a subset, n, from 1 to N.
    num_samples
        Number of subsets.
    rng
        The stream that the subsets are drawn from.
    sampler
        "sequential" or "disjoint".

    Returns
    -------
    array
        Shape ``(num_samples, columns)``.

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
    columns = np.ascontiguousarray(values.T)  # no copy where the columns are contiguous, as in estimators.Columns
    if sampler == "sequential":
        _independent(columns, n, rng, sums)
    else:
        _disjoint(columns, n, rng, sums)
    return sums


def _independent(columns: FloatArray, n: int, rng: np.random.Generator, sums: FloatArray) -> None:
    """Fill ``sums`` with one choice a subset, in blocks that are summed column by column."""
    size = columns.shape[1]
    rows = max(1, min(len(sums), _BLOCK_BYTES // (8 * n)))
    block = np.empty((rows, n), dtype=np.intp)
    for start in range(0, len(sums), rows):
        part = block[: len(sums) - start]
        for row in part:
            row[:] = rng.choice(size, size=n, replace=False)
        _sum_columns(columns, part, sums[start : start + len(part)])


def _disjoint(columns: FloatArray, n: int, rng: np.random.Generator, sums: FloatArray) -> None:
    """Fill ``sums`` with the groups of random permutations, or with what they leave out."""
    size, totals = columns.shape[1], columns.sum(axis=1)
    if n == size:
        sums[:] = totals
        return
    m = min(n, size - n)
    groups = size // m
    permutations = -(-len(sums) // groups)
    if permutations * size > len(sums) * (m + _CALL):
        _independent(columns, m, rng, sums)
    else:
        _permuted(columns, m, rng.spawn(-(-permutations // _rows_for(size))), sums)
    if m != n:
        np.subtract(totals, sums, out=sums)


def _permuted(columns: FloatArray, m: int, streams: list[np.random.Generator], sums: FloatArray) -> None:
    size = columns.shape[1]
    groups, rows = size // m, _rows_for(size)
    block = np.empty((rows, size), dtype=np.intp)
    for k, stream in enumerate(streams):
        start = k * rows * groups
        wanted = sums[start : start + rows * groups]
        part = block[: -(-len(wanted) // groups)]
        part[:] = np.arange(size)  # each chunk starts afresh, so that it depends on its own stream alone
        stream.permuted(part, axis=1, out=part)
        found = np.empty((len(part) * groups, len(columns)))
        _sum_columns(columns, part[:, : groups * m].reshape(len(part), groups, m), found)
        wanted[:] = found[: len(wanted)]


def _rows_for(size: int) -> int:
    return max(1, min(_MOST_ROWS, _BLOCK_BYTES // (8 * size)))


def _sum_columns(columns: FloatArray, chosen: NDArray[np.intp], sums: FloatArray) -> None:
    """Fill ``sums`` (subsets, columns) with sums over the last axis of the chosen indices."""
    gathered = np.empty(chosen.shape)
    for k, column in enumerate(columns):
        np.take(column, chosen, out=gathered, mode="clip")  # indices are in range; "raise" would copy first
        sums[:, k] = gathered.sum(axis=-1).ravel()
