from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analysis_helpers import Runs, synthetic_runs
from analysis_helpers._checks import FloatArray, RunWarning
from analysis_helpers.inference.origin import change_by_origin, same_states_error
from analysis_helpers.inference.random_effects import student_quantile
from analysis_helpers.runs import Measurement
from analysis_helpers.synthetic.policy import END, Policy, entropy_change, entropy_derivative
from analysis_helpers.synthetic.runs import update_directions
from tests.building import ETAS, altered, known, random_run, totals_only_run
from tests.calibration.drawing import batch_of, short_policy, world

PARTS = ["same states", "other states", "total"]


def exact_same_states(policy: Policy, direction: FloatArray, eta: float) -> float:
    """Return the expected change of entropy where the old policy goes, in nats per token."""
    moves, change = np.exp(policy.log_probs()), policy.step(direction, eta).state_entropies() - policy.state_entropies()
    here = np.zeros_like(change)
    here[:, END] = 1 / len(here)
    total = tokens = 0.0
    for _ in range(policy.max_length):
        total, tokens = total + float((here * change).sum()), tokens + float(here.sum())
        here = np.einsum("ps,psa->pa", here, moves)
        here[:, END] = 0
    return total / tokens


def test_parts_add_up_to_the_total_in_every_row() -> None:
    table = change_by_origin({"run_01": random_run(40, 1), "run_02": random_run(90, 2)})
    assert table["part"].tolist() == PARTS * 3 * len(ETAS)
    same, other, total = (table[table["part"] == part].reset_index(drop=True) for part in PARTS)
    for name in ("true", "linear", "error"):
        assert (same[name] + other[name]).to_numpy() == pytest.approx(total[name].to_numpy(), rel=1e-9)
    assert (table["linear"] - table["true"]).to_numpy() == pytest.approx(table["error"].to_numpy(), rel=1e-9, abs=1e-15)


def test_the_part_on_the_same_states_by_hand() -> None:
    run = random_run(30)
    row = change_by_origin({"run": run}, [ETAS[1]]).iloc[0]
    m, tokens = run.measurements[1], run.total_tokens
    assert row["true"] == pytest.approx((m.h_new.sum() - known(m.h_base).sum()) / tokens, rel=1e-12)
    assert row["linear"] == pytest.approx(m.eta * known(run.jH_sum).sum() / tokens, rel=1e-12)


def test_both_parts_are_those_of_the_exact_policy() -> None:
    # Three updates of 4,096 sequences: each number within 4 of its standard errors; fails with probability 1e-3.
    policy, eta = short_policy(), 3.2e-6
    table = change_by_origin(synthetic_runs(3, 4096, [eta], policy=policy, seed=8))
    rows = {(row["run"], row["part"]): row for row in table.to_dict("records")}
    for name, direction in update_directions(policy, 3, seed=8).items():
        same, total = exact_same_states(policy, direction, eta), entropy_change(policy, direction, eta)
        for part, exact in zip(PARTS, (same, total - same, total), strict=True):
            row = rows[name, part]
            assert row["true"] == pytest.approx(exact, abs=4 * row["true_se"])
        step = 1e-4 * eta
        same = exact_same_states(policy, direction, step) * eta / step  # to first order
        total = entropy_derivative(policy, direction) * eta
        for part, exact in zip(PARTS, (same, total - same, total), strict=True):
            row = rows[name, part]
            assert row["linear"] == pytest.approx(exact, abs=4 * row["linear_se"] + 1e-3 * abs(same))
        assert rows[name, "same states"]["true_se"] < rows[name, "total"]["true_se"] / 2


@pytest.mark.parametrize("n", [64, 256])
def test_intervals_of_both_parts_hold_the_truth_as_often_as_they_say(n: int) -> None:
    # 1,000 batches: 0.88 to 0.92, and four binomial errors (0.038) on either side.
    count, quantile = 1000, student_quantile(n - 1)
    made = world(count * n, 5)
    whole = change_by_origin({"all": made}).iloc[:3].set_index("part").to_dict("index")
    rows = pd.concat([change_by_origin({"run": batch_of(made, n * k, n)}).iloc[:3] for k in range(count)])
    for part, of_part in rows.groupby("part"):
        for name in ("true", "linear"):
            z = (of_part[name] - whole[part][name]) / of_part[f"{name}_se"]
            assert 0.88 - 0.038 <= np.mean(np.abs(z) <= quantile) <= 0.92 + 0.038, (part, name)


def test_the_error_on_the_same_states_is_told_apart_from_curvature() -> None:
    runs = synthetic_runs(3, 256)
    exact = known(same_states_error(runs, 1.6e-6))
    assert list(exact.errors) == [1.6e-6, 3.2e-6]
    # Exact derivatives: all of the error is curvature, which is in proportion to eta.
    assert exact.source == "curvature"
    assert exact.errors[3.2e-6].mean == pytest.approx(2 * exact.errors[1.6e-6].mean, rel=0.05)
    assert abs(known(exact.derivative).mean) < abs(exact.errors[1.6e-6].mean) / 50
    wrong = Runs({name: replace(run, jH_sum=0.97 * known(run.jH_sum)) for name, run in runs.items()})
    found = known(same_states_error(wrong, 3.2e-6))
    assert list(found.errors) == [3.2e-6, 1.6e-6]
    assert known(found.derivative).mean == pytest.approx(-0.03, abs=1e-4)
    assert found.source == "derivative"


def test_the_error_of_runs_that_share_prompts_is_added_once() -> None:
    # 16 prompts with 16 responses each, and a common effect of each prompt on the change: 200 groups of 4 runs.
    rng, held = np.random.default_rng(3), []
    prompts = np.repeat(np.arange(16), 16)
    for _ in range(200):
        common, runs = rng.normal(0, 0.3, 16), {}
        for k in range(4):
            base = random_run(256, seed=int(rng.integers(1 << 30)))
            h_base = known(base.measurements[0].h_base)
            h_new = h_base * (0.9 + 0.1 * common[prompts])
            m = Measurement.from_log_weights(ETAS[0], base.token_counts, h_base, h_new, np.zeros(256))
            runs[f"run_{k}"] = replace(base, measurements=(m,), prompt_ids=prompts)
        pooled = change_by_origin(runs).tail(3).set_index("part").loc["total"]
        held.append(abs(pooled["true"] + 0.1 * 0.6) <= 1.75 * pooled["true_se"])  # t on 15 df
    assert np.mean(held) > 0.82


def test_the_error_on_the_same_states_needs_the_score_and_two_etas_to_be_told_apart() -> None:
    one = known(same_states_error(synthetic_runs(2, 128, [1.6e-6]), 1.6e-6))
    assert one.derivative is None
    assert one.source == "either"
    assert same_states_error(Runs({"run": totals_only_run()}), 1e-6) is None
    flat = altered(random_run(), h_new=lambda h_new: h_new * 0 + known(random_run().measurements[0].h_base))
    assert same_states_error(Runs({"run": flat}), ETAS[0]) is None  # no change to compare with


def test_without_score_the_true_part_is_known_and_without_base_entropies_nothing() -> None:
    table = change_by_origin({"run": totals_only_run()})
    assert table["true"].notna().all()
    assert table[["linear", "error"]].isna().all(axis=None)
    bare = altered(random_run(), h_base=None)
    with pytest.warns(RunWarning, match="skipped bare: h_base is not recorded"):
        assert change_by_origin({"bare": bare}).empty
