"""What the suite is measured against, written as one would write it plainly."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis_helpers import Run, per_sequence_contributions
from analysis_helpers._checks import FloatArray


def load_with_json(paths: Sequence[Path]) -> list[list[dict[str, FloatArray]]]:
    """Load results files with the standard library, into the arrays that estimates need."""
    loaded = []
    for path in paths:
        tree = json.loads(path.read_text(encoding="utf-8"))
        sequences = tree["approx"]["per_sequence"]
        linear = {"gdotv": np.array([s["gdotv"] for s in sequences])}
        for name in ("wjlogp_sum", "jH_sum", "denom_corr_unscaled"):
            linear[name] = np.array([s["extras"][name] for s in sequences])
        names = ("normalized_weights", "log_weights", "h_base", "h_new", "token_counts")
        entries = [entry["diagnostics"] for entry in tree["true"]["entries"]]
        loaded.append([{name: np.array(entry[name]) for name in names} | linear for entry in entries])
    return loaded


def loop_over_choices(runs: Mapping[str, Run], etas: Sequence[float], size: int, samples: int) -> list[float]:
    """Draw partial-sum err_rel, one choice and two sums a subset, as the original notebook does."""
    values = []
    for eta in etas:
        for run in runs.values():
            true_seq, linear_seq = per_sequence_contributions(run, eta)
            total = true_seq.sum()
            values += [d / total for d in loop_over_differences(np.stack([linear_seq, true_seq], 1), size, samples)]
    return values


def loop_over_differences(values: FloatArray, size: int, samples: int) -> list[float]:
    """Draw differences of two sums, one choice a subset."""
    rng, (first, second) = np.random.default_rng(0), np.ascontiguousarray(values.T)
    found = []
    for _ in range(samples):
        chosen = rng.choice(len(first), size=size, replace=False)
        found.append(float(first[chosen].sum() - second[chosen].sum()))
    return found


def loop_over_ratios(err_rel: Any, total: int, size: int, samples: int) -> list[float]:
    """Draw err_rel by the ratio estimator, one choice and six sums a subset."""
    rng = np.random.default_rng(0)
    return [float(err_rel(rng.choice(total, size=size, replace=False))) for _ in range(samples)]


def ratio_statistic(columns: FloatArray, eta: float, score_entropy: float, reference: float) -> Any:
    """Return err_rel by the ratio estimator as a function of indices, last axis the sequences."""
    tokens, h_base, w_tokens, w_h_new, g, tokens_score = columns

    def err_rel(indices: Any) -> Any:
        total = tokens[indices].sum(axis=-1)
        entropy = h_base[indices].sum(axis=-1) / total
        true = w_h_new[indices].sum(axis=-1) / w_tokens[indices].sum(axis=-1) - entropy
        correction = (entropy - score_entropy) * tokens_score[indices].sum(axis=-1)
        return (eta / total * (g[indices].sum(axis=-1) - correction) - true) / reference

    return err_rel


def scipy_bootstrap(err_rel: Any, total: int, samples: int) -> Any:
    """Resample whole batches with scipy.stats.bootstrap, vectorised."""
    from scipy.stats import bootstrap

    def statistic(indices: Any, axis: int = -1) -> Any:
        return err_rel(np.moveaxis(indices.astype(np.intp), axis, -1))

    how: dict[str, Any] = {"n_resamples": samples, "vectorized": True, "method": "percentile", "rng": 0, "batch": 100}
    return bootstrap((np.arange(total),), statistic, **how).bootstrap_distribution


def arch_bootstrap(err_rel: Any, total: int, samples: int) -> Any:
    """Resample whole batches with arch.bootstrap.IIDBootstrap."""
    from arch.bootstrap import IIDBootstrap

    return IIDBootstrap(np.arange(total), seed=0).apply(err_rel, samples)


def shuffle_split(err_rel: Any, total: int, size: int, samples: int) -> list[float]:
    """Draw subsets with scikit-learn's ShuffleSplit."""
    from sklearn.model_selection import ShuffleSplit

    splits = ShuffleSplit(n_splits=samples, train_size=size, test_size=1, random_state=0).split(np.zeros(total))
    return [float(err_rel(chosen)) for chosen, _ in splits]


def frame_sample(columns: FloatArray, err_rel_of_sums: Any, size: int, samples: int) -> list[float]:
    """Draw subsets of rows with pandas.DataFrame.sample and sum them."""
    frame, rng = pd.DataFrame(columns.T), np.random.default_rng(0)
    return [float(err_rel_of_sums(frame.sample(n=size, random_state=rng).sum().to_numpy())) for _ in range(samples)]
