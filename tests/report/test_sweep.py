from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import nbformat
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from analysis_helpers import __version__
from analysis_helpers.__main__ import main
from analysis_helpers.report.display import RESULT_MIME
from analysis_helpers.report.execution import Execution, Job
from analysis_helpers.report.sweep import (
    STAMP,
    Outcome,
    Rerun,
    _folder_digest,
    plan_sweep,
    results_table,
    run_and_report,
    run_sweep,
    runlog_table,
    write_sweep_page,
    write_table,
)
from tests.conftest import REPOSITORY
from tests.sweeping import BODY, command, write_notebook

pytest.importorskip("papermill", reason="the extra 'notebooks' is not installed")
OURS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


def sweep(out: Path, folder: Path, *options: str) -> Result:
    return CliRunner().invoke(main, command(out, folder, *options))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_notebook(tmp_path / "notebooks" / "tiny.ipynb").parent


class Runner:
    """Stands for an engine: copies notebooks instead of running them, and remembers what it was asked."""

    def __init__(self, error: str = "") -> None:
        self.error = error
        self.asked: list[Job] = []

    def __call__(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Execution]]:
        """Yield each job as if it had run, the last one first."""
        for job in reversed(jobs):
            self.asked.append(job)
            job.target.write_bytes(job.source.read_bytes())
            yield job, Execution(job.source.stem, job.target, self.error, 1.0)


def outcomes(folder: Path, out: Path, options: dict[str, list[str]], runner: Any) -> list[Outcome]:
    reruns, _ = plan_sweep(sorted(folder.glob("*.ipynb")), options)
    return list(run_sweep(reruns, out, runner))


# --- planning ---------------------------------------------------------------------------------------------------------


def test_every_combination_is_planned_once_sorted_and_named_by_its_parameters() -> None:
    reruns, skipped = plan_sweep(OURS, {"eta": ["3.2e-6", "1.6e-6", "0.0000016"], "subset_size": ["256", "32", "1e2"]})
    of_second = [rerun for rerun in reruns if rerun.source.stem == "02_batch_size_comparison"]
    assert [tuple(rerun.parameters.values()) for rerun in of_second] == [
        (eta, size) for eta in (1.6e-6, 3.2e-6) for size in (32, 100, 256)
    ]
    assert of_second[0].name == "02_batch_size_comparison_eta=1.6e-06_subset_size=32"
    # 01 has eta only, 04 etas only, 03 etas and subset_size; 05 has neither.
    counts = pd.Series([rerun.source.stem[:2] for rerun in reruns]).value_counts().to_dict()
    assert counts == {"00": 6, "01": 2, "02": 6, "03": 6, "04": 2, "06": 6}
    assert next(rerun for rerun in reruns if rerun.source.stem[:2] == "04").parameters == {"etas": [1.6e-6]}
    assert skipped == {"05_known_truth": "it has none of the parameters eta, subset_size"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subset_sise": ["3"]}, "no notebook of the sweep has the parameter subset_sise; did you mean subset_size?"),
        ({"zzz": ["3"]}, "no notebook of the sweep has the parameter zzz; there are data_root, "),
        ({"subset_size": ["12x"]}, "subset_size must be a whole number of at least 1, got '12x'"),
        ({"subset_size": ["2.5"]}, "subset_size must be a whole number of at least 1, got '2.5'"),
        ({"subset_size": ["0"]}, "subset_size must be a whole number of at least 1, got '0'"),
        ({"eta": ["small"]}, "eta must be a positive step size, got 'small'"),
        ({"eta": ["-1e-6"]}, "eta must be a positive step size, got '-1e-6'"),
        ({"eta": ["1e-6", "nan"]}, "eta must be a positive step size, got 'nan'"),
        ({"etas": ["no"]}, "etas must be a list of positive step sizes, got 'no'"),
        ({"large_batch": ["E_99"]}, "large_batch must be a batch folder in "),
        ({"data_root": ["one", "two"]}, "data_root must be one folder for all of a sweep, got one, two"),
        ({"data_root": ["nowhere"]}, "data_root must be a folder that exists, got 'nowhere'"),
    ],
)
def test_a_bad_parameter_stops_the_sweep_with_one_sentence(options: dict[str, list[str]], message: str) -> None:
    with pytest.raises(ValueError, match="^" + message.replace("(", r"\(").replace("?", r"\?")) as caught:
        plan_sweep(OURS, options)
    assert "\n" not in str(caught.value)


