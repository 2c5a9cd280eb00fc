import numpy as np
import pytest

from analysis_helpers import synthetic_runs
from analysis_helpers._checks import FloatArray, RunWarning
from analysis_helpers.inference.origin import change_by_origin
from analysis_helpers.synthetic.policy import END, Policy, entropy_change
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
    # Three updates of 4,096 sequences: each number within 4 of its standard errors; fails with probability 4e-4.
    policy, eta = short_policy(), 3.2e-6
    table = change_by_origin(synthetic_runs(3, 4096, [eta], policy=policy, seed=8))
    rows = {(row["run"], row["part"]): row for row in table.to_dict("records")}
    for name, direction in update_directions(policy, 3, seed=8).items():
        same, total = exact_same_states(policy, direction, eta), entropy_change(policy, direction, eta)
        for part, exact in zip(PARTS, (same, total - same, total), strict=True):
            row = rows[name, part]
            assert row["true"] == pytest.approx(exact, abs=4 * row["true_se"])
        assert rows[name, "same states"]["true_se"] < rows[name, "total"]["true_se"] / 2


def test_intervals_of_the_part_on_the_same_states_hold_the_truth_as_often_as_they_say() -> None:
    # 400 batches of 64: 0.90 +- 0.015, and two of these on either side.
    made = world(400 * 64, 5)
    whole = change_by_origin({"all": made}).iloc[0]
    rows = [change_by_origin({"run": batch_of(made, 64 * k, 64)}).iloc[0] for k in range(400)]
    z = [(row["true"] - whole["true"]) / row["true_se"] for row in rows]
    assert np.mean(np.abs(z) <= 1.67) == pytest.approx(0.90, abs=0.03)  # t on 63 df


def test_without_score_the_true_part_is_known_and_without_base_entropies_nothing() -> None:
    table = change_by_origin({"run": totals_only_run()})
    assert table["true"].notna().all()
    assert table[["linear", "error"]].isna().all(axis=None)
    bare = altered(random_run(), h_base=None)
    with pytest.warns(RunWarning, match="skipped bare: h_base is not recorded"):
        assert change_by_origin({"bare": bare}).empty
