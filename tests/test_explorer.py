from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

pytest.importorskip("ipywidgets", reason="the extra 'lab' is not installed")

from analysis_helpers.estimators import ESTIMATORS
from analysis_helpers.exploration import Choice, Exploration
from analysis_helpers.explorer import FALLBACK, Explorer

START = Choice("E_2048", "E_256", 1.6e-6, 256, num_samples=50)


@pytest.fixture
def explorer(sample_root: Path) -> Explorer:
    return Explorer(Exploration(sample_root), START)


def shown(explorer: Explorer) -> str:
    return str(explorer._answers.value + explorer._numbers.value + explorer._reasons.value)


def test_it_begins_where_it_is_told_with_figure_table_and_verdict(explorer: Explorer) -> None:
    assert {name: control.value for name, control in explorer.controls.items()} == {
        "large_batch": "E_2048",
        "small_batch": "E_256",
        "eta": 1.6e-6,
        "estimator": "ratio",
        "subset_size": 256,
        "num_samples": 50,
        "tolerance": 0.25,
    }
    assert "Is a batch of 256 enough? <b>no</b>" in shown(explorer)
    assert "SD of err_rel over subsets of 256" in shown(explorer)
    assert bytes(explorer._figure.value).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("control", "value"),
    [
        ("eta", 3.2e-6),
        ("subset_size", 64),
        ("estimator", "partial_sum"),
        ("num_samples", 200),
        ("tolerance", 1.0),
        ("large_batch", "E_256"),
        ("small_batch", "E_2048"),
    ],
)
def test_every_control_changes_what_is_shown(explorer: Explorer, control: str, value: object) -> None:
    before, figure = shown(explorer), explorer._figure.value
    explorer.controls[control].value = value
    assert getattr(explorer.choice, control) == value
    assert shown(explorer) != before
    assert explorer._figure.value != figure


def test_the_closed_form_stands_there_before_anything_is_drawn(
    explorer: Explorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def draws(self: Exploration, choice: Choice) -> pd.DataFrame:
        seen.append((explorer._status.value, shown(explorer), explorer._figure.value))
        return original(self, choice)

    original = Exploration.draws
    monkeypatch.setattr(Exploration, "draws", draws)
    figure = explorer._figure.value
    explorer.controls["subset_size"].value = 64
    [(status, text, early)] = seen
    assert status == "Drawing 50 subsets of 64 from each large run …"
    assert "SD of err_rel over subsets of 64" in text
    assert "Is a batch of 64 enough" in text
    assert early not in (figure, explorer._figure.value)
    assert explorer._status.value == ""


def test_another_folder_offers_what_it_has(explorer: Explorer) -> None:
    explorer.controls["large_batch"].value = "E_256"
    assert explorer.controls["subset_size"].value == 192
    assert max(value for _, value in explorer.controls["subset_size"].options) == 192


def test_warnings_about_runs_stand_below_the_verdict(explorer: Explorer) -> None:
    explorer.controls["small_batch"].value = "E_2048"
    assert "<b>Note:</b> run_01 is the same run as run_01, from which it is predicted." in shown(explorer)


def test_what_goes_wrong_is_told_in_place_of_an_answer_and_does_not_last(
    explorer: Explorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Exploration, choice: Choice) -> None:
        raise ValueError("no run has <this> eta")

    with monkeypatch.context() as patched:
        patched.setattr(Exploration, "closed_form", fail)
        explorer.controls["eta"].value = 3.2e-6
    assert shown(explorer) == "<b>No answer:</b> no run has &lt;this&gt; eta"
    assert explorer._figure.value == b""
    explorer.controls["eta"].value = 1.6e-6
    assert "Is a batch of 256 enough? <b>no</b>" in shown(explorer)


def test_a_folder_with_no_usable_run_is_told(tmp_path: Path, sample_root: Path) -> None:
    (tmp_path / "E_2048").symlink_to(sample_root / "E_2048")
    (tmp_path / "E_bad" / "run_01").mkdir(parents=True)
    (tmp_path / "E_bad" / "run_01" / "results.json").write_text("{")
    explorer = Explorer(Exploration(tmp_path), replace(START, small_batch="E_2048"))
    explorer.controls["large_batch"].value = "E_bad"
    assert "must be complete JSON" in shown(explorer)
    explorer.controls["large_batch"].value = "E_2048"
    assert "Is a batch of 256 enough?" in shown(explorer)


def test_without_a_kernel_a_sentence_stands_in(explorer: Explorer) -> None:
    bundle = explorer._repr_mimebundle_()
    assert bundle["text/html"] == FALLBACK
    assert "application/vnd.jupyter.widget-view+json" in bundle


@pytest.mark.parametrize(("estimator", "said"), [("ratio", False), ("matched", True), ("partial_sum", True)])
def test_answers_are_by_the_ratio_and_say_so_where_another_estimator_is_shown(
    explorer: Explorer, estimator: str, said: bool
) -> None:
    explorer.controls["estimator"].value = estimator
    assert ("By the ratio: " in explorer._answers.value) == said
    assert explorer._numbers.value.count(", by the ratio") == (3 if said else 0)
    assert "3,201" in explorer._numbers.value  # as in the reasons of the verdict
    assert "about 3,201 sequences on" in explorer._reasons.value


def test_a_run_that_is_left_out_is_told_however_often_controls_move(tmp_path: Path, sample_root: Path) -> None:
    for folder in ("E_2048", "E_256"):
        (tmp_path / folder).mkdir()
        for run in (sample_root / folder).iterdir():
            (tmp_path / folder / run.name).symlink_to(run)
    (tmp_path / "E_2048" / "run_05").mkdir()
    (tmp_path / "E_2048" / "run_05" / "results.json").write_text("{")
    explorer = Explorer(Exploration(tmp_path), START)
    for size in (64, 128, 64):
        explorer.controls["subset_size"].value = size
        assert shown(explorer).count("<b>Note:</b> skipped run_05") == 1


def test_an_estimator_that_no_figure_knows_is_not_on_offer(sample_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ESTIMATORS, "other", replace(ESTIMATORS["ratio"], name="other"))
    offered = Explorer(Exploration(sample_root), START).controls["estimator"].options
    assert [name for _, name in offered] == ["partial_sum", "ratio", "matched"]
