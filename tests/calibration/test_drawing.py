import numpy as np
import pytest

from analysis_helpers import Runs
from analysis_helpers.estimators import columns
from analysis_helpers.inference.prediction import pooled_err_rel
from tests.building import ETAS, estimate, random_run
from tests.calibration.drawing import ETA, batch_of, named, replicates, shifted


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
    one, other = (list(replicates(3, [64, 64, 16], seed=4)) for _ in range(2))
    assert one == other
    assert one[0][0] != one[1][0]
    assert one[0][0] != one[0][1]
    assert [run.n for run in one[0]] == [64, 64, 16]


def test_spread_between_runs_and_bias_are_those_put_in() -> None:
    drawn = replicates(20, [256] * 4, tau=1.0, bias=4.0)
    values = [pooled_err_rel(named(runs), ETA).values.mean() for runs in drawn]
    # The mean of 80 runs, each 4 +- sqrt(1 + 0.06): known to 0.12; six standard errors.
    assert np.mean(values) == pytest.approx(4.0, abs=0.7)
