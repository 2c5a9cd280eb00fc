"""What comes out where the answer is known, in plain sentences."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from .calibration import Calibration
from .verdict import SURPRISING


def describe_calibration(table: pd.DataFrame) -> str:
    """Return whether estimates and standard errors come out right, from `known_truth.estimate_calibration`."""
    ratio = table["sd"] / table["typical_se"]
    return (
        f"Mean estimates are within {table['bias_z'].abs().max():.1f} Monte-Carlo errors of the truth; standard errors "
        f"are {1 / ratio.max():.2f} to {1 / ratio.min():.2f} times the actual spread; 95% intervals cover in "
        f"{table['covered'].min():.0%} to {table['covered'].max():.0%}."
    )


def describe_coverage(table: pd.DataFrame) -> list[str]:
    """Return how often predictive intervals hold the next run, from `known_truth.interval_coverage`."""
    return [
        f"Where updates differ by tau = {tau:.2g}, predictive intervals of "
        + ", ".join(f"{row['level']:.0%}" for row in rows.to_dict("records"))
        + " hold the next run in "
        + ", ".join(f"{row['covered']:.0%}" for row in rows.to_dict("records"))
        + f" of cases (± up to {rows['error'].max():.1%})."
        for tau, rows in ((float(str(tau)), rows) for tau, rows in table.groupby("tau"))
    ]


def describe_plan_hits(table: pd.DataFrame) -> list[str]:
    """Return how plans turn out, from `known_truth.plan_hits`."""
    sentences = []
    for row in table.to_dict("records"):
        median, truth = f"{row['median_n']:,.0f}", f"{row['true_n']:,.0f}"
        if np.isnan(row["tolerance"]):
            sentences.append(
                f"Plans for a standard error of {row['target_sd']:g} take {median} sequences (median; truly {truth}); "
                f"{row['covered']:.0%} of their intervals hold the true size; batches of the planned size have a "
                f"standard error of {row['reached']:.3f}."
            )
        else:
            sentences.append(
                f"Plans for a tolerance of {row['tolerance']:g} take {median} sequences (median; with mean and tau "
                f"known, {truth}); {row['unreachable']:.0%} of them say that no size is enough; the others keep to the "
                f"tolerance with probability {row['reached']:.0%}."
            )
    return sentences


def describe_verdict_rates(table: pd.DataFrame) -> list[str]:
    """Return how often verdicts are false, from `known_truth.verdict_rates`."""
    names = {"enough": "Is the batch enough?", "linear_trusted": "May the linear approximation be trusted?"}
    sentences = []
    for question, rows in table.groupby("question", sort=False):
        wrong_yes = rows.loc[rows["truth"] == "no", "yes"].max()
        wrong_no = rows.loc[rows["truth"] == "yes", "no"].max()
        listed = [
            f'"{answer}" is false in at most {share:.0%}'
            for answer, share in (("yes", wrong_yes), ("no", wrong_no))
            if not np.isnan(share)
        ]
        sentences.append(f"{names[str(question)]} In the settings tried, {' and '.join(listed)} of cases.")
    return sentences


def describe_stored(found: Calibration) -> list[str]:
    """Return what a stored calibration over many batches says, from `analysis_helpers.calibration.read_calibration`."""
    coverage, bias, plans = (found.tables[name] for name in ("coverage", "estimates", "plans"))
    held = [
        f"{_listed(rows['covered'])} (tau = {float(str(tau)):.2g}, runs of {float(str(n)):g})"
        for (tau, n), rows in coverage.groupby(["tau", "n"], sort=False)
    ]
    intervals = (
        f"Over {found.batches:,} batches, drawn once and stored, intervals of {_listed(coverage['level'].unique())} "
        f"hold the next run in {'; in '.join(held)} of cases; percentiles are uniform to within "
        f"{found.tables['uniformity']['distance'].max():.1%}."
    )
    off = [
        f"{row['bias']:+.3f} ± {row['bias_error']:.3f} on batches of {row['n']}"
        for row in bias[bias["quantity"] == "err_rel"].to_dict("records")
    ]
    planned = plans.loc[plans["tolerance"].isna(), "covered"].iloc[0]
    estimates = (
        f"There, err_rel (ratio) is off by {' and '.join(off)}, in units of the true change (± Monte-Carlo error); "
        f"{planned:.0%} of 90% intervals of plans for a standard error hold the true size."
    )
    rates, surprises = found.tables["verdicts"], found.tables["contradictions"]
    verdicts = f"Over {rates['cases'].min():,} pilots in each setting: {' '.join(describe_verdict_rates(rates))}"
    contradicted = " and ".join(
        f"{row['contradicted']:.1%} (tau = {row['tau']:.2g})" for row in surprises.to_dict("records")
    )
    small = (
        f"Four actual runs contradict a prediction that is right (p below {SURPRISING:g}) in {contradicted} of cases."
    )
    return [intervals, estimates, _alarms(found.tables["flags"]), verdicts, small]


def _alarms(flags: pd.DataFrame) -> str:
    healthy, seen = flags[flags["condition"].str.startswith("healthy")], flags[flags["wanted"]]
    worst, least = healthy.iloc[int(healthy["flagged"].argmax())], seen.iloc[int(seen["flagged"].argmin())]
    return (
        f"A check flags at most {worst['flagged']:.1%} of healthy runs ({worst['check']}; {worst['condition']}) and at "
        f"least {least['flagged']:.0%} of the unhealthy runs that it should see ({least['check']}; "
        f"{least['condition']})."
    )


def _listed(shares: Iterable[float]) -> str:
    return ", ".join(f"{share:.1%}".replace(".0%", "%") for share in shares)
