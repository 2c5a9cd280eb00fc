import numpy as np
import pytest

from analysis_helpers.estimators import columns
from analysis_helpers.inference import pilot_of
from analysis_helpers.synthetic.validation import ETA, batch_of, replicates, shifted
from tests.building import ETAS, Runs, estimate, random_run


def test_a_part_of_a_batch_is_the_run_that_its_sequences_would_give(large_runs: Runs) -> None:
    run = large_runs["run_01"]
    batch = columns(run, ETA, "ratio")
    true, linear = batch.estimate(batch.values[100:300].sum(axis=0))
    part = batch_of(run, 100, 200)
    assert estimate(part, ETA) == pytest.approx((float(true), float(linear)), rel=1e-9)
    assert part.etas == run.etas


def test_a_shift_moves_the_linear_change_of_every_subset_alike_and_nothing_else() -> None:
    run = random_run()
    moved = shifted(run, 3.0)
    for rows in (slice(None), slice(2, 7)):
        one, other = (
            batch.estimate(batch.values[rows].sum(axis=0)) for batch in (columns(r, ETAS[0]) for r in (run, moved))
        )
        assert other[0] == pytest.approx(one[0], rel=1e-12)
        assert other[1] - one[1] == pytest.approx(3.0 * ETAS[0], rel=1e-6)


def test_replicates_are_drawn_anew_and_the_same_for_the_same_seed() -> None:
    one, other = (list(replicates(3, num_large=2, large_size=64, fresh_size=16, seed=4)) for _ in range(2))
    assert [each.large == again.large for each, again in zip(one, other, strict=True)] == [True] * 3
    assert one[0].large["run_01"] != one[1].large["run_01"]
    assert one[0].large["run_01"] != one[0].large["run_02"]
    assert [run.num_sequences for run in (*one[0].large.values(), one[0].fresh)] == [64, 64, 16]


def test_spread_between_runs_and_bias_are_those_put_in() -> None:
    drawn = replicates(20, num_large=4, large_size=256, fresh_size=2, tau=1.0, bias=4.0)
    values = [pilot_of(each.large, ETA).values.mean() for each in drawn]
    # The mean of 80 runs, each 4 +- sqrt(1 + 0.06): known to 0.12; six standard errors.
    assert np.mean(values) == pytest.approx(4.0, abs=0.7)
