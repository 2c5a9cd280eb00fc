"""Tables into plain sentences, so that a notebook's answer follows its numbers whatever its parameters."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from .comparison import Comparison
from .runs import Run


def describe_inventory(table: pd.DataFrame) -> list[str]:
    """Return what an inventory shows: how many runs, and what is wrong with which.

    Parameters
    ----------
    table
        From `analysis_helpers.inventory`.
    """
    batches = ", ".join(f"{len(rows)} in {batch}" for batch, rows in table.groupby("batch"))
    sentences = [f"{_count(len(table), 'results file')}: {batches}."]
    bad = table[table["problem"] != ""]
    sentences += [f"Problem in {row.batch}/{row.run}: {row.problem}." for row in bad.itertuples()]
    same = table[table["same_as"] != ""]
    sentences += [f"{row.batch}/{row.run} has the same content as {row.same_as}." for row in same.itertuples()]
    if bad.empty and same.empty:
        sentences.append("All of them load, their contributions sum to the stored totals, and no two are the same.")
    return sentences


def describe_totals(totals: pd.DataFrame) -> list[str]:
    """Return, for each eta and batch, the mean true and linear change over its runs.

    Parameters
    ----------
    totals
        From `analysis_helpers.health.run_totals`.
    """
    return [
        f"At eta {eta:g}, over {_count(len(rows), 'run')} of {batch}, entropy changes by {_milli(rows['true'])} (true) "
        f"and {_milli(rows['linear'])} (linear), in 10⁻³ nats per token."
        for (eta, batch), rows in totals.groupby(["eta", "batch"])
    ]


def describe_comparison(partial_sum: Comparison, ratio: Comparison, small_runs: Mapping[str, Run]) -> list[str]:
    """Return what subsets and actual runs say about one batch of the subset's size."""
    synthetic, actual = ratio.synthetic["err_rel"], ratio.actual["err_rel"]
    mean, sd, n = float(synthetic.mean()), float(synthetic.std()), ratio.sample_size
    near = int((abs(actual - mean) <= 2 * sd).sum())
    spread = (
        f"At eta {ratio.eta:g}, one batch of {n} tells the difference between the linear and the true change only to "
        f"about ±{sd:.0%} of the true change: the SD over subsets of {n} drawn from the large runs, by the ratio. "
        "A much smaller difference cannot be seen in one such batch."
    )
    agreement = (
        f"The subsets scatter around {mean:+.2f}; {near} of {_count(len(actual), 'actual small run')} "
        f"({', '.join(f'{value:+.2f}' for value in actual)}) lie within 2 SD of that."
    )
    warning = (
        f"The partial sum, the estimate of the published figures, has an SD of "
        f"{partial_sum.synthetic['err_rel'].std():.2f}; it is not comparable with actual runs."
    )
    sizes = sorted({small_runs[name].num_sequences for name in ratio.actual["run"]})
    if sizes == [n]:
        return [spread, agreement, warning]
    listed = ", ".join(map(str, sizes))
    mismatch = (
        f"The actual runs have {listed} sequences, not {n}: expect their spread to differ from that of the subsets."
    )
    return [spread, agreement, mismatch, warning]


def describe_distribution(partial_sum: pd.DataFrame, ratio: pd.DataFrame, subset_size: int) -> list[str]:
    """Return how the spread of err_rel depends on eta.

    Parameters
    ----------
    partial_sum, ratio
        From `analysis_helpers.summarize_err_rel_distribution`, one for each estimator.
    subset_size
        Sequences in a subset.
    """
    sentences = [
        f"Ratio, subsets of {subset_size}: err_rel is {_per_eta(ratio)} (mean ± SD).",
        f"Partial sum, subsets of {subset_size}: err_rel is {_per_eta(partial_sum)} (mean ± SD).",
    ]
    if len(ratio) > 1:
        eta, sds = ratio["eta"], [table["std_err_rel"] for table in (partial_sum, ratio)]
        of_sum, of_ratio = (sd.iloc[0] / sd.iloc[-1] for sd in sds)
        sentences.append(
            f"From eta {eta.iloc[0]:g} to {eta.iloc[-1]:g}, {eta.iloc[-1] / eta.iloc[0]:.3g} times as large, the SD of "
            f"the partial sum falls {of_sum:.2f} times, that of the ratio {of_ratio:.2f} times. A spread that falls as "
            "fast as eta grows does not come from the step: it is difference in base entropy between sequences."
        )
    return sentences


def _milli(values: pd.Series[float]) -> str:
    return f"{values.mean() * 1e3:+.3f}"


def _per_eta(summary: pd.DataFrame) -> str:
    rows = [
        f"{mean:+.2f} ± {sd:.2f} at eta {eta:g}"
        for eta, mean, sd in zip(summary["eta"], summary["mean_err_rel"], summary["std_err_rel"], strict=True)
    ]
    return ", ".join(rows)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
