"""Standard errors by influence values derived by hand and by leaving out one sequence; the parts of the error."""

import math
from collections.abc import Sequence

from tests.plain.estimates import changes, full_error, moments
from tests.plain.reading import Batch


def influence(batch: Batch, eta: float, estimator: str = "ratio") -> tuple[list[float], list[float]]:
    """Return what each sequence does to the true and to the linear change, times N (nats per token).

    ``psi_true = N [(w h_new - R w T) / sum(w T) - (h_base - H T) / sum T]``; a linear change L is
    ``eta sum(g - H t) / sum T`` with t = T j, so that ``psi_linear = N [eta (g - H t) - L T - eta (h_base - H T) sum(t)
    / sum T] / sum T``. The partial sum is plain contributions.
    """
    step, size, all_tokens = batch.at(eta), batch.size, batch.tokens_of_all
    if estimator == "partial_sum":
        single = [changes(batch, eta, [i], estimator) for i in range(size)]
        return [size * true for true, _ in single], [size * linear for _, linear in single]
    entropy = sum(step.h_base) / all_tokens
    after = sum(w * h for w, h in zip(step.weights, step.h_new, strict=True)) / step.weighted_tokens
    _, linear = changes(batch, eta, range(size), estimator)
    all_scores = sum(batch.token_score)
    of_true, of_linear = [], []
    for i, tokens in enumerate(batch.tokens):
        excess = step.h_base[i] - entropy * tokens
        moved = step.weights[i] * (step.h_new[i] - after * tokens)
        of_true.append(size * (moved / step.weighted_tokens - excess / all_tokens))
        if estimator == "matched":
            term = batch.direct[i] + step.h_base[i] * batch.token_score[i] / tokens
        else:
            term = batch.linear[i] * all_tokens + batch.corrected_by * batch.token_score[i]
        term -= entropy * batch.token_score[i]
        pulled = eta * term - linear * tokens - eta * excess * all_scores / all_tokens
        of_linear.append(size * pulled / all_tokens)
    return of_true, of_linear


def left_out(batch: Batch, eta: float, reference: float, estimator: str = "ratio") -> list[float]:
    """Return N - 1 times what err_rel loses when a sequence is left out, for each."""
    step, corrected, whole = batch.at(eta), batch.corrected_by, batch.tokens_of_all
    rows = []
    for i, tokens in enumerate(batch.tokens):
        base, weight, j = step.h_base[i], step.weights[i], batch.token_score[i]
        linear = batch.direct[i] + base * j / tokens if estimator == "matched" else batch.linear[i] * whole
        rows.append((tokens, base, weight * tokens, weight * step.h_new[i], linear, j))
    totals = [sum(column) for column in zip(*rows, strict=True)]

    def error(tokens: float, base: float, weighted: float, new: float, linear: float, j: float) -> float:
        entropy = base / tokens
        known = 0.0 if estimator == "matched" else corrected
        return (eta / tokens * (linear - (entropy - known) * j) - new / weighted + entropy) / reference

    all_of_them, others = error(*totals), batch.size - 1
    return [others * (all_of_them - error(*(a - b for a, b in zip(totals, row, strict=True)))) for row in rows]


def error_influence(batch: Batch, eta: float, reference: float, estimator: str = "ratio") -> list[float]:
    """Return the influence values of err_rel."""
    pairs = zip(*influence(batch, eta, estimator), strict=True)
    return [(linear - true) / reference for true, linear in pairs]


def spread(values: Sequence[float]) -> float:
    """Return the SD (ddof=1)."""
    return moments(values)[1]


def subset_standard_error(batch: Batch, eta: float, n: int, reference: float, estimator: str) -> float:
    """Return the SD of err_rel over the subsets of n sequences of this run, drawn without replacement."""
    one = spread(error_influence(batch, eta, reference, estimator)) * math.sqrt(1 / n - 1 / batch.size)
    return one * n / batch.size if estimator == "partial_sum" else one


def decomposed(batch: Batch, eta: float, reference: float, *, adjusted: bool) -> dict[str, tuple[float, float]]:
    """Return err_rel and its two parts with standard errors; adjusted, without what goes along with the mean score."""
    error, straight = (full_error(batch, eta, reference, name) for name in ("ratio", "matched"))
    psi, psi_straight = (left_out(batch, eta, reference, name) for name in ("ratio", "matched"))
    rest = [a - b for a, b in zip(psi, psi_straight, strict=True)]
    parts = {
        "err_rel": (error, psi),
        "linear_minus_matched": (error - straight, rest),
        "matched_minus_true": (straight, psi_straight),
    }
    scores = batch.scores()
    return {name: _part(value, values, scores if adjusted else []) for name, (value, values) in parts.items()}


def score_z(batch: Batch) -> float:
    """Return the mean score over its standard error."""
    mean, sd = moments(batch.scores())
    return mean / (sd / math.sqrt(batch.size))


def _part(value: float, psi: Sequence[float], scores: Sequence[float]) -> tuple[float, float]:
    if scores:
        mean_psi, mean_score = sum(psi) / len(psi), sum(scores) / len(scores)
        together = sum((p - mean_psi) * (j - mean_score) for p, j in zip(psi, scores, strict=True))
        slope = together / sum((j - mean_score) ** 2 for j in scores)
        value -= slope * mean_score
        psi = [p - slope * (j - mean_score) for p, j in zip(psi, scores, strict=True)]
    return value, spread(psi) / math.sqrt(len(psi))
