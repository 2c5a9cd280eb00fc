"""Sums over random subsets of the sequences of a batch, drawn without replacement.

Use it to see how an estimate would scatter on smaller batches drawn from this one. Do not read its spread as that of
fresh batches: subsets of size n out of N vary less, by the factor sqrt(1 - n/N). This is not a bootstrap, which draws
with replacement.
"""

from __future__ import annotations

import numpy as np

from .checks import FloatArray, checked_choice, checked_count

SAMPLERS = ("sequential",)


def subset_sums(
    values: FloatArray, subset_size: int, num_samples: int, rng: np.random.Generator, *, sampler: str = "sequential"
) -> FloatArray:
    """Return column sums over simple random subsets.

    "sequential" draws each subset by one ``rng.choice(N, size=subset_size, replace=False)``, one after the other.
    Columns that belong to several runs or etas may stand side by side: they then share their subsets.

    Parameters
    ----------
    values
        Shape ``(N, columns)``.
    subset_size
        Sequences in a subset, 1 to N.
    num_samples
        Number of subsets.
    rng
        The stream that the subsets are drawn from.
    sampler
        "sequential".

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
    size = checked_count(subset_size, "subset_size", most=len(values), what_most=", the number of sequences")
    sums = np.empty((checked_count(num_samples, "num_samples"), values.shape[1]))
    for row in sums:
        chosen = rng.choice(len(values), size=size, replace=False)
        values.take(chosen, axis=0).sum(axis=0, out=row)
    return sums
