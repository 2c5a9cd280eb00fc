"""The key numbers of the notebooks, each recomputed by the second implementation: as stored, and with other parameters.

Every number of a collected result is a key number.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest

from analysis_helpers.report.pages import collected_result
from analysis_helpers.runs.run import Run
from analysis_helpers.synthetic.policy import Policy
from analysis_helpers.synthetic.runs import update_direction
from analysis_helpers.synthetic.validation import ETA, replicates, short_policy, true_spread, verdict_rates
from tests.conftest import REPOSITORY
from tests.plain import answers, errors, known_truth
from tests.plain.notebooks import RECOMPUTED
from tests.plain.reading import Batch, Step

papermill = pytest.importorskip("papermill", reason="the extra 'notebooks' is not installed")
NOTEBOOKS = REPOSITORY / "notebooks"
SAMPLES = REPOSITORY / "data_samples"
SPREAD_BETWEEN, BIASES = 0.2, [0.0, 0.3, 0.5, 0.75, 1.5]  # in 05_known_truth


def assert_recomputed(result: dict[str, Any], root: Path) -> None:
    """Hold every number that a notebook collected against the second implementation."""
    expected = RECOMPUTED[result["notebook"]](root, result["parameters"])
    assert len(result["rows"]) == len(expected)
    for row, plain in zip(result["rows"], expected, strict=True):
        assert set(row) == set(plain)
        for name, value in plain.items():
            exact = value is None or isinstance(value, str)
            assert row[name] == (value if exact else pytest.approx(value, rel=1e-8, abs=1e-9)), name


def test_no_notebook_is_left_out() -> None:
    known = {*RECOMPUTED, "05_known_truth"}  # the last one further down
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == known


def stored(notebook: str) -> dict[str, Any]:
    return collected_result(nbformat.read(NOTEBOOKS / f"{notebook}.ipynb", as_version=4))


def rerun(notebook: str, folder: Path, **parameters: Any) -> dict[str, Any]:
    """Run a notebook through plain papermill from another folder."""
    target = folder / "out.ipynb"
    papermill.execute_notebook(
        NOTEBOOKS / f"{notebook}.ipynb", target, parameters=parameters, progress_bar=False, cwd=folder
    )
    return collected_result(nbformat.read(target, as_version=4))


@pytest.mark.parametrize("notebook", RECOMPUTED)
def test_stored_numbers_are_those_of_the_second_implementation(notebook: str) -> None:
    assert_recomputed(stored(notebook), SAMPLES)


OTHERS: dict[str, dict[str, Any]] = {
    "00_start_here": {"eta": 3.2e-6, "subset_size": 800, "tolerance": 0.5, "probability": 0.8},
    "01_load_runs": {"large_batch": "E_256", "eta": "3.2e-6"},
    "02_batch_size_comparison": {"eta": 3.2e-6, "subset_size": 64.0, "num_samples": 20, "seed": 7, "tolerance": 1.8},
    "03_subsampling_distribution": {
        "etas": "[3.2e-6, 1.6e-6]",
        "subset_size": 32,
        "samples_per_eta": 15,
        "seed": 1,
    },
    "06_explore": {"eta": 3.2e-6, "subset_size": 64, "estimator": "partial_sum", "tolerance": 0.8, "seed": 5},
    "04_choosing_a_batch_size": {"etas": [3.2e-6], "tolerance": 0.8, "probability": 0.8, "seed": 3},
}


SLOW = {"00_start_here", "04_choosing_a_batch_size"}
each_of_the_others = [
    pytest.param(name, marks=pytest.mark.slow) if name in SLOW else pytest.param(name) for name in OTHERS
]


@pytest.mark.parametrize("notebook", each_of_the_others)
def test_with_other_parameters_from_another_folder_too(notebook: str, tmp_path: Path) -> None:
    result = rerun(notebook, tmp_path, **OTHERS[notebook])
    assert result["parameters"] != stored(notebook)["parameters"]
    assert_recomputed(result, SAMPLES)


@pytest.mark.slow
@pytest.mark.parametrize("notebook", RECOMPUTED)
def test_on_real_runs_too(notebook: str, tmp_path: Path, research_root: Path) -> None:
    result = rerun(notebook, tmp_path, data_root=str(research_root))
    assert_recomputed(result, research_root)


# 05_known_truth: runs are drawn in memory, so the second implementation takes them as they are.


def as_batch(run: Run) -> Batch:
    """Return a run in memory as the second implementation reads one."""
    assert run.score is not None
    assert run.gdotv is not None
    steps = []
    for m in run.measurements:
        assert m.h_base is not None
        weighted = float(np.sum(m.weights * run.token_counts))
        lists = (m.weights.tolist(), m.h_base.tolist(), m.h_new.tolist())
        steps.append(Step(m.eta, m.delta_h_true, m.base_entropy, *lists, weighted))
    score = (-run.score.denom_corr_unscaled / run.score.h_base_mean).tolist()
    direct = run.score.jH_sum.tolist()
    tokens, linear = run.token_counts.tolist(), run.gdotv.tolist()
    return Batch(tokens, linear, run.delta_h_per_lr, score, direct, run.score.h_base_mean, steps)


def short_world() -> tuple[Policy, known_truth.Logits, known_truth.Logits]:
    """Return the policy of the notebook, its logits, and the update direction, as lists."""
    policy = short_policy()
    direction, _ = update_direction(policy, np.random.default_rng(3))
    return policy, policy.logits.tolist(), direction.tolist()


def exact_error() -> float:
    """Return the exact err_rel of going straight, from entropies state by state."""
    policy, logits, direction = short_world()
    change = known_truth.change_of_entropy(logits, direction, ETA, policy.max_length)
    slope = known_truth.slope_of_entropy(logits, direction, ETA, policy.max_length)
    return (ETA * slope - change) / change


def test_how_often_an_update_or_a_batch_truly_keeps_to_the_tolerance() -> None:
    error = exact_error()
    for row in stored("05_known_truth")["rows"]:
        mean, sd = (
            (row["setting"] + error, SPREAD_BETWEEN)
            if row["question"] == "linear_trusted"
            else (0.0, true_spread() / math.sqrt(row["setting"]))
        )
        within = known_truth.probability_within(0.5, mean, sd)
        assert row["within"] == pytest.approx(within, rel=1e-7, abs=1e-9)
        assert row["truth"] == ("yes" if within >= 0.9 else "no")
        assert row["yes"] + row["no"] + row["cannot_tell"] == pytest.approx(1)


def test_the_spread_that_is_taken_for_true() -> None:
    policy, logits, direction = short_world()
    change = known_truth.change_of_entropy(logits, direction, ETA, policy.max_length)
    spreads = []
    for each in replicates(40, fresh_size=2, seed=9):
        for run in each.large.values():
            psi = errors.error_influence(as_batch(run), ETA, change)
            spreads.append(errors.spread(psi) ** 2)
    # S² from 82,000 sequences of its own: SD about 0.6 %, so that 3 % are five of its standard errors.
    assert true_spread() ** 2 == pytest.approx(np.mean(spreads), rel=0.03)


def plain_rates(count: int, seed: int, sizes: list[int]) -> dict[tuple[str, float], list[float]]:
    """Return shares of "yes", "no" and "cannot tell", by the second implementation, on the same runs."""
    said: dict[tuple[str, float], list[str]] = {}
    for bias in BIASES:
        for each in replicates(count, tau=SPREAD_BETWEEN, bias=bias, seed=seed, fresh_size=2):
            known = answers.pilot({name: as_batch(run) for name, run in each.large.items()}, ETA)
            found = [answers.answers(known, n, 0.5, 0.9) for n in sizes]
            said.setdefault(("linear_trusted", bias), []).append(found[0].linear_trusted)
            for n, answer in zip(sizes, found, strict=True):
                if bias == BIASES[0]:
                    said.setdefault(("enough", n), []).append(answer.enough)
    return {key: [given.count(a) / count for a in ("yes", "no", "cannot tell")] for key, given in said.items()}


def test_how_often_each_verdict_is_given() -> None:
    sizes = [64, 165]
    found = verdict_rates(BIASES, sizes, tau=SPREAD_BETWEEN, count=5, seed=11)
    expected = plain_rates(5, 11, sizes)
    for row in found.to_dict("records"):
        shares = [row["yes"], row["no"], row["cannot_tell"]]
        assert shares == expected[str(row["question"]), float(row["setting"])]


@pytest.mark.slow
def test_how_often_each_verdict_is_given_as_stored_and_with_other_parameters(tmp_path: Path) -> None:
    for result in (stored("05_known_truth"), rerun("05_known_truth", tmp_path, replicates=8, seed=2)):
        sizes = [int(row["setting"]) for row in result["rows"] if row["question"] == "enough"]
        expected = plain_rates(result["parameters"]["replicates"], result["parameters"]["seed"], sizes)
        for row in result["rows"]:
            assert [row["yes"], row["no"], row["cannot_tell"]] == expected[row["question"], row["setting"]]
