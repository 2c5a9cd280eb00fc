from __future__ import annotations

import numpy as np
import pytest

from analysis_helpers import Run, simulate_err_rel_across_runs
from analysis_helpers import drawn_subsets as module
from analysis_helpers.checks import FloatArray, RunError
from analysis_helpers.drawn_subsets import DrawnSubsets, supported_estimators
from analysis_helpers.subsampling import subset_sums
from tests.building import random_run

ETAS = (1.6e-6, 3.2e-6)
ESTIMATORS = ("partial_sum", "ratio", "matched")


@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_kept_subsets_give_the_numbers_of_subsets_drawn_for_the_question(
    large_runs: dict[str, Run], eta: float, estimator: str
) -> None:
    kept = DrawnSubsets(large_runs, 100, 30, seed=5).err_rel(eta, estimator=estimator)
    fresh = simulate_err_rel_across_runs(large_runs, [eta], 100, num_samples=30, seed=5, estimator=estimator)
    assert kept[["run", "eta"]].equals(fresh[["run", "eta"]])
    assert kept["err_rel"].to_numpy() == pytest.approx(fresh["err_rel"].to_numpy(), rel=1e-9)


def test_subsets_are_drawn_once_for_all_runs_of_equal_size_etas_and_estimators(
    large_runs: dict[str, Run], small_runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    widths = []

    def counted(values: FloatArray, size: int, count: int, rng: np.random.Generator) -> FloatArray:
        widths.append(values.shape)
        return subset_sums(values, size, count, rng)

    monkeypatch.setattr(module, "subset_sums", counted)
    drawn = DrawnSubsets({**large_runs, "small": small_runs["run_01"]}, 64, 10)
    for eta in ETAS:
        for estimator in ESTIMATORS:
            assert len(drawn.err_rel(eta, estimator=estimator)) == 50
    # Five columns that no eta changes, and w T and w h_new at each of two.
    assert sorted(widths) == [(256, 9), (2048, 36)]


def test_the_first_of_many_subsets_are_those_that_fewer_draws_give(large_runs: dict[str, Run]) -> None:
    many, few = (DrawnSubsets(large_runs, 50, count, seed=1) for count in (40, 15))
    first = many.err_rel(ETAS[0], first=15)
    assert first["err_rel"].to_numpy() == pytest.approx(few.err_rel(ETAS[0])["err_rel"].to_numpy(), rel=1e-12)


def test_only_what_every_run_records_is_on_offer(large_runs: dict[str, Run]) -> None:
    bare = random_run(score=False)
    assert supported_estimators(large_runs) == ["partial_sum", "ratio", "matched"]
    assert supported_estimators({"bare": bare}) == ["partial_sum", "ratio"]
    with pytest.raises(RunError, match="jH_sum"):
        DrawnSubsets({"bare": bare}, 2, 3).err_rel(1e-6, estimator="matched")


def test_a_run_smaller_than_the_subset_is_left_out_with_a_warning(
    large_runs: dict[str, Run], small_runs: dict[str, Run]
) -> None:
    drawn = DrawnSubsets({**large_runs, "small": small_runs["run_01"]}, 300, 2)
    with pytest.warns(UserWarning, match="skipped small: it has 256 sequences"):
        assert set(drawn.err_rel(ETAS[0])["run"]) == set(large_runs)
