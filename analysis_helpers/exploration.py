"""Runs looked at by hand: one choice of folders, step size, subset size and estimator after another.

What takes long is kept: the runs of a folder, and the subsets drawn from them. What follows in closed form needs no
draws, so it is there at once.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from .checks import warn_about_runs
from .drawn_subsets import DrawnSubsets, supported_estimators
from .err_rel import collect_err_rel_across_runs
from .inference import subset_moments, typical_standard_error
from .integrity import sound_runs
from .planning import required_batch_size
from .pooling import all_etas, known_eta, reference_total
from .random_effects import normal_quantile
from .run_files import result_files
from .runs import Run
from .verdict import Verdict, verdict

NEEDS = ("linear", "baseline_entropy")


@dataclass(frozen=True)
class Choice:
    """What to look at.

    Attributes
    ----------
    large_batch, small_batch
        Batch folders: the one that subsets are drawn from, and the one of actual runs.
    eta
        Step size.
    subset_size
        Sequences in a subset, and of the fresh batch in question.
    estimator
        "partial_sum", "ratio" or "matched".
    num_samples
        Subsets drawn from each large run.
    tolerance, probability
        Largest error to put up with, in units of the true change, and how often to keep to it.
    """

    large_batch: str
    small_batch: str
    eta: float
    subset_size: int
    estimator: str = "ratio"
    num_samples: int = 2000
    tolerance: float = 0.25
    probability: float = 0.9


@dataclass(frozen=True, eq=False)
class ClosedForm:
    """What follows from a choice without a draw.

    Attributes
    ----------
    choice
        What was asked.
    moments
        Mean and SD of err_rel over subsets of each large run: columns run, eta, mean, sd.
    actual
        A row for each small run that has the eta: columns run, eta, err_rel, n (its sequences).
    fresh_error
        Standard error of err_rel on one fresh batch: as all below by the ratio, whatever is chosen, because that is
        what an actual batch gives.
    precise_from, required_n
        Sequences from which on one batch's err_rel is within the tolerance, with the probability: of its expectation,
        and of zero; None where no size is enough.
    verdict
        Whether a batch of the subset's size is enough, and whether the linear approximation may be trusted.
    """

    choice: Choice
    moments: pd.DataFrame
    actual: pd.DataFrame
    fresh_error: float
    precise_from: int | None
    required_n: int | None
    verdict: Verdict

    @property
    def mean(self) -> float:
        """Mean of err_rel over the subsets of all large runs."""
        return float(self.moments["mean"].mean())

    @property
    def sd(self) -> float:
        """SD of err_rel over the subsets of all large runs: within runs, and between their means."""
        within, between = (self.moments["sd"] ** 2).mean(), self.moments["mean"].var(ddof=0)
        return math.sqrt(float(within + between))


class Exploration:
    """The runs below a data root, looked at choice by choice.

    Parameters
    ----------
    data_root
        Folder of batch folders.
    seed
        Seed of the random draws.

    Raises
    ------
    RunError
        If the folder is missing or holds no runs.

    Examples
    --------
    >>> import tempfile
    >>> from analysis_helpers import synthetic_runs, write_run
    >>> with tempfile.TemporaryDirectory() as root:
    ...     for name, run in synthetic_runs(2, 256).items():
    ...         write_run(f"{root}/E_256/{name}/results.json", run)
    ...     exploration = Exploration(root)
    ...     choice = exploration.nearest(Choice("E_256", "E_256", 1.5e-6, 60))
    ...     choice.eta, choice.subset_size, len(exploration.draws(choice))
    (1.6e-06, 64, 4000)
    """

    def __init__(self, data_root: Path | str, *, seed: int = 0) -> None:
        self.data_root, self.seed = Path(data_root), seed
        self.batches = sorted({path.parent.parent.name for path in result_files(data_root, depth=2)})
        self._runs: dict[str, dict[str, Run]] = {}
        self._left_out: dict[str, list[str]] = {}
        self._drawn: dict[tuple[str, int], DrawnSubsets] = {}

    def runs(self, batch: str) -> Mapping[str, Run]:
        """Return the runs of a batch folder that can be used; what is left out is warned about each time.

        Raises
        ------
        RunError
            If no run of the folder can be used.
        """
        if batch not in self._runs:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                self._runs[batch] = sound_runs(self.data_root / batch, needs=NEEDS)
            self._left_out[batch] = [str(warning.message) for warning in caught]
        for message in self._left_out[batch]:
            warn_about_runs(message)
        return self._runs[batch]

    def etas(self, batch: str) -> list[float]:
        """Return the step sizes on offer in a batch folder."""
        return all_etas(self.runs(batch))

    def estimators(self, batch: str) -> list[str]:
        """Return the estimators on offer in a batch folder."""
        return supported_estimators(self.runs(batch))

    def sizes(self, batch: str) -> list[int]:
        """Return the subset sizes on offer, up to three quarters of a run: 16, 24, 32, 48, 64 and so on."""
        smallest = min(run.num_sequences for run in self.runs(batch).values())
        steps = sorted(base * 2**k for base in (2, 3) for k in range(3, smallest.bit_length()))
        return [n for n in steps if 4 * n <= 3 * smallest] or [smallest]

    def nearest(self, choice: Choice) -> Choice:
        """Return the choice moved to what its large batch has: the nearest eta and size, a supported estimator."""
        batch = choice.large_batch
        return replace(
            choice,
            eta=_nearest(choice.eta, self.etas(batch)),
            subset_size=int(_nearest(choice.subset_size, self.sizes(batch))),
            estimator=choice.estimator if choice.estimator in self.estimators(batch) else "ratio",
        )

    def closed_form(self, choice: Choice) -> ClosedForm:
        """Return what follows without a draw.

        Raises
        ------
        RunError
            If a run does not record what the estimator needs, or runs must not be pooled.
        ValueError
            If no large run has the eta, or an argument is out of range.
        """
        n, tolerance, probability = choice.subset_size, choice.tolerance, choice.probability
        eta = known_eta(self.runs(choice.large_batch), choice.eta)
        large, small = (_having(self.runs(batch), eta) for batch in (choice.large_batch, choice.small_batch))
        found = verdict(large, eta, n, tolerance=tolerance, probability=probability, small_runs=small or None)
        reference = found.numbers["reference"]
        return ClosedForm(
            choice=choice,
            moments=subset_moments(large, [eta], n, estimator=choice.estimator, references=self._references(choice)),
            actual=_actual(small, eta, reference, choice.estimator),
            fresh_error=typical_standard_error(large, eta, n, reference=reference),
            precise_from=required_batch_size(large, eta, target_sd=tolerance / normal_quantile(probability)),
            required_n=required_batch_size(large, eta, tolerance=tolerance, probability=probability),
            verdict=found,
        )

    def draws(self, choice: Choice) -> pd.DataFrame:
        """Return err_rel on random subsets of the large runs: columns run, eta, err_rel.

        Subsets are drawn where folder or size are new, or more are asked for than before; everything else finds them
        drawn.
        """
        key = choice.large_batch, choice.subset_size
        kept = self._drawn.get(key)
        if kept is None or kept.num_samples < choice.num_samples:
            runs = self.runs(choice.large_batch)
            kept = self._drawn[key] = DrawnSubsets(runs, choice.subset_size, choice.num_samples, seed=self.seed)
        return kept.err_rel(
            choice.eta, estimator=choice.estimator, references=self._references(choice), first=choice.num_samples
        )

    def has_drawn(self, choice: Choice) -> bool:
        """Return whether the subsets of a choice are drawn already."""
        kept = self._drawn.get((choice.large_batch, choice.subset_size))
        return kept is not None and kept.num_samples >= choice.num_samples

    def _references(self, choice: Choice) -> dict[float, float] | None:
        """Return what err_rel is divided by; None for the partial sum: each run's own total, as published."""
        if choice.estimator == "partial_sum":
            return None
        return {choice.eta: reference_total(_having(self.runs(choice.large_batch), choice.eta), choice.eta)}


