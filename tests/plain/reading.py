"""What a `results.json` records, as lists of numbers, one a sequence."""

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Step:
    """What was measured at one step size; totals as stored."""

    eta: float
    true_total: float
    base_entropy: float
    weights: list[float]
    h_base: list[float]
    h_new: list[float]
    weighted_tokens: float


@dataclass(frozen=True)
class Batch:
    """One run: tokens and linear terms of every sequence, and what was measured at each step size.

    ``linear`` holds nats a token and unit eta, summing to the total; ``token_score`` (T j) and ``direct`` (jH) are zero
    where the run records no denominator correction, and ``corrected_by`` (H_N) with them.
    """

    tokens: list[float]
    linear: list[float]
    token_score: list[float]
    direct: list[float]
    corrected_by: float
    steps: list[Step]

    @cached_property
    def tokens_of_all(self) -> float:
        """Tokens of the whole batch."""
        return sum(self.tokens)

    @property
    def size(self) -> int:
        """Number of sequences."""
        return len(self.tokens)

    def at(self, eta: float) -> Step:
        """Return what was measured at a step size."""
        [found] = [step for step in self.steps if math.isclose(step.eta, eta, rel_tol=1e-6)]
        return found

    def scores(self) -> list[float]:
        """Return the score of every sequence, j."""
        return [tj / t for tj, t in zip(self.token_score, self.tokens, strict=True)]


def read_batch(path: Path) -> Batch:
    """Read one `results.json`."""
    stored = json.loads(path.read_text(encoding="utf-8"))
    entries, approx = stored["true"]["entries"], stored["approx"]
    tokens = [float(t) for t in entries[0]["diagnostics"]["token_counts"]]
    steps = []
    for entry in entries:
        found = entry["diagnostics"]
        columns = (found[name] for name in ("normalized_weights", "h_base", "h_new"))
        steps.append(_step(tokens, entry["eta"], entry["delta_h_true"], found["base_entropy"], *columns))
    sequences = sorted(approx["per_sequence"], key=lambda each: each.get("index", 0))
    corrected_by = approx.get("per_sequence_meta", {}).get("H_base_mean") or 0.0
    token_score = direct = [0.0] * len(sequences)
    if corrected_by:
        token_score = [-each["extras"]["denom_corr_unscaled"] / corrected_by for each in sequences]
        direct = [each["extras"]["jH_sum"] for each in sequences]
    return Batch(tokens, [each["gdotv"] for each in sequences], token_score, direct, corrected_by, steps)


def read_batches(folder: Path) -> dict[str, Batch]:
    """Read every run of a batch folder."""
    return {path.parent.name: read_batch(path) for path in sorted(folder.glob("*/results.json"))}


def as_batch(run: Any) -> Batch:
    """Return a run that the package holds in memory."""
    tokens, entropy = run.token_counts.tolist(), run.h_base_mean
    steps = [
        _step(tokens, m.eta, m.delta_h_true, m.base_entropy, m.weights.tolist(), m.h_base.tolist(), m.h_new.tolist())
        for m in run.measurements
    ]
    if entropy is None:
        zeros = [0.0] * len(tokens)
        return Batch(tokens, run.gdotv.tolist(), zeros, zeros, 0.0, steps)
    token_score = [-term / entropy for term in run.denom_corr_unscaled.tolist()]
    return Batch(tokens, run.gdotv.tolist(), token_score, run.jH_sum.tolist(), entropy, steps)


def mean_true_total(batches: dict[str, Batch], eta: float) -> float:
    """Return the reference: the mean stored true change over the runs."""
    totals = [batch.at(eta).true_total for batch in batches.values()]
    return sum(totals) / len(totals)


def _step(
    tokens: list[float], eta: float, total: float, entropy: float, w: list[float], base: list[float], new: list[float]
) -> Step:
    return Step(eta, total, entropy, w, base, new, sum(a * t for a, t in zip(w, tokens, strict=True)))
