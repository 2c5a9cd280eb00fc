import json
from pathlib import Path

import numpy as np
import pytest

import analysis_helpers as ah
from analysis_helpers.estimators import columns
from analysis_helpers.synthetic.policy import entropy_derivative, per_token_entropy
from analysis_helpers.synthetic.runs import default_policy, update_directions


def test_runs_are_named_sized_and_fixed_by_a_seed_whatever_their_number() -> None:
    runs = ah.synthetic_runs(3, 40, [1e-6], seed=5)
    assert list(runs) == ["run_01", "run_02", "run_03"]
    assert all(run.n == 40 and run.etas == (1e-6,) for run in runs.values())
    assert runs["run_01"] != runs["run_02"]
    assert runs["run_02"] == ah.synthetic_runs(2, 40, [1e-6], seed=5)["run_02"]
    assert runs["run_01"] != ah.synthetic_runs(1, 40, [1e-6], seed=6)["run_01"]
    assert {"linear", "score", "baseline_entropy"} <= set(runs["run_01"].supports)
    assert runs["run_01"].problems == ()


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
            true, linear = columns(run, m.eta).estimates
            expected = (exact["change"][repr(m.eta)], m.eta * exact["derivative"])
            errors = np.subtract((true.value, linear.value), expected)
            spreads = (true.spread, linear.spread)
            assert (np.abs(errors) < 4.5 * np.array(spreads) / np.sqrt(run.n)).all()


def test_the_centred_baseline_changes_only_the_noise_of_the_linear_terms() -> None:
    """Same sequences, same true change; the SE of the linear change is less than a quarter (a fifth, in fact)."""
    policy = default_policy()
    usual, centred = (ah.synthetic_runs(2, 512, baseline=baseline) for baseline in ("entropy_to_go", "centred"))
    for name, direction in update_directions(policy, 2, seed=0).items():
        one, other = usual[name], centred[name]
        assert [m.delta_h_true for m in one.measurements] == [m.delta_h_true for m in other.measurements]
        spread = [columns(run, 1.6e-6).estimates[1].spread for run in (one, other)]
        assert spread[1] < spread[0] / 4
        exact = entropy_derivative(policy, direction)  # within 4.5 standard errors
        assert abs(other.delta_h_per_lr - exact) < 4.5 * spread[1] / 1.6e-6 / np.sqrt(512)
