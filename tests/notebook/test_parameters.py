import re
import warnings
from base64 import b64decode
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, strategies as st

from analysis_helpers import synthetic_runs, write_run
from analysis_helpers._checks import RunWarning
from analysis_helpers.notebook.display import RESULT_MIME, AnswerInBrief, readable, show_result
from analysis_helpers.notebook.parameters import ParameterError, notebooks_folder, read_parameters, resolve_data_root
from analysis_helpers.synthetic.runs import with_log_weights
from tests.building import refused
from tests.conftest import REPOSITORY

ROOT = {"data_root": str(REPOSITORY / "data_samples")}


@pytest.fixture
def display(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """Return what stands for IPython's display."""
    made = Mock()
    monkeypatch.setattr("IPython.display.display", made)
    return made


@given(st.floats(1e-9, 1.0), st.integers(1, 10**9))
def test_a_value_means_the_same_as_a_number_and_as_text(eta: float, size: int) -> None:
    as_number, as_text = (read_parameters({"eta": value}).eta for value in (eta, repr(eta)))
    assert as_number == as_text
    assert as_number == pytest.approx(eta, rel=1e-11)
    values = [size, float(size), str(size), f"{float(size)!r}"]
    assert {read_parameters({"subset_size": value}).subset_size for value in values} == {size}


def test_etas_may_come_as_a_list_as_text_or_as_one_number() -> None:
    for etas in ([1.6e-6, "3.2e-6"], (1.6e-6, 3.2e-6), "[1.6e-6, 3.2e-6]", "1.6e-6, 3.2e-6"):
        assert read_parameters({"etas": etas}).etas == [1.6e-6, 3.2e-6]
    assert read_parameters({"etas": "2e-6"}).etas == read_parameters({"etas": 2e-6}).etas == [2e-6]


@pytest.mark.parametrize(
    ("name", "values", "rule"),
    [
        ("eta", [-1, "small", float("nan")], "must be a positive step size"),
        ("etas", [[], [1e-6, 0], ""], "must be a list of positive step sizes"),
        ("subset_size", [256.5, 0], "must be a whole number of at least 1"),
        ("num_samples", ["many"], "must be a whole number of at least 1"),
        ("samples_per_eta", [float("inf")], "must be a whole number of at least 1"),
        ("tolerance", [0, -0.5, "much"], "must be a positive number"),
        ("probability", [0, 1, 90, None], "must lie between 0 and 1"),
        ("estimator", ["rato"], "must be one of 'partial_sum', 'ratio'"),
        ("seed", [-1, True], "must be a whole number of at least 0"),
        ("large_batch", ["E_4096", 2048], "must be "),
        ("data_root", ["../nowhere", ""], "must be "),
    ],
)
def test_a_bad_parameter_stops_with_one_sentence(name: str, values: list[Any], rule: str) -> None:
    for value in values:
        with refused(f"{name} {rule}", repr(value), error=ParameterError):
            read_parameters({**ROOT, name: value})


def test_parameters_that_the_notebook_has_are_recorded_in_their_types() -> None:
    assert read_parameters({"seed": 0, "other": 3}).recorded() == {"seed": 0}
    values = {**ROOT, "large_batch": "E_256", "small_batch": "", "eta": "3.2e-6", "subset_size": 1e2}
    assert read_parameters(values).recorded() == {**values, "eta": 3.2e-6, "subset_size": 100}


OPEN = dict.fromkeys(["large_batch", "small_batch", "eta", "etas", "subset_size"])


def own_data(root: Path, **batches: tuple[int, Mapping[str, tuple[float, ...]]]) -> dict[str, object]:
    """Write runs of a size at their own step sizes, and return the parameters of a notebook that leaves all open."""
    for batch, (size, runs) in batches.items():
        for seed, (name, etas) in enumerate(runs.items()):
            run = synthetic_runs(1, size, seed=seed, etas=etas)["run_01"]
            write_run(root / batch / name / "results.json", run)
    return {"data_root": str(root), **OPEN}


def test_parameters_of_none_are_chosen_from_the_data(tmp_path: Path) -> None:
    mine = own_data(tmp_path, tiny=(32, {"a": (1e-6,)}), big=(96, {"a": (1e-6, 4e-6), "b": (1e-6, 2e-6)}))
    chosen = read_parameters(mine)
    assert (chosen.large_batch, chosen.small_batch, chosen.subset_size) == ("big", "tiny", 32)
    assert (chosen.eta, chosen.etas) == (1e-6, [1e-6])
    alone = read_parameters({**mine, "large_batch": "tiny"})
    assert (alone.small_batch, alone.subset_size, len(alone.small_runs())) == ("", 4, 0)
    without = read_parameters({**mine, "small_batch": "", "eta": 4e-6})
    assert (without.small_batch, without.subset_size, without.eta) == ("", 12, 4e-6)
    assert set(OPEN) <= set(chosen.table()["parameter"])
    assert (chosen.table().set_index("parameter")["source"] != "").sum() == len(OPEN)


def test_batch_folders_without_a_usable_run_are_named(tmp_path: Path) -> None:
    mine = own_data(tmp_path, tiny=(32, {"a": (1e-6,)}), big=(96, {"a": (1e-6,)}))
    (tmp_path / "big" / "a" / "results.json").write_text("{}")
    assert "big" in read_parameters(mine).sources["large_batch"]
    with refused("large_batch must be a batch folder with usable runs", "tiny", "'big'", error=ParameterError):
        read_parameters({**mine, "large_batch": "big"})


def test_step_sizes_are_those_measured_on_most_sequences(tmp_path: Path) -> None:
    runs = {"a": (1e-6, 2e-6), "b": (2e-6, 4e-6), "c": (4e-6, 8e-6)}
    chosen = read_parameters(own_data(tmp_path, big=(64, runs), small=(32, {"a": (1e-5,)})))
    assert (chosen.eta, chosen.etas) == (2e-6, [2e-6, 4e-6])
    assert chosen.sources["eta"] == "smallest measured on most sequences"


def test_a_small_run_in_the_wrong_folder_chooses_nothing(tmp_path: Path) -> None:
    own_data(tmp_path, big=(64, {"a": (2e-6, 4e-6), "c": (2e-6, 4e-6)}), small=(48, {"a": (2e-6,)}))
    chosen = read_parameters(own_data(tmp_path, big=(32, {"b": (1e-6, 3e-6)})))
    assert (chosen.large_batch, chosen.small_batch, chosen.subset_size, chosen.eta) == ("big", "small", 48, 2e-6)


def test_unsound_runs_are_warned_about_and_a_step_size_may_be_left_out(tmp_path: Path) -> None:
    run, other = synthetic_runs(2, 128).values()
    logs = {m.eta: -2 * np.asarray(m.log_weights) for m in other.measurements}  # reversed, when added
    for name, made in (("a", run), ("b", with_log_weights(other, logs))):
        write_run(tmp_path / "big" / name / "results.json", made)
    with pytest.warns(
        RunWarning, match=r"fix or exclude the run: log_weight_slope -2\S* \(limit 0\.2\S*\) in b at eta"
    ):
        assert list(read_parameters({"data_root": str(tmp_path), **OPEN}).large_runs()) == ["a", "b"]
    at_one = {m.eta: logs[m.eta] if m.eta == run.etas[1] else 0 * logs[m.eta] for m in other.measurements}
    write_run(tmp_path / "big" / "b" / "results.json", with_log_weights(other, at_one))
    left = read_parameters({"data_root": str(tmp_path), **OPEN, "etas": [run.etas[0]]})
    assert left.eta == run.etas[0]
    assert left.large_runs().etas == (run.etas[0],)


def test_what_is_not_in_the_data_is_refused() -> None:
    for name, value in (("eta", 5e-6), ("etas", [1.6e-6, 5e-6])):
        with refused("eta must be a step size of E_2048", "1.6e-06, 3.2e-06", "5e-06", error=ParameterError):
            read_parameters({**ROOT, **OPEN, name: value})
    with refused("subset_size must be at most 2,048", "4,000", error=ParameterError):
        read_parameters({**ROOT, **OPEN, "num_samples": 10, "subset_size": 4000})
    assert read_parameters({**ROOT, **OPEN, "subset_size": 4000}).subset_size == 4000  # a batch, not a subset
    with refused("small_batch must differ from large_batch", "'E_256'", error=ParameterError):
        read_parameters({**ROOT, **OPEN, "large_batch": "E_256", "small_batch": "E_256"})
    with pytest.raises(ParameterError, match="E_2048, E_256") as caught:
        read_parameters({**ROOT, "large_batch": "E_4096"})
    assert caught.value._render_traceback_() == [f"ParameterError: {caught.value}"]  # in one line


def test_a_relative_data_root_lies_here_or_beside_notebooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert notebooks_folder() == REPOSITORY / "notebooks"
    monkeypatch.chdir(tmp_path)
    assert resolve_data_root("../data_samples").resolve() == (REPOSITORY / "data_samples").resolve()
    (tmp_path / "data_samples").mkdir()
    assert resolve_data_root("data_samples") == Path("data_samples")
    monkeypatch.setenv("HOME", str(REPOSITORY))
    monkeypatch.setenv("USERPROFILE", str(REPOSITORY))
    parameters = read_parameters({"data_root": "~/data_samples/", "large_batch": "E_2048/", "small_batch": "E_256/"})
    assert parameters.root == REPOSITORY / "data_samples"
    assert (parameters.large_batch, parameters.small_batch) == ("E_2048", "E_256")


def test_readable_tables_hold_short_text() -> None:
    unknown = {"n": pd.array([None], dtype="Int64"), "x": [np.nan], "none": [None]}
    columns = {"eta": [1.6e-6], "etas": [(1e-6, 2e-6)], **unknown, "k": [7], "s": ["run"], "high": [np.inf]}
    texts = {"eta": "1.6e-06", "etas": "1e-06, 2e-06", "k": "7", "s": "run", "high": "unbounded"}
    assert readable(pd.DataFrame(columns)).table.to_dict("records") == [texts]
    assert "no rows" in readable(pd.DataFrame({"x": []})).to_html()
    assert readable(pd.DataFrame({"x": [-0.0011, 4.7, 250.0]})).table["x"].tolist() == ["-0.00110", "4.70", "250"]
    assert readable(pd.DataFrame({"x": [1 / 3]}), digits=5).table["x"].iloc[0] == "0.33333"


def test_of_a_long_table_the_first_rows_are_shown_and_all_are_behind_a_link() -> None:
    shown = readable(pd.DataFrame({"n": range(1000), "text": "a & b"}))
    html = shown.to_html()
    assert html.count("<tr>") == 61
    assert len(str(shown).splitlines()) == 62
    [encoded] = re.findall(r'href="data:text/csv;base64,([^"]*)"', html)
    assert b64decode(encoded).decode().splitlines()[-1] == "999,a & b"
    assert "href" not in readable(pd.DataFrame({"n": range(60)})).to_html()


def test_a_result_is_displayed_once_with_ten_digits(display: Mock) -> None:
    parameters = read_parameters({**ROOT, "etas": [1e-6, 2e-6], "seed": 3})
    columns = {"estimator": ["ratio"], "sd": [1 / 3], "nothing": [np.nan], "values": [[2 / 3, 1.0]], "n": [7]}
    show_result("05_test", parameters, pd.DataFrame(columns))
    payload = display.call_args.args[0][RESULT_MIME]
    assert payload["notebook"] == "05_test"
    assert payload["parameters"] == {**ROOT, "etas": [1e-6, 2e-6], "seed": 3}
    row = {"estimator": "ratio", "sd": 0.3333333333, "nothing": None, "values": [0.6666666667, 1.0], "n": 7}
    assert payload["rows"] == [row]
    display.assert_called_once()


@pytest.mark.filterwarnings("always::UserWarning")
def test_warnings_about_runs_stand_once_below_the_answer_and_others_are_shown_as_usual(display: Mock) -> None:
    answer = AnswerInBrief()
    with warnings.catch_warnings(record=True) as others, answer.noting():
        for _ in range(2):
            warnings.warn("skipped run_03", RunWarning, stacklevel=1)
        warnings.warn("something else", UserWarning, stacklevel=1)
    assert [str(other.message) for other in others] == ["something else"]
    answer.say(["One.", "Two."])
    note = "- **Note:** skipped run_03."
    text = f"- One.\n- Two.\n{note}"
    assert [call.args[0].data for call in display.call_args_list[1:]] == [note, text]
    assert display.return_value.update.call_args.args[0].data == text  # at the top