def exploration_table(found: ClosedForm, draws: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return what follows from a choice as a table.

    Returns
    -------
    DataFrame
        Columns what, closed_form, drawn (missing where nothing is drawn), unit.
    """
    choice, n = found.choice, found.choice.subset_size
    own = "own true change" if choice.estimator == "partial_sum" else "true change"
    drawn = (math.nan, math.nan) if draws is None else (draws["err_rel"].mean(), draws["err_rel"].std())
    by_ratio = "" if choice.estimator == "ratio" else ", by the ratio"
    within = f"n for ±{choice.tolerance:g} with probability {choice.probability:.0%}"
    rows = [
        (f"mean err_rel over subsets of {n}", found.mean, drawn[0], own),
        (f"SD of err_rel over subsets of {n}", found.sd, drawn[1], own),
        (f"standard error on one fresh batch of {n}{by_ratio}", found.fresh_error, math.nan, "true change"),
        (f"{within}, around its expectation{by_ratio}", _size(found.precise_from), math.nan, "sequences"),
        (f"{within}, around zero{by_ratio}", _size(found.required_n), math.nan, "sequences"),
    ]
    return pd.DataFrame(rows, columns=["what", "closed_form", "drawn", "unit"])


def exploration_result(found: ClosedForm) -> pd.DataFrame:
    """Return the numbers of a choice as one row, for collection."""
    names = ("mean", "sd", "fresh_error", "precise_from", "required_n")
    answers = {"enough": found.verdict.enough, "linear_trusted": found.verdict.linear_trusted}
    choice = {name: getattr(found.choice, name) for name in ("eta", "subset_size", "estimator")}
    return pd.DataFrame([{**choice, **{name: getattr(found, name) for name in names}, **answers}])


def describe_exploration(found: ClosedForm) -> list[str]:
    """Return how subsets scatter and how large a batch would be enough, a sentence each."""
    choice, sizes = found.choice, [_from_on(n) for n in (found.precise_from, found.required_n)]
    name = "matched estimate" if choice.estimator == "matched" else choice.estimator.replace("_", " ")
    spread = (
        f"At eta {choice.eta:g}, err_rel over subsets of {choice.subset_size} is {found.mean:+.2g} ± {found.sd:.2g} by "
        f"the {name} (mean ± standard deviation, in closed form)."
    )
    required = (
        f"By the ratio, which is what an actual batch gives, one fresh batch of that size has a standard error of "
        f"{found.fresh_error:.2g} of the true change. With probability {choice.probability:.0%}, err_rel of one batch "
        f"is within ±{choice.tolerance:g} of its expectation {sizes[0]}, and of zero {sizes[1]}."
    )
    return [spread, required]


def _from_on(n: int | None) -> str:
    return "at no size" if n is None else f"from {n:,} sequences on"


def _size(n: int | None) -> str:
    return "no size is enough" if n is None else f"{n:,}"


def _having(runs: Mapping[str, Run], eta: float) -> dict[str, Run]:
    return {name: run for name, run in runs.items() if run.has_eta(eta)}


def _actual(runs: Mapping[str, Run], eta: float, reference: float, estimator: str) -> pd.DataFrame:
    if not runs:
        return pd.DataFrame(columns=["run", "eta", "err_rel", "n"]).astype({"eta": float, "err_rel": float})
    table = collect_err_rel_across_runs(runs, eta, reference, estimator=estimator)
    return table.assign(n=[runs[name].num_sequences for name in table["run"]])


def _nearest(value: float, offered: Sequence[float]) -> float:
    """Return the one of the positive numbers offered that differs from ``value`` by the smallest factor."""
    return min(offered, key=lambda other: abs(math.log(other / value)))
