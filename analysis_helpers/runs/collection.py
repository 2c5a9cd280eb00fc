"""Runs chosen together: an immutable mapping of name -> run, validated once, where it is made.

Every function of the package that takes runs converts them to a `Runs` first; further functions get selections of it,
which are not validated or compared again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, ItemsView, Iterable, Iterator, Mapping, Sequence, ValuesView
from dataclasses import replace
from functools import cached_property
from statistics import median_low
from typing import Any

import numpy as np

from .._checks import NotRecordedError, RunError, by_reason, checked_count, same_eta, warn_skipped
from .run import FIELDS_BEHIND, Run, kind_of, skipped_steps


class Runs(Mapping[str, Run]):
    """An immutable mapping of name -> run; a run of the same content as an earlier one is left out, with a warning.

    Parameters
    ----------
    runs
        Name -> run.
    name
        Name of the argument, in messages.

    Raises
    ------
    ValueError
        If ``runs`` is not a mapping of runs.

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> runs = synthetic_runs(2, 32)
    >>> runs.etas, list(runs.at(1.6e-6)), runs.recording("prompts")
    ((1.6e-06, 3.2e-06), ['run_01', 'run_02'], Runs())
    """

    def __init__(self, runs: Mapping[str, Run], name: str = "runs") -> None:
        if not isinstance(runs, Mapping) or not all(isinstance(run, Run) for run in runs.values()):
            raise ValueError(f"{name} must be a dict of name -> Run, as from load_runs, got {kind_of(runs)}")
        copies = _skipped_copies(runs)
        self._runs = {name: run for name, run in runs.items() if name not in copies}

    @classmethod
    def of(cls, runs: Mapping[str, Run], name: str = "runs") -> Runs:
        """Return the argument ``name`` of a public function as `Runs`.

        Raises
        ------
        ValueError
            If it is not a mapping of runs, or empty.
        """
        collection = runs if isinstance(runs, Runs) else cls(runs, name)
        if not collection:
            raise ValueError(f"no {name} given")
        return collection

    def __getitem__(self, name: str) -> Run:
        return self._runs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._runs)

    def __len__(self) -> int:
        return len(self._runs)

    def items(self) -> ItemsView[str, Run]:
        """Return names and runs."""
        return self._runs.items()

    def values(self) -> ValuesView[Run]:
        """Return the runs."""
        return self._runs.values()

    def __repr__(self) -> str:
        return f"Runs({', '.join(f'{name}: {run!r}' for name, run in self._runs.items())})"

    def where(self, wanted: Callable[[Run], bool]) -> Runs:
        """Return the runs for which a condition holds."""
        return self.select([name for name, run in self._runs.items() if wanted(run)])

    def select(self, names: Collection[str]) -> Runs:
        """Return the runs of these names, in their order here."""
        if len(names) == len(self):
            return self
        chosen, selection = set(names), Runs({})
        selection._runs = {name: run for name, run in self._runs.items() if name in chosen}
        return selection

    # --- step sizes ---------------------------------------------------------------------------------------------------

    @cached_property
    def etas(self) -> tuple[float, ...]:
        """Step sizes measured in any of the runs, ascending; those within a relative 1e-6 count once."""
        distinct: list[float] = []
        for eta in dict.fromkeys(eta for run in self._runs.values() for eta in run.etas):
            if not any(same_eta(eta, other) for other in distinct):
                distinct.append(eta)
        return tuple(sorted(distinct))

    @cached_property
    def shared_etas(self) -> list[float]:
        """Step sizes measured on most sequences, ascending: those of all runs, if there are any."""
        measured_on = {eta: sum(run.n for run in self.values() if run.has_eta(eta)) for eta in self.etas}
        return [eta for eta, sequences in measured_on.items() if sequences == max(measured_on.values())]

    def eta(self, eta: float) -> float:
        """Return the step size measured that equals ``eta`` within tolerance, or raise a `ValueError` listing them."""
        for measured in self.etas:
            if same_eta(eta, measured):
                return measured
        there = ", ".join(map(repr, self.etas))
        raise ValueError(f"none of {', '.join(self)} has eta {float(eta)!r}; they have {there}")

    def etas_of(self, etas: Sequence[float] | None) -> list[float]:
        """Return the step sizes measured that equal ``etas`` within tolerance; None: all, ascending.

        Raises
        ------
        ValueError
            If one is not measured or given twice, or ``etas`` is not a list.
        """
        if etas is None:
            return list(self.etas)
        if isinstance(etas, str | float | int) or len(etas) == 0:
            raise ValueError(f"etas must be a list of at least one step size, such as [1.6e-06], got {etas!r}")
        measured = [self.eta(eta) for eta in etas]
        if len(set(measured)) < len(measured):
            raise ValueError(f"etas must hold each step size once, got {list(etas)}")
        return measured

    def at(self, eta: float) -> Runs:
        """Return the runs that have ``eta``; others are left out with a warning."""
        return self.at_each([eta])[eta]

    def at_each(self, etas: Iterable[float]) -> dict[float, Runs]:
        """Return eta -> the runs that have it; a run that lacks some is left out there, with one warning."""
        lacking = {name: [repr(eta) for eta in etas if not run.has_eta(eta)] for name, run in self.items()}
        warn_skipped({name: f"no eta {', '.join(missing)}" for name, missing in lacking.items() if missing})
        return {eta: self.select([name for name, run in self.items() if run.has_eta(eta)]) for eta in etas}

    def mean_true_change(self, eta: float) -> float:
        """Return the mean stored ``delta_h_true`` (nats per token) over the runs that have ``eta``."""
        return self._mean_true_changes[self.eta(eta)]

    @cached_property
    def _mean_true_changes(self) -> dict[float, float]:
        measured = {eta: [run.measurement(eta) for run in self.values() if run.has_eta(eta)] for eta in self.etas}
        return {eta: float(np.mean([m.delta_h_true for m in each])) for eta, each in measured.items()}

    def restricted(self, etas: Sequence[float]) -> Runs:
        """Return the runs without the measurements at other step sizes; runs without any of these are left out."""
        measured = {
            name: tuple(m for m in run.measurements if any(same_eta(m.eta, eta) for eta in etas))
            for name, run in self.items()
        }
        return Runs({name: replace(self[name], measurements=each) for name, each in measured.items() if each})

    # --- what runs record ---------------------------------------------------------------------------------------------

    def recording(self, *needs: str) -> Runs:
        """Return the runs that record all of the needs, each a key of `FIELDS_BEHIND`."""
        return self.where(lambda run: set(needs) <= set(run.supports))

    def lacking(self, *needs: str) -> list[str]:
        """Return the names of the runs that do not record all of the needs."""
        return [name for name, run in self.items() if not set(needs) <= set(run.supports)]

    def beside(self, large: Runs, *, copies: bool = False) -> Runs:
        """Return these actual runs for comparison with large ones; copies of those are left out with a warning.

        Raises
        ------
        RunError
            If only some of all the runs record the denominator correction.
        """
        sides = {f"large {name}": run for name, run in large.items()}
        sides |= {f"actual run {name}": run for name, run in self.items()}
        _require_alike(sides)
        if copies:
            return self
        copied = _skipped_copies(sides)
        return self.select([name for name in self if f"actual run {name}" not in copied])

    def sound(self, folder: str, needs: Sequence[str] = ()) -> Runs:
        """Return the runs that add up and record what is needed; others are left out with a warning.

        With the need "linear", runs without the denominator correction are left out if others have it.

        Raises
        ------
        RunError
            If every run is left out; as `NotRecordedError`, if none records a need. It names the folder.
        """
        for need in needs:
            if not self.recording(need):
                raise NotRecordedError(folder, FIELDS_BEHIND[need], f"is recorded in no run ({', '.join(self)})")
        corrected = "linear" in needs and self.recording("score")
        wanted = [*needs, "score"] if corrected else needs
        reasons = {name: _reason_to_skip(run, wanted) for name, run in self.items()}
        warn_skipped(reasons, f" of {folder.rstrip('/').rpartition('/')[2]}")
        if all(reasons.values()):
            why = "; ".join(f"{names}: {reason}" for names, reason in by_reason(reasons))
            raise RunError(folder, "folder", f"holds no run that can be used ({why})")
        return self.where(lambda run: not _reason_to_skip(run, wanted))

    # --- sizes --------------------------------------------------------------------------------------------------------

    @property
    def median_n(self) -> int:
        """Sequences of a run: the median, or the lower of the two in the middle."""
        return median_low(run.n for run in self.values())

    def usable(self, etas: Sequence[float], n: int, argument: str = "n") -> dict[float, Runs]:
        """Return eta -> the runs that have it and at least ``n`` sequences; others are left out with a warning.

        Raises
        ------
        ValueError
            If an eta is in no run, or every run is smaller than ``n``.
        RunError
            If only some of the runs record the denominator correction.
        """
        measured, largest = self.etas_of(etas), max(run.n for run in self.values())
        checked_count(n, argument, most=largest, what_most=", the sequences of the largest run")
        warn_skipped({name: f"{run.n} sequences, fewer than {argument} {n}" for name, run in self.items() if run.n < n})
        usable = self.where(lambda run: run.n >= n).at_each(measured)
        for eta, runs in usable.items():
            if not runs:
                raise ValueError(f"no run with at least {n} sequences has eta {eta!r}")
        _require_alike({name: run for runs in usable.values() for name, run in runs.items()})
        return usable


def shared_etas(large: Sequence[float], small: Sequence[float] = ()) -> list[float]:
    """Return the step sizes of large runs that small runs have too; all of them if there are none of these.

    Examples
    --------
    >>> shared_etas([1e-6, 2e-6], [2e-6, 4e-6]), shared_etas([1e-6, 2e-6])
    ([2e-06], [1e-06, 2e-06])
    """
    return [eta for eta in large if any(same_eta(eta, other) for other in small)] or list(large)


def default_n(large: int, small: int = 0) -> int:
    """Return the default batch size: that of the small runs or, without these, an eighth of the large one.

    Examples
    --------
    >>> default_n(2048, 256), default_n(512)
    (256, 64)
    """
    return max(2, min(small, large) if small else large // 8)


def _skipped_copies(runs: Mapping[str, Run]) -> dict[str, str]:
    """Return for each copy the name of the first run with the same content, with a warning that it is skipped."""
    distinct: dict[Any, list[str]] = {}  # digests are made only where totals are the same
    copies: dict[str, str] = {}
    for name, run in runs.items():
        alike = distinct.setdefault(run.totals, [])
        first = next((other for other in alike if runs[other].digest == run.digest), None)
        if first is None:
            alike.append(name)
        else:
            copies[name] = first
    warn_skipped({name: f"same content as {first}" for name, first in copies.items()})
    return copies


def _require_alike(runs: Mapping[str, Run]) -> None:
    """Raise if only some runs record the denominator correction: linear terms with and without it differ."""
    corrected = {name: "score" in run.supports for name, run in runs.items() if "linear" in run.supports}
    if len(set(corrected.values())) > 1:
        without = ", ".join(name for name, has in corrected.items() if not has)
        rule = "is recorded in some runs and not in these; their linear terms differ and must not be pooled"
        raise RunError(without, FIELDS_BEHIND["score"].partition(" ")[0], rule)


def _reason_to_skip(run: Run, needs: Sequence[str]) -> str:
    missing = [FIELDS_BEHIND[need] for need in needs if need not in run.supports]
    lacking = [f"{field} is not recorded" for field in missing[:1]]
    return "; ".join([*lacking, *run.problems, *skipped_steps(run)])
