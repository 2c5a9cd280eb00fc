import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import analysis_helpers as ah
from analysis_helpers.estimators import columns, estimate, influence_values
from analysis_helpers.runs import integrity_problems
from analysis_helpers.synthetic.policy import per_token_entropy, random_policy
from analysis_helpers.synthetic.runs import SAMPLE_ETAS, default_policy, synthetic_runs_with_truth
from tests.building import Runs, known


def distances(run: ah.Run, eta: float, change: float, derivative: float) -> list[float]:
    """Return how far the true and the linear change are off the exact ones, in their standard errors."""
    exact = change, eta * derivative
    psis = influence_values(columns(run, eta, "ratio"))
    errors = [psi.std(ddof=1) / np.sqrt(run.num_sequences) for psi in psis]
    return [(found - x) / error for found, x, error in zip(estimate(run, eta), exact, errors, strict=True)]


def distance_in_standard_errors(size: int, seed: int) -> list[float]:
    [made] = synthetic_runs_with_truth(1, size, seed=seed).values()
    found = (distances(made.run, eta, made.exact_change(eta), made.exact_derivative()) for eta in SAMPLE_ETAS)
    return [distance for both in found for distance in both]


def test_runs_are_named_sized_and_fixed_by_a_seed_whatever_their_number() -> None:
    runs = ah.synthetic_runs(3, 40, [1e-6], seed=5)
    assert list(runs) == ["run_01", "run_02", "run_03"]
    assert all(run.num_sequences == 40 and run.etas == (1e-6,) for run in runs.values())
    assert runs["run_01"] != runs["run_02"]
    assert runs["run_02"] == ah.synthetic_runs(2, 40, [1e-6], seed=5)["run_02"]
    assert runs["run_01"] != ah.synthetic_runs(1, 40, [1e-6], seed=6)["run_01"]
    assert {"linear", "score", "baseline_entropy"} <= set(runs["run_01"].supports)
    assert integrity_problems(runs["run_01"]) == []


def test_another_policy_can_be_used() -> None:
    policy = random_policy(np.random.default_rng(0), num_prompts=1, num_tokens=4, max_length=10)
    run = ah.synthetic_runs(1, 50, policy=policy)["run_01"]
    assert run.token_counts.max() <= 10
    assert run.measurements[0].base_entropy == pytest.approx(per_token_entropy(policy), rel=0.2)


@pytest.mark.parametrize("size", [1_000, 20_000])
def test_true_and_linear_come_closer_to_the_exact_answer_as_the_batch_grows(size: int) -> None:
    # Within 4 standard errors, which shrink with the root of N: two nearly independent numbers a size fail with 1.3e-4.
    assert np.max(np.abs(distance_in_standard_errors(size, seed=3))) < 4


def test_linear_and_true_are_different_estimators_of_one_thing() -> None:
    [made] = synthetic_runs_with_truth(1, 2000, seed=1).values()
    psi_true, psi_linear = influence_values(columns(made.run, 1.6e-6, "ratio"))
    assert psi_linear.std() > 2 * psi_true.std()
    assert made.exact_change(1.6e-6) == pytest.approx(1.6e-6 * made.exact_derivative(), rel=0.01)


def test_the_identities_of_the_recorded_terms_hold(large_runs: Runs) -> None:
    for run in large_runs.values():
        terms, total = known(run.score), run.total_tokens
        parts = terms.wjlogp_sum + terms.jH_sum + terms.denom_corr_unscaled
        assert np.max(np.abs(known(run.gdotv) * total - parts)) < 1e-9 * np.max(np.abs(parts))
        for m in run.measurements:
            weights = np.exp(known(m.log_weights))
            assert terms.h_base_mean == pytest.approx(known(m.h_base).sum() / total, rel=1e-9)
            assert weights / weights.sum() == pytest.approx(m.weights, rel=1e-9)
            assert m.ess == pytest.approx(1 / (m.weights @ m.weights), rel=1e-9)


def test_the_sample_data_resemble_real_runs(large_runs: Runs) -> None:
    for run in large_runs.values():
        assert 80 <= run.token_counts.mean() <= 140
        for m in run.measurements:
            assert known(m.ess) / run.num_sequences >= 0.99
            assert 0.3 <= m.base_entropy <= 1.3
            assert -2e-3 < m.delta_h_true / (m.eta / 1.6e-6) < -0.5e-3
    draws: dict[str, Any] = {"subset_size": 256, "samples_per_eta": 500, "seed": 1}
    chosen: dict[str, Any] = {"estimator": "ratio", "references": ah.reference_true_totals(large_runs)}
    ratio, partial_sum = (
        ah.summarize_err_rel_distribution(ah.sample_err_rel_across_runs(large_runs, SAMPLE_ETAS, **draws, **more))
        for more in (chosen, {})
    )
    assert ratio["std_err_rel"].between(0.3, 1.5).all()
    assert 1.6 <= partial_sum["std_err_rel"][0] / partial_sum["std_err_rel"][1] <= 2.4


def test_sample_data_are_small_and_come_out_as_committed(tmp_path: Path, sample_root: Path) -> None:
    ah.write_sample_data(tmp_path)
    written, committed = ({path.relative_to(root) for path in root.rglob("*.json")} for root in (tmp_path, sample_root))
    assert committed == written
    assert len(written) == 9
    assert sum(p.stat().st_size for p in sample_root.rglob("*") if p.is_file()) < 10e6
    for batch in ("E_2048", "E_256"):
        made, stored = ah.load_runs(tmp_path / batch), ah.load_runs(sample_root / batch)
        for name, run in made.items():  # to rounding: another processor may differ in the last digits
            assert run.gdotv == pytest.approx(stored[name].gdotv, rel=1e-6, abs=1e-9)
            for m in run.measurements:
                assert m.weights == pytest.approx(stored[name].measurement(m.eta).weights, rel=1e-9)


def test_the_exact_answers_beside_the_sample_data_are_those_of_the_policy(sample_root: Path) -> None:
    truth = json.loads((sample_root / "exact_change.json").read_text())
    assert truth["per_token_entropy"] == pytest.approx(per_token_entropy(default_policy()), rel=1e-12)
    for name, exact in truth["runs"].items():
        batch, run_name = name.split("/")
        run = ah.load_runs(sample_root / batch)[run_name]
        for m in run.measurements:  # within 4.5 standard errors; 32 numbers fail by chance with probability 2e-4
            found = distances(run, m.eta, exact["change"][repr(m.eta)], exact["derivative"])
            assert np.max(np.abs(found)) < 4.5


def test_the_centred_baseline_changes_only_the_noise_of_the_linear_terms() -> None:
    """Same sequences, same true change; the SE of the linear change is less than a quarter (a fifth, in fact)."""
    usual, centred = (synthetic_runs_with_truth(2, 512, baseline=baseline) for baseline in ("entropy_to_go", "centred"))
    for name, made in usual.items():
        one, other = made.run, centred[name].run
        assert [m.delta_h_true for m in one.measurements] == [m.delta_h_true for m in other.measurements]
        spread = [influence_values(columns(run, 1.6e-6, "ratio"))[1].std(ddof=1) for run in (one, other)]
        assert spread[1] < spread[0] / 4
        exact = made.exact_derivative()  # within 4.5 standard errors
        assert abs(other.delta_h_per_lr - exact) < 4.5 * spread[1] / 1.6e-6 / np.sqrt(512)


def test_an_unknown_baseline_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="baseline must be one of 'entropy_to_go', 'centred', got 'mean'"):
        ah.synthetic_runs(1, 10, baseline="mean")  # type: ignore[arg-type]