def test_the_command_says_what_is_wrong_before_anything_runs(tmp_path: Path, folder: Path) -> None:
    result = sweep(tmp_path / "out", folder, "-p", "lable", "x")
    assert result.exit_code == 1
    assert result.output == "Error: no notebook of the sweep has the parameter lable; did you mean label?\n"
    assert not (tmp_path / "out").exists()
    result = sweep(tmp_path / "out", folder, "--notebook", "tyni")
    assert result.output == "Error: there is no notebook tyni; there are tiny\n"


def test_a_relative_data_root_means_the_same_for_kernels_that_start_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(REPOSITORY)
    [rerun] = plan_sweep(OURS[1:2], {"data_root": ["data_samples"], "eta": ["1.6e-6"]})[0]
    assert rerun.parameters["data_root"] == str(REPOSITORY / "data_samples")
    assert "data" not in rerun.name


@pytest.mark.parametrize(
    "label", ["<script>alert(1)</script>", "../../up", "quo\"te's", "new\nline", "x" * 300, "ünïcödé", ".", ""]
)
def test_names_are_safe_and_unique_whatever_the_parameters(folder: Path, label: str) -> None:
    reruns, _ = plan_sweep([folder / "tiny.ipynb"], {"label": [label, label + " "]})
    names = {rerun.name for rerun in reruns}
    assert len(names) == 2
    for name in names:
        assert len(name) <= 120
        assert name == Path(name).name
        assert not set(name) & set("<>\"'\n/\\ ")


# --- running ----------------------------------------------------------------------------------------------------------


def test_a_sweep_writes_notebooks_pages_tables_and_nothing_else(tmp_path: Path) -> None:
    folder = write_notebook(tmp_path / "notebooks" / "tiny.ipynb", figure=True).parent
    before = sorted(tmp_path.rglob("*"))
    result = sweep(tmp_path / "out", folder, "--eta", "1e-6", "--eta", "2e-6", "--subset-size", "8", "--workers", "2")
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == str(tmp_path / "out" / "index.html")
    assert "[2/2] tiny_eta=" in result.output
    made = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    stems = [f"tiny_eta={eta}_subset_size=8_etas={eta}" for eta in ("1e-06", "2e-06")]
    assert made - {".sweep.lock", ".sweep"} == {
        "index.html",
        "results.csv",
        "runlog.csv",
        *(f"notebooks/{stem}.ipynb" for stem in stems),
        *(f"pages/{stem}.html" for stem in stems),
        *(f"figures/{stem}.png" for stem in stems),
    }
    assert sorted(path for path in tmp_path.rglob("*") if tmp_path / "out" not in (path, *path.parents)) == before
    results = pd.read_csv(tmp_path / "out" / "results.csv")
    assert results["notebook"].tolist() == ["tiny"] * 4
    assert results["param.eta"].tolist() == [1e-6, 1e-6, 2e-6, 2e-6]
    assert results["value"].tolist()[::2] == [8e-6, 1.6e-5]
    assert results["value"].isna().tolist()[1::2] == [True, True]
    runlog = pd.read_csv(tmp_path / "out" / "runlog.csv", keep_default_na=False)
    assert runlog["status"].tolist() == ["done", "done"]
    assert (runlog["seconds"] > 0).all()
    assert runlog["error"].tolist() == ["", ""]
    assert set(runlog["version"]) == {__version__}


def test_a_failing_notebook_leaves_its_part_and_its_error_and_stops_no_other(tmp_path: Path, folder: Path) -> None:
    result = sweep(tmp_path / "out", folder, "-p", "label", "fail", "-p", "label", "plain")
    assert result.exit_code == 1
    assert "tiny_label=fail: ValueError: asked to fail" in result.output
    runlog = pd.read_csv(tmp_path / "out" / "runlog.csv", keep_default_na=False).set_index("file")
    assert runlog.loc["tiny_label=fail.ipynb", "error"] == "ValueError: asked to fail"
    assert runlog.loc["tiny_label=plain.ipynb", "status"] == "done"
    partial = nbformat.read(tmp_path / "out" / "notebooks" / "tiny_label=fail.ipynb", as_version=4)
    assert any("first cell" in output.get("text", "") for cell in partial.cells for output in cell.get("outputs", []))
    assert "ValueError: asked to fail" in (tmp_path / "out" / "index.html").read_text("utf-8")


def test_a_notebook_whose_kernel_dies_is_tried_once_more(tmp_path: Path, folder: Path) -> None:
    marker = tmp_path / "died"
    result = sweep(tmp_path / "out", folder, "-p", "label", str(marker), "-p", "label", "plain")
    assert result.exit_code == 0, result.output
    assert marker.exists()


