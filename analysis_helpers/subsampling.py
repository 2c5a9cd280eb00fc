"""Sums over random subsets of the sequences of a batch, drawn without replacement.

Use it to see how an estimate varies over smaller batches drawn from this one. Do not read that spread as the spread
over fresh batches: subsets of n out of N sequences vary less, by the factor sqrt(1 - n/N). This is not a bootstrap,
which draws with replacement.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from ._checks import FloatArray, checked_choice, checked_count

Sampler = Literal["sequential", "disjoint"]
SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)
Seed: TypeAlias = int | np.random.Generator
"""Source of random draws."""

Indices = NDArray[np.intp]  # one row per subset

_BLOCK_BYTES = 1 << 20  # of indices and of gathered values: fits the cache, whatever the number of subsets
_MOST_PERMUTATIONS = 32  # per chunk; each chunk has its own random stream
_CALL = 1500  # fixed cost of one call of Generator.choice, in draws


def subset_sums(
    values: FloatArray, n: int, num_samples: int, rng: np.random.Generator, *, sampler: Sampler = "sequential"
) -> FloatArray:
    """Return column sums over simple random samples of the rows, shape ``(num_samples, columns)``.

    "sequential" draws each subset by one ``rng.choice(N, size=subset_size, replace=False)``.

    "disjoint" cuts random permutations of the sequences into ``K = N // m`` groups of ``m = min(n, N - n)``; for n
    above N/2, a group is the complement of a subset. Each subset is an exact simple random sample. The groups of one
    permutation share no sequence, so their estimates are correlated by about -1/(K - 1): the Monte-Carlo error of a
    *mean* over subsets is smaller than with independent draws (nearly zero if n divides N), that of an *SD* larger by
    sqrt(K/(K - 1)). If so few subsets are asked for that permutations would cost more, they are drawn independently.
    Each chunk of a fixed number of permutations has its own stream, spawned from ``rng``.

    Columns of several runs or etas may be placed side by side; they then share their subsets. Scratch memory is a few
    MiB for any number of subsets, and at most four numbers per sequence for large N.

    Parameters
    ----------
    values
        Shape ``(N, columns)``.
    n
        Sequences in a subset, from 1 to N.
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
    size, width = values.shape
    n = checked_count(n, "n", most=size, what_most=", the number of sequences")
    sums = np.empty((checked_count(num_samples, "num_samples"), width))
    total = values.sum(axis=0)
    if sampler == "disjoint" and n == size:
        sums[:] = total
        return sums
    m = n if sampler == "sequential" else min(n, size - n)  # of more than half, draw what is left out
    at_once = min(num_samples, _fitting(m * (1 + width)))
    permutations = -(-num_samples // (size // m))
    if sampler == "sequential" or permutations * size > num_samples * (m + _CALL):
        blocks = _independent(size, m, num_samples, at_once, rng)
    else:
        blocks = _permuted(size, m, num_samples, at_once, rng)
    _add_up(np.ascontiguousarray(values), blocks, np.empty((at_once, m, width)), sums)
    if m != n:
        np.subtract(total, sums, out=sums)
    return sums


def _independent(size: int, n: int, count: int, at_once: int, rng: np.random.Generator) -> Iterator[Indices]:
    """Yield blocks of subsets, one ``choice`` each."""
    block = np.empty((at_once, n), dtype=np.intp)
    for start in range(0, count, at_once):
        part = block[: count - start]
        for row in part:
            row[:] = rng.choice(size, size=n, replace=False)
        yield part


def _permuted(size: int, m: int, count: int, at_once: int, rng: np.random.Generator) -> Iterator[Indices]:
    """Yield blocks of groups of ``m`` that permutations are cut into; each chunk of them has its own stream."""
    groups, chunk = size // m, min(_MOST_PERMUTATIONS, _fitting(size))
    starts = range(0, count, chunk * groups)
    block = np.empty((chunk, size), dtype=np.intp)
    sequence: Any = rng.bit_generator.seed_seq  # NumPy's stubs type it without spawn
    for start, seed in zip(starts, sequence.spawn(len(starts)), strict=True):
        stream = np.random.Generator(np.random.SFC64(seed))  # the one that permutes fastest
        part = block[: -(-(count - start) // groups)]
        part[:] = np.arange(size)  # afresh, so that a chunk depends on its own stream only
        stream.permuted(part, axis=1, out=part)
        cut = part[:, : groups * m].reshape(-1, m)[: count - start]
        yield from np.split(cut, range(at_once, len(cut), at_once))


def _add_up(values: FloatArray, blocks: Iterable[Indices], buffer: FloatArray, sums: FloatArray) -> None:
    """Fill ``sums`` with sums of values over blocks of subsets.

    They are gathered in one buffer of the size of the largest block: allocating one for each would double the time.
    """
    done, ones = 0, np.ones(buffer.shape[1])
    for chosen in blocks:
        gathered = buffer[: len(chosen)]
        np.take(values, chosen, axis=0, out=gathered, mode="clip")  # in range; "raise" would copy first
        np.matmul(ones, gathered, out=sums[done : done + len(chosen)])
        done += len(chosen)


def _fitting(numbers: int) -> int:
    """Return how many rows of ``numbers`` float64 fit into a block, at least one."""
    return max(1, _BLOCK_BYTES // (8 * numbers))
