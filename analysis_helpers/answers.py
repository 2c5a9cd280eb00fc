"""Two questions answered from a pilot: is a batch precise enough, and does the next update's error keep to a tolerance?

Each has three answers; "cannot tell" wherever an interval straddles the tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from .planning import CONFIDENCE, Goal, smallest_batch, spread_interval
from .prediction import Pilot, predict
from .random_effects import normal_quantile

YES, NO, UNSURE = "yes", "no", "cannot tell"
QUESTIONS = {"enough": "Is the batch enough?", "linear_trusted": "May the linear approximation be trusted?"}


@dataclass(frozen=True)
class Answer:
    """An answer, the sentences that say why, and the numbers in them."""

    answer: str
    reasons: tuple[str, ...]
    numbers: Mapping[str, float]


def precision(pilot: Pilot, n: int, tolerance: float, probability: float) -> Answer:
    """Answer whether err_rel on one fresh batch of n is within ``tolerance`` of its expectation.

    The margin ``z S / sqrt(n)``, with z the normal quantile of the probability, stands against the tolerance, by the
    interval of S.
    """
    quantile = normal_quantile(probability)
    spread = math.sqrt(pilot.mean_square_spread)
    low, high = spread_interval(pilot)
    margin, least, most = (quantile * s / math.sqrt(n) for s in (spread, low, high))
    answer = YES if most <= tolerance else NO if least > tolerance else UNSURE
    required = smallest_batch(pilot, Goal(target_sd=tolerance / quantile)) or 1
    fewest, largest = (math.ceil((quantile * s / tolerance) ** 2) for s in (low, high))
    how_far = (
        f"With probability {probability:.0%}, err_rel on one fresh batch of {n} is within ±{margin:.2f} of its "
        f"expectation ({CONFIDENCE:.0%} interval of that margin: {least:.2f} to {most:.2f}); the tolerance is "
        f"±{tolerance:g}."
    )
    enough = f"about {required:,} sequences on ({fewest:,} to {largest:,})"
    how_large = f"One batch tells err_rel to within the tolerance from {enough}."
    numbers = {
        "margin": margin,
        "margin_low": least,
        "margin_high": most,
        "required_n": float(required),
        "required_low": float(fewest),
        "required_high": float(largest),
    }
    return Answer(answer, (how_far, how_large), numbers)


def linearity(pilot: Pilot, tolerance: float, probability: float) -> Answer:
    """Answer whether the next update's error, without sampling error of its own, lies within ``tolerance``.

    "Yes" where its predictive interval does; "no" where the interval of the mean error lies beyond, or updates differ
    so much that even a mean of 0 would not help. One run never gives a "yes": it does not show how updates differ.
    """
    pooled, next_update = pilot.pooled, predict(pilot, math.inf)
    low, high = next_update.interval(probability)
    mean_low, mean_high = pooled.interval(CONFIDENCE)
    tau_low, tau_high = pilot.tau_interval(CONFIDENCE)
    is_off = mean_low > tolerance or mean_high < -tolerance
    is_scattered = normal_quantile(probability) * tau_low > tolerance
    is_within = max(-low, high) <= tolerance
    unrefuted = YES if is_within and pooled.count > 1 else UNSURE
    answer = NO if is_off or is_scattered else unrefuted
    several = pooled.count > 1
    mean = "mean, in which a more precise run counts for more, " if several else ""
    so_far = f"err_rel is {pooled.mean:+.2f} ± {pooled.se:.2f} ({mean}± standard error)"
    differ = f"; updates differ by tau = {pooled.tau:.2f} ({CONFIDENCE:.0%} interval: {tau_low:.2f} to {tau_high:.2f})"
    next_error = (
        f"{'With' if several else 'If updates do not differ, with'} probability {probability:.0%} the next update's "
        f"error lies between {low:+.2f} and {high:+.2f}, "
        f"{'within' if is_within else 'not within'} the tolerance ±{tolerance:g}."
    )
    reasons = [f"{_over(pooled.count)}, {so_far}{differ if several else ''}.", next_error]
    if is_off:
        reasons.append(f"The mean error itself is beyond the tolerance: {mean_low:+.2f} to {mean_high:+.2f}.")
    if is_scattered:
        reasons.append(
            f"Updates differ too much, by {tau_low:.2f} at least, for any mean error to be within tolerance."
        )
    if pooled.count == 1:
        reasons.append("One run does not show how updates differ.")
    numbers = {
        "mean": pooled.mean,
        "se_mean": pooled.se,
        "mean_low": mean_low,
        "mean_high": mean_high,
        "tau": pooled.tau,
        "tau_low": tau_low,
        "tau_high": tau_high,
        "next_low": low,
        "next_high": high,
    }
    return Answer(answer, tuple(reasons), numbers)


def _over(count: int) -> str:
    return "On the one large run" if count == 1 else f"Over {count} large runs"