def test_a_kernel_that_dies_twice_is_an_error_of_its_notebook(tmp_path: Path) -> None:
    write_notebook(tmp_path / "n" / "dead.ipynb", body="import os\nos._exit(1)")
    result = sweep(tmp_path / "out", tmp_path / "n")
    assert result.exit_code == 1
    assert "dead: DeadKernelError" in result.output
    partial = nbformat.read(tmp_path / "out" / "notebooks" / "dead.ipynb", as_version=4)
    assert any("first cell" in output.get("text", "") for cell in partial.cells for output in cell.get("outputs", []))


def test_results_are_the_same_bytes_for_any_number_of_workers(tmp_path: Path, folder: Path) -> None:
    options = ["--eta", "2e-6", "--eta", "1e-6", "--subset-size", "8", "--subset-size", "4"]
    for workers in ("1", "3"):
        assert sweep(tmp_path / workers, folder, *options, "--workers", workers).exit_code == 0
    one, three = ((tmp_path / workers / "results.csv").read_bytes() for workers in ("1", "3"))
    assert one == three


# --- resuming ---------------------------------------------------------------------------------------------------------


def test_finished_notebooks_are_kept_while_nothing_they_are_made_from_changes(tmp_path: Path, folder: Path) -> None:
    options, runner = {"eta": ["1e-6", "2e-6"]}, Runner()
    assert [o.status for o in outcomes(folder, tmp_path / "out", options, runner)] == ["done", "done"]
    assert [o.status for o in outcomes(folder, tmp_path / "out", options, Runner())] == ["kept", "kept"]
    more = outcomes(folder, tmp_path / "out", {"eta": ["1e-6", "3e-6"]}, Runner())
    assert [o.status for o in more] == ["kept", "done"]


def test_a_changed_notebook_runs_again_and_stored_outputs_are_no_change(tmp_path: Path, folder: Path) -> None:
    outcomes(folder, tmp_path / "out", {"eta": ["1e-6"]}, Runner())
    path = folder / "tiny.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[2].outputs = [nbformat.v4.new_output("stream", text="stored")]
    nbformat.write(notebook, path)
    assert [o.status for o in outcomes(folder, tmp_path / "out", {"eta": ["1e-6"]}, Runner())] == ["kept"]
    write_notebook(path, body=BODY + "\n# changed")
    assert [o.status for o in outcomes(folder, tmp_path / "out", {"eta": ["1e-6"]}, Runner())] == ["done"]


def test_changed_data_run_again(tmp_path: Path) -> None:
    root = tmp_path / "data"
    (root / "E_1" / "run_01").mkdir(parents=True)
    (root / "E_1" / "run_01" / "results.json").write_text("{}")
    folder = write_notebook(tmp_path / "n" / "tiny.ipynb", parameters='data_root: str = "."  # data', body="1").parent
    options = {"data_root": [str(root)]}
    assert [o.status for o in outcomes(folder, tmp_path / "out", options, Runner())] == ["done"]
    assert [o.status for o in outcomes(folder, tmp_path / "out", options, Runner())] == ["kept"]
    (root / "E_1" / "run_01" / "results.json").write_text("{ }")
    assert [o.status for o in outcomes(folder, tmp_path / "out", options, Runner())] == ["done"]


def test_a_failed_notebook_runs_again(tmp_path: Path, folder: Path) -> None:
    options = {"eta": ["1e-6"]}
    assert [o.status for o in outcomes(folder, tmp_path / "out", options, Runner("Oh"))] == ["failed"]
    assert [o.status for o in outcomes(folder, tmp_path / "out", options, Runner())] == ["done"]


