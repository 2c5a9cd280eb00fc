from __future__ import annotations

import pandas as pd

from analysis_helpers import Run, compare_err_rel_distributions
from analysis_helpers.health import run_totals
from analysis_helpers.wording import describe_comparison, describe_distribution, describe_inventory, describe_totals
from tests.building import totals_only_run


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
        sentences = describe_comparison(partial_sum, ratio, small_runs)
        synthetic = ratio.synthetic["err_rel"]
        assert f"At eta 3.2e-06, one batch of {size}" in sentences[0]
        assert f"±{synthetic.std():.0%} of the true change" in sentences[0]
        near = (abs(ratio.actual["err_rel"] - synthetic.mean()) <= 2 * synthetic.std()).sum()
        assert f"{near} of 4 actual small runs" in sentences[1]
        assert f"has an SD of {partial_sum.synthetic['err_rel'].std():.2f}" in sentences[-1]
        assert any("The actual runs have 256 sequences, not 128" in s for s in sentences) == (size == 128)


def test_the_fall_of_the_spread_is_told_for_several_etas_only() -> None:
    table = pd.DataFrame({"eta": [1e-6, 2e-6], "mean_err_rel": [0.1, 0.2], "std_err_rel": [1.0, 0.5]})
    flat = table.assign(std_err_rel=[0.5, 0.5])
    sentences = describe_distribution(table, flat, 64)
    assert (
        sentences[0]
        == "Ratio, subsets of 64: err_rel is +0.10 ± 0.50 at eta 1e-06, +0.20 ± 0.50 at eta 2e-06 (mean ± SD)."
    )
    assert (
        "From eta 1e-06 to 2e-06, 2 times as large, the SD of the partial sum falls 2.00 times, that of the ratio 1.00"
        in (sentences[2])
    )
    assert len(describe_distribution(table[:1], flat[:1], 64)) == 2
