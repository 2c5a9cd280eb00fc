"""What a `results.json` records, as lists of numbers, one a sequence."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path


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
    linear_total: float
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
    steps = []
    for entry in stored["true"]["entries"]:
        found = entry["diagnostics"]
        steps.append(
            Step(
                entry["eta"],
                entry["delta_h_true"],
                found["base_entropy"],
                found["normalized_weights"],
                found["h_base"],
                found["h_new"],
                sum(w * t for w, t in zip(found["normalized_weights"], found["token_counts"], strict=True)),
            )
        )
    approx = stored["approx"]
    sequences = sorted(approx["per_sequence"], key=lambda each: each.get("index", 0))
    corrected_by = approx.get("per_sequence_meta", {}).get("H_base_mean")
    zeros = [0.0] * len(sequences)
    token_score, direct = zeros, zeros
    if corrected_by is not None:
        token_score = [-each["extras"]["denom_corr_unscaled"] / corrected_by for each in sequences]
        direct = [each["extras"]["jH_sum"] for each in sequences]
    return Batch(
        tokens=[float(t) for t in stored["true"]["entries"][0]["diagnostics"]["token_counts"]],
        linear=[each["gdotv"] for each in sequences],
        linear_total=approx["delta_h_per_lr"],
        token_score=token_score,
        direct=direct,
        corrected_by=0.0 if corrected_by is None else corrected_by,
        steps=steps,
    )


def read_batches(folder: Path) -> dict[str, Batch]:
    """Read every run of a batch folder."""
    return {path.parent.name: read_batch(path) for path in sorted(folder.glob("*/results.json"))}


def mean_true_total(batches: dict[str, Batch], eta: float) -> float:
    """Return the reference: the mean stored true change over the runs."""
    totals = [batch.at(eta).true_total for batch in batches.values()]
    return sum(totals) / len(totals)
