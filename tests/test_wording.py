from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis_helpers import (
    Run,
    collect_err_rel_across_runs,
    compare_err_rel_distributions,
    reference_true_totals,
)
from analysis_helpers.health import run_totals
from analysis_helpers.inference import err_rel_standard_error
from analysis_helpers.wording import describe_comparison, describe_distribution, describe_inventory, describe_totals
from tests.building import random_run, totals_only_run


def inventory_table(problem: str = "", same_as: str = "") -> pd.DataFrame:
    return pd.DataFrame({"batch": ["E_2", "E_9"], "run": "run_01", "problem": ["", problem], "same_as": ["", same_as]})


def test_a_clean_inventory_says_so_and_a_problem_is_named() -> None:
    assert describe_inventory(inventory_table())[0] == "2 results files: 1 in E_2, 1 in E_9."
    assert "All of them load" in describe_inventory(inventory_table())[1]
    sentences = describe_inventory(inventory_table("file must be complete JSON", "E_2/run_01"))
    assert sentences[1:] == [
        "Problem in E_9/run_01: file must be complete JSON.",
        "E_9/run_01 has the same content as E_2/run_01.",
    ]


def test_totals_are_told_by_eta_and_batch() -> None:
    # delta_h_per_lr = -5 at eta 1e-6 is -0.005e-3.
    [sentence] = describe_totals(run_totals({"E_2": {"run_01": totals_only_run()}}))
    assert sentence.startswith("At eta 1e-06, over 1 run of E_2, entropy changes by -")
    assert "-0.005 (linear), in 10⁻³ nats per token." in sentence


def test_the_comparison_follows_its_numbers(large_runs: dict[str, Run], small_runs: dict[str, Run]) -> None:
    for size in (256, 128):
        partial_sum, ratio = (
            compare_err_rel_distributions(
                large_runs, small_runs, 3.2e-6, sample_size=size, num_samples=50, estimator=estimator
            )
            for estimator in ("partial_sum", "ratio")
        )
        sentences = describe_comparison(partial_sum, ratio, large_runs, small_runs)
        errors = [
            err_rel_standard_error(run, 3.2e-6, size, reference=ratio.reference_total) for run in large_runs.values()
        ]
        assert sentences[0].startswith("At eta 3.2e-06, one fresh batch tells")
        assert f"±{np.sqrt(np.mean(np.square(errors))):.0%} of the true change with {size} sequences" in sentences[0]
        assert "with 2048 sequences (standard error)" in sentences[0]
        full = collect_err_rel_across_runs(large_runs, 3.2e-6, ratio.reference_total)["err_rel"].mean()
        assert f"On the full large runs, err_rel is {full:+.2f} ± " in sentences[1]
        synthetic = ratio.synthetic["err_rel"]
        near = (abs(ratio.actual["err_rel"] - synthetic.mean()) <= 2 * synthetic.std()).sum()
        assert (f"{near} lie within 2 SD of that mean" in sentences[2]) == (size == 256)
        assert ("have 256 sequences, not 128: expect another spread" in sentences[2]) == (size == 128)
        assert f"has an SD of {partial_sum.synthetic['err_rel'].std():.2f}" in sentences[3]


def summary(sds: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"eta": [1.6e-6, 3.2e-6], "mean_err_rel": [0.1, 0.2], "std_err_rel": sds})


def test_a_mean_is_told_with_its_standard_error_and_whether_chance_explains_it(large_runs: dict[str, Run]) -> None:
    sentences = describe_distribution(summary([1.0, 0.5]), summary([0.5, 0.5]), large_runs, 64)
    references = reference_true_totals(large_runs)
    for sentence, (eta, reference) in zip(sentences, references.items(), strict=False):
        mean = collect_err_rel_across_runs(large_runs, eta, reference)["err_rel"].mean()
        errors = [err_rel_standard_error(run, eta, reference=reference) for run in large_runs.values()]
        se = np.sqrt(np.sum(np.square(errors))) / 4
        assert sentence == (
            f"On the full runs at eta {eta:g}, err_rel is {mean:+.2f} ± {se:.2f} (mean over 4 runs ± standard error), "
            f"which chance {'hardly explains' if abs(mean) > 3 * se else 'may explain'}."
        )


def test_a_clear_mean_is_called_clear() -> None:
    run = random_run(400)  # linear half of true: err_rel about -0.5, with a standard error of a few hundredths
    table = pd.DataFrame({"eta": [1e-6], "mean_err_rel": [0.1], "std_err_rel": [1.0]})
    assert "which chance hardly explains" in describe_distribution(table, table, {"run_01": run}, 64)[0]


@pytest.mark.parametrize(("sds", "explained"), [([1.0, 0.5], True), ([1.0, 0.95], False), ([1.0, 1e-3], False)])
def test_a_fall_of_the_spread_is_explained_only_where_it_follows_eta(
    large_runs: dict[str, Run], sds: list[float], explained: bool
) -> None:
    sentences = describe_distribution(summary(sds), summary([0.5, 0.5]), large_runs, 64)
    assert (
        sentences[2]
        == "Ratio, subsets of 64: err_rel is +0.10 ± 0.50 at eta 1.6e-06, +0.20 ± 0.50 at eta 3.2e-06 (mean ± SD)."
    )
    assert f"the SD of the partial sum falls {sds[0] / sds[1]:.2f} times, that of the ratio 1.00 times." in sentences[4]
    assert ("does not come from the step" in sentences[4]) == explained


def test_one_eta_has_no_fall_to_tell(large_runs: dict[str, Run]) -> None:
    sentences = describe_distribution(summary([1.0, 0.5])[:1], summary([0.5, 0.5])[:1], large_runs, 64)
    assert len(sentences) == 3
