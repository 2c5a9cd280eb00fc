"""The exact entropy of a small policy, state by state, and how often a normal error keeps to a tolerance."""

from __future__ import annotations

import math

from scipy.stats import norm

Logits = list[list[list[float]]]  # prompt, previous token, next token


def log_softmax(row: list[float]) -> list[float]:
    """Return log probabilities from logits."""
    highest = max(row)
    norm_of = highest + math.log(sum(math.exp(x - highest) for x in row))
    return [x - norm_of for x in row]


def entropy_per_token(logits: Logits, max_length: int) -> float:
    """Return E[sum of entropies] / E[tokens]: sequences start in state 0, token 0 ends them, and so does the limit."""
    entropy_sum = token_sum = 0.0
    for table in logits:
        steps = [log_softmax(row) for row in table]
        entropies = [-sum(math.exp(p) * p for p in row) for row in steps]
        here = [1.0] + [0.0] * (len(table) - 1)
        for _ in range(max_length):
            token_sum += sum(here)
            entropy_sum += sum(p * h for p, h in zip(here, entropies, strict=True))
            after = [0.0] * len(table)
            for state, probability in enumerate(here):
                for token, log_p in enumerate(steps[state]):
                    if token != 0:
                        after[token] += probability * math.exp(log_p)
            here = after
    return entropy_sum / token_sum


def moved(logits: Logits, direction: Logits, eta: float) -> Logits:
    """Return the logits after a step."""
    return [
        [[x + eta * v for x, v in zip(row, slopes, strict=True)] for row, slopes in zip(*pair, strict=True)]
        for pair in zip(logits, direction, strict=True)
    ]


def change_of_entropy(logits: Logits, direction: Logits, eta: float, max_length: int) -> float:
    """Return the exact change of per-token entropy under a step."""
    return entropy_per_token(moved(logits, direction, eta), max_length) - entropy_per_token(logits, max_length)


def slope_of_entropy(logits: Logits, direction: Logits, eta: float, max_length: int) -> float:
    """Return the derivative along the direction, by central differences of two steps, extrapolated (Richardson)."""

    def central(step: float) -> float:
        up, down = (entropy_per_token(moved(logits, direction, sign * step), max_length) for sign in (1, -1))
        return (up - down) / (2 * step)

    return (4 * central(eta / 2) - central(eta)) / 3


def probability_within(tolerance: float, mean: float, sd: float) -> float:
    """Return the probability that a normal variable lies within the tolerance of zero."""
    return float(norm.cdf((tolerance - mean) / sd) - norm.cdf((-tolerance - mean) / sd))
