"""The true and the linear change on a set of sequences, and err_rel on random subsets."""

from collections.abc import Iterable, Sequence

import numpy as np

from tests.plain.reading import Batch, mean_true_total

ESTIMATORS = ("partial_sum", "ratio", "matched")


def changes(batch: Batch, eta: float, chosen: Iterable[int], estimator: str) -> tuple[float, float]:
    """Return (true, linear) on the chosen sequences."""
    step, picked = batch.at(eta), list(chosen)
    tokens = sum(batch.tokens[i] for i in picked)
    weighted_new = sum(step.weights[i] * step.h_new[i] for i in picked)
    if estimator == "partial_sum":
        true = weighted_new / step.weighted_tokens - tokens / batch.tokens_of_all * step.base_entropy
        return true, eta * sum(batch.linear[i] for i in picked)
    entropy = sum(step.h_base[i] for i in picked) / tokens
    true = weighted_new / sum(step.weights[i] * batch.tokens[i] for i in picked) - entropy
    slope = 0.0
    for i in picked:
        if estimator == "matched":
            score = batch.token_score[i] / batch.tokens[i]
            slope += batch.direct[i] + step.h_base[i] * score - entropy * batch.token_score[i]
        else:  # the recorded term, with the correction of the whole batch replaced by that of the subset
            recorded = batch.linear[i] * batch.tokens_of_all
            slope += recorded + (batch.corrected_by - entropy) * batch.token_score[i]
    return true, eta * slope / tokens


def full_error(batch: Batch, eta: float, reference: float, estimator: str = "ratio") -> float:
    """Return err_rel of the whole run."""
    true, linear = changes(batch, eta, range(batch.size), estimator)
    return (linear - true) / reference


def subset_errors(
    batch: Batch, eta: float, n: int, count: int, rng: np.random.Generator, *, estimator: str, reference: float
) -> list[float]:
    """Return err_rel on random subsets: one ``choice`` a subset, one after the other."""
    found = []
    for _ in range(count):
        chosen = rng.choice(batch.size, size=n, replace=False)
        true, linear = changes(batch, eta, chosen.tolist(), estimator)
        found.append((linear - true) / reference)
    return found


def scaled(runs: dict[str, Batch], eta: float, estimator: str) -> list[tuple[Batch, float]]:
    """Return each run and what its errors are divided by: of "partial_sum" its own total."""
    mean = mean_true_total(runs, eta)
    return [(run, run.at(eta).true_total if estimator == "partial_sum" else mean) for run in runs.values()]


def compared_errors(large: dict[str, Batch], eta: float, n: int, count: int, seed: int, estimator: str) -> list[float]:
    """Return err_rel on subsets of the large runs, the same for each."""
    found = []
    for batch, scale in scaled(large, eta, estimator):
        rng = np.random.default_rng(seed)
        found += subset_errors(batch, eta, n, count, rng, estimator=estimator, reference=scale)
    return found


def distributed_errors(
    runs: dict[str, Batch], etas: Sequence[float], n: int, count: int, seed: int, estimator: str
) -> dict[float, list[float]]:
    """Return err_rel on subsets for each eta, all from one stream: over eta, then run, then subset."""
    rng = np.random.default_rng(seed)
    found: dict[float, list[float]] = {}
    for eta in etas:
        found[eta] = []
        for batch, scale in scaled(runs, eta, estimator):
            found[eta] += subset_errors(batch, eta, n, count, rng, estimator=estimator, reference=scale)
    return found


def moments(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and SD (ddof=1)."""
    mean = sum(values) / len(values)
    return mean, (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5


def summary(values: Sequence[float]) -> list[float]:
    """Return mean, SD and variance (ddof=1), minimum, maximum and number."""
    mean, sd = moments(values)
    return [mean, sd, sd**2, min(values), max(values), len(values)]
