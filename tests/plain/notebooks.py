"""The rows that a notebook collects, made anew from the files that it read and the parameters that it was given."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.plain import answers, errors, estimates
from tests.plain.reading import Batch, mean_true_total, read_batches

Row = dict[str, Any]


def load_runs(root: Path, given: Mapping[str, Any]) -> list[Row]:
    """Return totals, their standard errors, and how even the weights are, for each eta, batch and run."""
    found = []
    for folder in sorted(path.name for path in root.glob("E_*")):
        for name, batch in read_batches(root / folder).items():
            for step in batch.steps:
                of_true, of_linear = errors.influence(batch, step.eta)
                weights = step.weights
                even = sum(weights) ** 2 / sum(w**2 for w in weights) / batch.size
                found.append(
                    {
                        "eta": step.eta,
                        "batch": folder,
                        "run": name,
                        "sequences": batch.size,
                        "true": step.true_total,
                        "linear": step.eta * batch.linear_total,
                        "true_se": errors.spread(of_true) / math.sqrt(batch.size),
                        "linear_se": errors.spread(of_linear) / math.sqrt(batch.size),
                        "ess_share": even,
                    }
                )
    return sorted(found, key=lambda row: (row["eta"], row["batch"], row["run"]))


def batch_size_comparison(root: Path, given: Mapping[str, Any]) -> list[Row]:
    """Return subsets of the large runs beside the actual small ones, and the verdict."""
    large, small = (read_batches(root / given[name]) for name in ("large_batch", "small_batch"))
    eta, n = given["eta"], given["subset_size"]
    found, reference = verdict(large, small, eta, n, given), mean_true_total(large, eta)
    rows = []
    for estimator in ("partial_sum", "ratio"):
        values = estimates.compared_errors(large, eta, n, given["num_samples"], given["seed"], estimator)
        mean, sd = estimates.moments(values)
        rows.append(
            {
                "estimator": estimator,
                "subset_size": n,
                "eta": eta,
                "synthetic_mean": mean,
                "synthetic_std": sd,
                "synthetic_min": min(values),
                "synthetic_max": max(values),
                "actual_values": [estimates.full_error(run, eta, reference, estimator) for run in small.values()],
                "enough": found.enough,
                "linear_trusted": found.linear_trusted,
                "margin": found.numbers["margin"],
            }
        )
    return rows


def verdict(
    large: dict[str, Batch], small: dict[str, Batch], eta: float, n: int, given: Mapping[str, Any]
) -> answers.Answers:
    """Return the verdict: none where the small runs are not where predicted, or the reference is hardly known.

    That runs add up and weights are even is taken for granted.
    """
    known, reference = answers.pilot(large, eta), mean_true_total(large, eta)
    found = answers.answers(known, n, given["tolerance"], given["probability"])
    if min(answers.agreement(known, small, eta, reference)) < 0.01 or known.reference_error > 1 / 3:
        return answers.Answers("cannot tell", "cannot tell", found.numbers)
    return found


def subsampling_distribution(root: Path, given: Mapping[str, Any]) -> list[Row]:
    """Return how err_rel spreads over subsets of each run, for each estimator and eta."""
    runs, count = read_batches(root / given["large_batch"]), given["samples_per_eta"]
    rows = []
    for estimator in ("ratio", "partial_sum"):
        found = estimates.distributed_errors(runs, given["etas"], given["subset_size"], count, given["seed"], estimator)
        for eta in sorted(found):
            mean, sd = estimates.moments(found[eta])
            rows.append(
                {
                    "estimator": estimator,
                    "eta": eta,
                    "mean_err_rel": mean,
                    "std_err_rel": sd,
                    "var_err_rel": sd**2,
                    "min_err_rel": min(found[eta]),
                    "max_err_rel": max(found[eta]),
                    "num_samples": len(found[eta]),
                }
            )
    return rows


def choosing_a_batch_size(root: Path, given: Mapping[str, Any]) -> list[Row]:
    """Return the batch that each eta requires, and what other pilots would have said."""
    runs, rows = read_batches(root / given["large_batch"]), []
    tolerance, probability = given["tolerance"], given["probability"]
    for eta in given["etas"]:
        known = answers.pilot(runs, eta)
        low, high = answers.planned_interval(known, tolerance, probability, draws=400, seed=given["seed"])
        n = answers.smallest_size(known.mean, known.square_spread, tolerance, probability)
        rows.append({"eta": eta, "n": n, "low": _reachable(low), "high": _reachable(high)})
    return rows


def start_here(root: Path, given: Mapping[str, Any]) -> list[Row]:
    """Return the verdict for the eta and size asked for."""
    large, small = (read_batches(root / given[name]) for name in ("large_batch", "small_batch"))
    found = verdict(large, small, given["eta"], given["subset_size"], given)
    row = {
        "eta": given["eta"],
        "n": given["subset_size"],
        "enough": found.enough,
        "linear_trusted": found.linear_trusted,
    }
    names = ("margin", "required_n", "required_low", "required_high")
    return [row | {name: found.numbers[name] for name in names}]


def explore(root: Path, given: Mapping[str, Any]) -> list[Row]:
    """Return what follows in closed form from the choice that the controls begin with."""
    large, small = (read_batches(root / given[name]) for name in ("large_batch", "small_batch"))
    eta, n, estimator = given["eta"], given["subset_size"], given["estimator"]
    reference, known, found = (
        mean_true_total(large, eta),
        answers.pilot(large, eta),
        verdict(large, small, eta, n, given),
    )
    means, squares = [], []
    for batch in large.values():
        own = batch.at(eta).true_total if estimator == "partial_sum" else reference
        share = n / batch.size if estimator == "partial_sum" else 1.0
        means.append(estimates.full_error(batch, eta, own, estimator) * share)
        squares.append(errors.subset_standard_error(batch, eta, n, own, estimator) ** 2)
    middle = sum(means) / len(means)
    between = sum((mean - middle) ** 2 for mean in means) / len(means)
    tolerance, probability = given["tolerance"], given["probability"]
    return [
        {
            "eta": eta,
            "subset_size": n,
            "estimator": estimator,
            "mean": middle,
            "sd": math.sqrt(sum(squares) / len(squares) + between),
            "fresh_error": math.sqrt(known.square_spread / n),
            "precise_from": answers.size_for_error(known.square_spread, tolerance / answers.two_sided(probability)),
            "required_n": answers.smallest_size(known.mean, known.square_spread, tolerance, probability),
            "enough": found.enough,
            "linear_trusted": found.linear_trusted,
        }
    ]


RECOMPUTED: dict[str, Callable[[Path, Mapping[str, Any]], list[Row]]] = {
    "00_start_here": start_here,
    "01_load_runs": load_runs,
    "02_batch_size_comparison": batch_size_comparison,
    "03_subsampling_distribution": subsampling_distribution,
    "04_choosing_a_batch_size": choosing_a_batch_size,
    "06_explore": explore,
}


def _reachable(size: float) -> int | None:
    return int(size) if math.isfinite(size) else None