def test_what_no_sweep_made_is_neither_replaced_nor_deleted(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "out"
    mine = out / "notebooks" / "tiny_eta=1e-06_etas=1e-06.ipynb"
    write_notebook(mine)
    (out / "note.txt").write_text("mine")
    content = mine.read_bytes()
    with pytest.raises(ValueError, match="exists and was not written by a sweep"):
        outcomes(folder, out, {"eta": ["1e-6"]}, Runner())
    assert mine.read_bytes() == content
    mine.write_text("not a notebook")
    with pytest.raises(ValueError, match="exists and was not written by a sweep"):
        outcomes(folder, out, {"eta": ["1e-6"]}, Runner())
    outcomes(folder, out, {"eta": ["2e-6"]}, Runner())
    assert (out / "note.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["results.csv", "index.html", "pages/tiny_eta=1e-06_etas=1e-06.html"])
def test_tables_and_pages_of_no_sweep_are_not_replaced(tmp_path: Path, folder: Path, name: str) -> None:
    mine = tmp_path / "out" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(ValueError, match=f"{name} exists and was not written by a sweep"):
        outcomes(folder, tmp_path / "out", {"eta": ["1e-6"]}, Runner())
    assert mine.read_text() == "mine"


def test_a_notebook_that_cannot_be_shown_as_a_page_is_an_error_of_its_own(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path) -> str:
        raise RuntimeError("no template")

    monkeypatch.setattr("analysis_helpers.report.sweep.notebook_page", broken)
    [failed] = outcomes(folder, tmp_path / "out", {"eta": ["1e-6"]}, Runner())
    assert (failed.status, failed.error) == ("failed", "its page cannot be made (RuntimeError: no template)")
    assert failed.path.is_file()


def test_two_sweeps_into_one_folder_refuse_each_other(tmp_path: Path, folder: Path) -> None:
    reruns, _ = plan_sweep([folder / "tiny.ipynb"], {"eta": ["1e-6", "2e-6"]})
    first = run_sweep(reruns, tmp_path / "out", Runner())
    next(first)
    with pytest.raises(ValueError, match="another sweep is running in"):
        next(run_sweep(reruns, tmp_path / "out", Runner()))
    assert len(list(first)) == 1  # the first goes on undisturbed
    assert [o.status for o in run_sweep(reruns, tmp_path / "out", Runner())] == ["kept", "kept"]


def start(out: Path, folder: Path, *options: str) -> subprocess.Popen[str]:
    """Start a sweep of six notebooks of half a second each in a process of its own."""
    sizes = [part for n in range(1, 7) for part in ("--subset-size", str(n))]
    arguments = command(out, folder, *sizes, "-p", "seconds", "0.5", "--workers", "2", *options)
    return subprocess.Popen(
        [sys.executable, "-m", "analysis_helpers", *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def finished(out: Path) -> list[Path]:
    return sorted((out / "notebooks").glob("*.ipynb"))


def wait_for(count: int, out: Path) -> None:
    deadline = time.monotonic() + 120
    while len(finished(out)) < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("moment", [0, 1, 3])
def test_a_killed_sweep_is_resumed_by_the_same_command(tmp_path: Path, folder: Path, moment: int) -> None:
    out = tmp_path / "out"
    process = start(out, folder)
    if moment == 0:
        time.sleep(2.5)  # somewhere in planning or in the first notebooks
    else:
        wait_for(moment, out)
    process.kill()
    process.communicate()
    whole = finished(out)
    for path in whole:
        assert nbformat.read(path, as_version=4).metadata[STAMP]["error"] == ""
    resumed = start(out, folder)
    _, told = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, told
    runlog = pd.read_csv(out / "runlog.csv")
    assert (runlog["status"] == "kept").sum() == len(whole)
    assert len(runlog) == 6
    afresh = tmp_path / "afresh"
    assert "[6/6]" in start(afresh, folder).communicate(timeout=300)[1]
    assert (out / "results.csv").read_bytes() == (afresh / "results.csv").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_stops_its_kernels_and_can_be_resumed(
    tmp_path: Path, folder: Path, how: signal.Signals
) -> None:
    import psutil

    out = tmp_path / "out"
    process = start(out, folder, "-p", "seconds", "1.0")
    wait_for(1, out)
    kernels = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, how)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "the same command resumes it" in told
    _, alive = psutil.wait_procs(kernels, timeout=10)
    assert alive == []
    assert 1 <= len(finished(out)) < 12
    assert len(pd.read_csv(out / "runlog.csv")) == len(finished(out))
    assert not (out / ".sweep-working").exists()
    resumed = start(out, folder, "-p", "seconds", "1.0")
    assert resumed.communicate(timeout=300)[1]
    assert resumed.returncode == 0


def test_the_digest_of_the_package_follows_nested_modules(tmp_path: Path) -> None:
    nested = tmp_path / "part" / "module.py"
    nested.parent.mkdir()
    nested.write_text("a = 1\n", encoding="utf-8")
    before = _folder_digest(tmp_path)
    nested.write_text("a = 2\n", encoding="utf-8")
    assert _folder_digest(tmp_path) != before


def collected_outcome(
    folder: Path, eta: float, rows: list[dict[str, Any]] | None, *, error: str = "", data_root: str = ""
) -> Outcome:
    """Return the outcome of a notebook that collected the rows; None: it did not come so far."""
    notebook = nbformat.v4.new_notebook()
    if rows is not None:
        parameters = {"eta": eta, "etas": [eta]} | ({"data_root": data_root} if data_root else {})
        payload = {"notebook": "tiny", "parameters": parameters, "rows": rows}
        output = nbformat.v4.new_output("display_data", data={RESULT_MIME: payload})
        notebook.cells = [nbformat.v4.new_code_cell("", outputs=[output])]
    rerun = Rerun(folder / "tiny.ipynb", {"eta": eta}, f"tiny_eta={eta:g}", "key")
    path = folder / f"{rerun.name}.ipynb"
    nbformat.write(notebook, path)
    return Outcome(rerun, "failed" if error else "done", error, 1.23456, path)


def test_results_have_a_row_an_estimate_sorted_by_parameters_as_numbers(tmp_path: Path) -> None:
    outcomes = [
        collected_outcome(tmp_path, 1e-5, [{"value": 3.0, "eta": 7.0}]),
        collected_outcome(tmp_path, 2e-6, [{"value": 1.0, "name": "a"}, {"value": 2.0, "list": [1, 2]}]),
    ]
    table = results_table(outcomes)
    assert list(table.columns)[:3] == ["notebook", "param.eta", "param.etas"]
    assert set(table.columns[3:]) == {"value", "name", "list", "eta"}
    assert table["param.eta"].tolist() == [2e-6, 2e-6, 1e-5]
    assert table["value"].tolist() == [1.0, 2.0, 3.0]
    assert table["list"].tolist()[1] == "[1, 2]"
    assert table["eta"].tolist()[2] == 7.0  # an estimate of that name is not taken for the parameter
    assert results_table(outcomes[::-1]).equals(table)


@pytest.mark.parametrize("given", ["../data", "../data/", "{root}/data", "{root}/notebooks/../data"])
def test_a_data_root_is_the_same_text_wherever_the_checkout_lies_and_however_it_was_given(
    tmp_path: Path, given: str
) -> None:
    folder = tmp_path / "notebooks"
    folder.mkdir()
    data_root = given.format(root=tmp_path)
    table = results_table([collected_outcome(folder, 1e-6, [{"value": 1.0}], data_root=data_root)])
    assert table["param.data_root"].tolist() == ["../data"]


def test_a_notebook_that_did_not_come_so_far_has_no_rows_but_a_line_in_the_log(tmp_path: Path) -> None:
    outcomes = [
        collected_outcome(tmp_path, 1e-6, None, error="ValueError: no"),
        collected_outcome(tmp_path, 2e-6, [{"value": 1.0}]),
    ]
    assert results_table(outcomes)["param.eta"].tolist() == [2e-6]
    log = runlog_table(outcomes, "1.2.3")
    assert log["error"].tolist() == ["ValueError: no", ""]
    assert log["status"].tolist() == ["failed", "done"]
    assert log["seconds"].tolist() == [1.235, 1.235]
    assert set(log["version"]) == {"1.2.3"}
    assert log["parameters"].tolist()[0] == '{"eta": 1e-06}'


def test_tables_are_written_with_ten_significant_digits(tmp_path: Path) -> None:
    write_table(pd.DataFrame({"x": [1 / 3, 1e-6], "text": ["a,b", 'c"d']}), tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text() == 'x,text\n0.3333333333,"a,b"\n1e-06,"c""d"\n'
    write_table(results_table([]), tmp_path / "empty.csv")
    assert (tmp_path / "empty.csv").read_text() == "notebook\n"


NASTY = ["<script>alert(1)</script>", "../../up", "quo\"te's", "new\nline", "x" * 300]


class Page(HTMLParser):
    """Collects the tags of a page with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remember a tag."""
        self.tags.append((tag, dict(attrs)))


def outcome(out: Path, name: str, *, label: str = "plain", error: str = "", figure: bool = True) -> Outcome:
    (out / "figures").mkdir(parents=True, exist_ok=True)
    if figure:
        (out / "figures" / f"{name}.png").write_bytes(b"png")
    rerun = Rerun(Path("note.ipynb"), {"eta": 1e-6, "label": label}, name, "key")
    return Outcome(rerun, "failed" if error else "done", error, 1.0, out / "notebooks" / f"{name}.ipynb")


def results(answers: dict[tuple[float, int], list[str]]) -> pd.DataFrame:
    rows = [(eta, n, answer, "yes") for (eta, n), found in answers.items() for answer in found]
    return pd.DataFrame(rows, columns=["param.eta", "param.subset_size", "enough", "linear_trusted"])


def test_the_map_of_verdicts_comes_first_then_figures_then_the_table(tmp_path: Path) -> None:
    table = results({(1e-6, 64): ["no"], (2e-6, 64): ["yes"], (2e-6, 256): ["yes", "no", "no"]})
    page = write_sweep_page([outcome(tmp_path, "a")], {}, table, tmp_path).read_text()
    places = [page.index(part) for part in ("Is the batch enough?", "<figure>", "All reruns")]
    assert places == sorted(places)
    cells = re.findall(r'<td class="([a-z-]*)">([^<]*)</td>', page)
    assert cells[:4] == [("no", "no"), ("", ""), ("yes", "yes"), ("cannot-tell", "2 x no, 1 x yes")]
    assert "<th>n = 64</th><th>n = 256</th>" in page


def test_without_verdicts_there_is_no_map_and_what_was_left_out_is_said(tmp_path: Path) -> None:
    page = write_sweep_page(
        [outcome(tmp_path, "a", figure=False)], {"05_x": "it has none of the parameters eta"}, pd.DataFrame(), tmp_path
    ).read_text()
    assert "Verdicts" not in page
    assert "Key figures" not in page
    assert "Skipped 05_x: it has none of the parameters eta." in page


def test_a_failed_rerun_shows_its_error_and_no_stale_figure(tmp_path: Path) -> None:
    page = write_sweep_page([outcome(tmp_path, "a", error="ValueError: no")], {}, pd.DataFrame(), tmp_path).read_text()
    assert "ValueError: no" in page
    assert "<figure>" not in page
    assert "0 done, 0 kept from before, 1 failed" in page


@pytest.mark.parametrize("text", NASTY)
def test_names_and_errors_are_escaped_wherever_they_stand(tmp_path: Path, text: str) -> None:
    made = outcome(tmp_path, "a & 'b\" #?", label=text, error="")
    broken = outcome(tmp_path, "c", label=text, error=text)
    page = Page(write_sweep_page([made, broken], {text: text}, pd.DataFrame(), tmp_path).read_text())
    assert not [attributes for tag, attributes in page.tags if tag == "script"]
    links = [attributes["href"] or "" for tag, attributes in page.tags if tag == "a"]
    assert "pages/a & 'b\" #?.html" in [unquote(link) for link in links]
    assert not [link for link in links if "://" in link or link.startswith("..")]
    assert all(
        set(attributes) <= {"href", "class", "src", "alt", "loading", "lang", "charset", "name", "content"}
        for _, attributes in page.tags
    )


def test_a_hundred_reruns_make_a_small_page(tmp_path: Path) -> None:
    outcomes = [outcome(tmp_path, f"n{k}") for k in range(100)]
    assert write_sweep_page(outcomes, {}, pd.DataFrame(), tmp_path).stat().st_size < 10_000_000


pytest.importorskip("papermill", reason="the extra 'notebooks' is not installed")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


def test_elsewhere_progress_is_a_plain_line_for_each_notebook(tmp_path: Path, folder: Path) -> None:
    told = io.StringIO()
    index, failed = run_and_report({"label": ["a", "fail"]}, tmp_path / "out", folder=folder, workers=1, stream=told)
    lines = told.getvalue().splitlines()
    assert lines[0].startswith("[1/2] tiny_label=a: done (")
    assert lines[1] == "[2/2] tiny_label=fail: ValueError: asked to fail"
    assert (index, failed) == (tmp_path / "out" / "index.html", 1)


def test_on_a_terminal_there_is_a_bar_with_what_is_done_failed_and_left(tmp_path: Path, folder: Path) -> None:
    told = Terminal()
    run_and_report({"label": ["a", "fail"]}, tmp_path / "out", folder=folder, workers=1, stream=told)
    assert "2/2 [" in told.getvalue()
    assert "2/2" in told.getvalue()
    assert "tiny_label=fail: ValueError: asked to fail" in told.getvalue()


def test_what_is_left_out_is_told(tmp_path: Path, folder: Path) -> None:
    write_notebook(folder / "other.ipynb", parameters="unrelated: int = 1  # nothing", body="1")
    told = io.StringIO()
    run_and_report({"label": ["a"]}, tmp_path / "out", folder=folder, stream=told)
    assert told.getvalue().splitlines()[0] == "skipped other: it has none of the parameters label"
