import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import nbformat
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from analysis_helpers import __version__
from analysis_helpers.__main__ import main
from analysis_helpers.execution.engine import Execution, How, Job, package_digest
from analysis_helpers.execution.pages import results_table, runlog_table, write_summary
from analysis_helpers.execution.sweep import STAMP, make_report, make_sweep, plan, run_sweep
from analysis_helpers.notebook.display import RESULT_MIME
from tests.building import refused
from tests.conftest import REPOSITORY
from tests.sweeping import BODY, command, printed, write_notebook

pytest.importorskip("papermill", reason="the extra 'notebooks' is not installed")
NASTY = ["<script>alert(1)</script>", "../../up", "quo\"te's", "new\nline", "x" * 300]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_notebook(tmp_path / "notebooks" / "tiny.ipynb").parent


def sweep(out: Path, folder: Path, *options: str) -> Result:
    return CliRunner().invoke(main, command(out, folder, *options))


class Runner:
    """Stands for an engine: copies notebooks instead of running them, in reverse order; those named fail."""

    def __init__(self, error: str = "", failing: str = "") -> None:
        self.error, self.failing = error, failing

    def __call__(self, jobs: Sequence[Job], folder: Path, how: How) -> Iterator[Execution]:
        """Yield each job as if it had run."""
        for job in reversed(jobs):
            target = folder / f"{job.name}.ipynb"
            target.write_bytes(job.source.read_bytes())
            error = self.error if self.failing in job.name else ""
            yield Execution(job, target, error, 1.0, package=("1.2.3", package_digest()))


def ended(folder: Path, out: Path, options: dict[str, list[str]], error: str = "") -> list[Execution]:
    jobs, _ = plan(sorted(folder.glob("*.ipynb")), options)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("analysis_helpers.execution.sweep.run_jobs", Runner(error))
        return list(run_sweep(jobs, out, How()))


def statuses(folder: Path, out: Path, options: dict[str, list[str]], error: str = "") -> list[str]:
    return [execution.status for execution in ended(folder, out, options, error)]


def test_every_combination_is_planned_once_in_the_order_given_and_named_by_its_parameters(folder: Path) -> None:
    write_notebook(folder / "list.ipynb", parameters="etas: list = [1e-6]  # step sizes")
    write_notebook(folder / "other.ipynb", parameters="seed: int = 1  # seed")
    options = {"eta": ["3.2e-6", "1.6e-6", "0.0000016"], "subset_size": ["256", "32", "1e2"]}
    reruns, skipped = plan(sorted(folder.glob("*.ipynb")), options)
    assert [rerun.parameters for rerun in reruns[:2]] == [{"etas": [3.2e-6]}, {"etas": [1.6e-6]}]
    pairs = [(eta, size) for eta in (3.2e-6, 1.6e-6) for size in (256, 32, 100)]
    assert [rerun.parameters for rerun in reruns[2:]] == [
        {"eta": eta, "subset_size": size, "etas": [eta]} for eta, size in pairs
    ]
    assert reruns[2].name == "tiny_eta=3.2e-06_subset_size=256_etas=3.2e-06"
    assert [execution.job.name for execution in skipped] == ["other"]


@pytest.mark.parametrize(
    ("options", "start", "part"),
    [
        ({"subset_sise": ["3"]}, "no notebook has the parameter subset_sise", "subset_size?"),
        ({"zzz": ["3"]}, "no notebook has the parameter zzz", "data_root"),
        ({"subset_size": ["12x"]}, "subset_size must be a whole number", "'12x'"),
        ({"subset_size": ["0"]}, "subset_size must be a whole number", "'0'"),
        ({"eta": ["1.6e-6", "nan"]}, "eta must be a positive step size", "'nan'"),
        ({"large_batch": ["E_99"]}, "large_batch must be a batch folder", "'E_99'"),
        ({"data_root": ["one", "two"]}, "data_root must be one folder", "one, two"),
        ({"data_root": ["nowhere"]}, "data_root must be a folder that exists", "'nowhere'"),
    ],
)
def test_a_bad_parameter_stops_the_sweep_with_one_sentence(
    options: dict[str, list[str]], start: str, part: str
) -> None:
    with refused(start, part):
        plan([REPOSITORY / "notebooks" / "02_batch_size_comparison.ipynb"], options)


def test_the_command_says_what_is_wrong_before_anything_runs(tmp_path: Path, folder: Path) -> None:
    for options, parts in ((("-p", "lable", "x"), ("lable", "label?")), (("--notebook", "tyni"), ("tyni", "tiny"))):
        result = sweep(tmp_path / "out", folder, *options)
        assert result.exit_code == 1
        [line] = result.output.splitlines()
        assert line.startswith("Error: ")
        assert all(part in line for part in parts)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("label", [*NASTY, "ünïcödé", ".", ""])
def test_names_are_safe_and_unique_whatever_the_parameters(folder: Path, label: str) -> None:
    reruns, _ = plan([folder / "tiny.ipynb"], {"label": [label, label + " "]})
    names = {rerun.name for rerun in reruns}
    assert len(names) == 2
    for name in names:
        assert len(name) <= 120
        assert name == Path(name).name
        assert not set(name) & set("<>\"'\n/\\ ")


def test_a_sweep_writes_notebooks_pages_tables_and_nothing_else(tmp_path: Path) -> None:
    folder = write_notebook(tmp_path / "notebooks" / "tiny.ipynb", figure=True).parent
    before = sorted(tmp_path.rglob("*"))
    result = sweep(tmp_path / "out", folder, "--eta", "1e-6", "--eta", "2e-6", "--subset-size", "8", "--workers", "2")
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == str(tmp_path / "out" / "index.html")
    made = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    stems = [f"tiny_eta={eta}_subset_size=8_etas={eta}" for eta in ("1e-06", "2e-06")]
    kinds = (("notebooks", "ipynb"), ("pages", "html"), ("figures", "png"))
    files = {f"{place}/{stem}.{ending}" for stem in stems for place, ending in kinds}
    assert {name for name in made if not name.startswith(".")} == {"index.html", "results.csv", "runlog.csv", *files}
    assert sorted(path for path in tmp_path.rglob("*") if tmp_path / "out" not in (path, *path.parents)) == before
    results = pd.read_csv(tmp_path / "out" / "results.csv")
    assert results["param.eta"].tolist() == [1e-6, 1e-6, 2e-6, 2e-6]
    assert results["value"].fillna(-1).tolist() == [8e-6, -1, 1.6e-5, -1]
    runlog = pd.read_csv(tmp_path / "out" / "runlog.csv", keep_default_na=False)
    assert runlog[["status", "error", "version"]].to_numpy().tolist() == [["done", "", __version__]] * 2
    assert (runlog["seconds"] > 0).all()


def test_a_failing_notebook_leaves_its_part_and_its_error_and_stops_no_other(tmp_path: Path, folder: Path) -> None:
    result = sweep(tmp_path / "out", folder, "-p", "label", "fail", "-p", "label", "plain", "--workers", "1")
    assert result.exit_code == 1
    first, second = (line for line in result.output.splitlines() if line.startswith("["))
    assert first == "[1/2] tiny_label=fail: ValueError: asked to fail"
    assert second.startswith("[2/2] tiny_label=plain: done")
    runlog = pd.read_csv(tmp_path / "out" / "runlog.csv", keep_default_na=False)
    assert runlog["error"].tolist() == ["ValueError: asked to fail", ""]
    assert printed(tmp_path / "out" / "notebooks" / "tiny_label=fail.ipynb") == "first cell\n"
    assert "ValueError: asked to fail" in (tmp_path / "out" / "index.html").read_text("utf-8")


def test_a_notebook_whose_kernel_dies_is_tried_once_more_and_then_an_error_of_its_own(tmp_path: Path) -> None:
    folder = write_notebook(tmp_path / "n" / "dead.ipynb", "print('first cell')", "import os\nos._exit(1)").parent
    write_notebook(folder / "tiny.ipynb")
    marker = tmp_path / "died"
    result = sweep(tmp_path / "out", folder, "-p", "label", str(marker))
    assert result.exit_code == 1
    assert marker.exists()
    runlog = pd.read_csv(tmp_path / "out" / "runlog.csv", keep_default_na=False).set_index("notebook")
    assert runlog.loc["tiny", "status"] == "done"
    assert str(runlog.loc["dead", "error"]).startswith("DeadKernelError")
    assert printed(tmp_path / "out" / "notebooks" / str(runlog.loc["dead", "file"])) == "first cell\n"


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_is_a_line_for_each_notebook_and_a_bar_on_a_terminal_only(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    monkeypatch.setattr("analysis_helpers.execution.sweep.run_jobs", Runner("no", failing="odd"))
    write_notebook(folder / "other.ipynb", parameters="unrelated: int = 1  # nothing")
    told = io.StringIO()
    monkeypatch.setattr(told, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(sys, "stderr", told)
    index, failed = make_sweep({"label": ["fine", "odd"]}, tmp_path / "out", How(), folder=folder)
    assert (index, failed) == (tmp_path / "out" / "index.html", 1)
    for line in ("skipped other: ", "[1/2] tiny_label=odd: no\n", "[2/2] tiny_label=fine: done"):
        assert line in told.getvalue()
    assert ("2/2 [" in told.getvalue()) == terminal


def test_finished_notebooks_are_kept_and_failed_ones_run_again(tmp_path: Path, folder: Path) -> None:
    out, options = tmp_path / "out", {"eta": ["1e-6", "2e-6"]}
    assert statuses(folder, out, options, "Oh") == ["failed", "failed"]
    assert statuses(folder, out, options) == ["done", "done"]
    assert statuses(folder, out, options) == ["kept", "kept"]
    assert statuses(folder, out, {"eta": ["1e-6", "3e-6"]}) == ["kept", "done"]


def test_a_changed_notebook_runs_again_and_stored_outputs_are_no_change(tmp_path: Path, folder: Path) -> None:
    path, given = folder / "tiny.ipynb", (folder, tmp_path / "out", {"eta": ["1e-6"]})
    assert statuses(*given) == ["done"]
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[2].outputs = [nbformat.v4.new_output("stream", text="stored")]
    nbformat.write(notebook, path)
    assert statuses(*given) == ["kept"]
    write_notebook(path, BODY + "\n# changed")
    assert statuses(*given) == ["done"]


def test_changed_data_run_again(tmp_path: Path) -> None:
    data = tmp_path / "data" / "E_1" / "run_01" / "results.json"
    data.parent.mkdir(parents=True)
    folder = write_notebook(tmp_path / "n" / "tiny.ipynb", parameters='data_root: str = "."  # data').parent
    for content, status in (("{}", "done"), (None, "kept"), ("{ }", "done")):
        if content:
            data.write_text(content)
        assert statuses(folder, tmp_path / "out", {"data_root": [str(tmp_path / "data")]}) == [status]


def test_the_digest_of_the_package_follows_nested_modules(tmp_path: Path) -> None:
    nested = tmp_path / "part" / "module.py"
    nested.parent.mkdir()
    digests = []
    for content in ("a = 1\n", "a = 2\n"):
        nested.write_text(content, encoding="utf-8")
        digests.append(package_digest.__wrapped__(tmp_path))
    assert digests[0] != digests[1]


@pytest.mark.parametrize(
    "name",
    ["results.csv", "index.html", "pages/tiny_eta=1e-06_etas=1e-06.html", "notebooks/tiny_eta=1e-06_etas=1e-06.ipynb"],
)
def test_what_no_sweep_made_is_neither_replaced_nor_deleted(tmp_path: Path, folder: Path, name: str) -> None:
    out, mine, given = tmp_path / "out", tmp_path / "out" / name, {"eta": ["1e-6"]}
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with refused(str(mine), "sweep"):
        ended(folder, out, given)
    assert mine.read_text() == "mine"
    if name.endswith("ipynb"):
        content = write_notebook(mine).read_bytes()
        with refused(str(mine), "sweep"):
            ended(folder, out, given)
        assert statuses(folder, out, {"eta": ["2e-6"]}) == ["done"]
        assert mine.read_bytes() == content


def test_a_page_that_cannot_be_made_is_an_error_of_its_notebook(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise RuntimeError("no template")

    monkeypatch.setattr("analysis_helpers.execution.pages.page_exporter", broken)
    [failed] = ended(folder, tmp_path / "out", {"eta": ["1e-6"]})
    assert failed.status == "failed"
    assert "RuntimeError: no template" in failed.error
    assert failed.path.is_file()
    index, count = make_report({}, tmp_path / "report", How(), folder=folder)
    assert count == 1
    assert "RuntimeError: no template" in index.read_text(encoding="utf-8")


def test_two_sweeps_or_reports_into_one_folder_refuse_each_other(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analysis_helpers.execution.sweep.run_jobs", Runner())
    out, jobs = tmp_path / "out", plan([folder / "tiny.ipynb"], {"eta": ["1e-6", "2e-6"]})[0]
    first = run_sweep(jobs, out, How())
    next(first)
    for other in (lambda: next(run_sweep(jobs, out, How())), lambda: make_report({}, out, How(), folder=folder)):
        with refused("another report or sweep is running", out):
            other()
    assert len(list(first)) == 1  # the first goes on undisturbed
    assert [execution.status for execution in run_sweep(jobs, out, How())] == ["kept", "kept"]


def test_a_report_does_not_replace_a_page_that_no_report_made(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "index.html").write_text("mine")
    with refused(str(tmp_path / "index.html"), "report"):
        make_report({}, tmp_path, How(), folder=folder)


def start(out: Path, folder: Path, seconds: float = 0.5) -> subprocess.Popen[str]:
    """Start a sweep of six notebooks in a process of its own."""
    sizes = [part for n in range(1, 7) for part in ("--subset-size", str(n))]
    arguments = command(out, folder, *sizes, "-p", "seconds", str(seconds), "--workers", "2")
    run = [sys.executable, "-m", "analysis_helpers", *arguments]
    return subprocess.Popen(run, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def finished(out: Path) -> list[Path]:
    return sorted((out / "notebooks").glob("*.ipynb"))


def wait_for(count: int, out: Path) -> None:
    deadline = time.monotonic() + 120
    while len(finished(out)) < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow  # eighteen kernels each
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
        assert STAMP in nbformat.read(path, as_version=4).metadata
    resumed = start(out, folder)
    _, told = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, told
    runlog = pd.read_csv(out / "runlog.csv")
    assert (runlog["status"] == "kept").sum() == len(whole)
    assert len(runlog) == 6
    afresh = tmp_path / "afresh"
    assert "[6/6]" in start(afresh, folder).communicate(timeout=300)[1]
    assert (out / "results.csv").read_bytes() == (afresh / "results.csv").read_bytes()


@pytest.mark.slow  # twelve kernels each
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_stops_its_kernels_and_can_be_resumed(
    tmp_path: Path, folder: Path, how: signal.Signals
) -> None:
    import psutil

    out = tmp_path / "out"
    process = start(out, folder, 1.0)
    wait_for(1, out)
    kernels = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, how)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "the same command" in told
    _, alive = psutil.wait_procs(kernels, timeout=10)
    assert alive == []
    assert 1 <= len(finished(out)) < 6
    assert len(pd.read_csv(out / "runlog.csv")) == len(finished(out))
    assert not (out / ".sweep-working").exists()
    resumed = start(out, folder, 1.0)
    assert resumed.communicate(timeout=300)[1]
    assert resumed.returncode == 0


def rerun(
    out: Path,
    name: str,
    *rows: dict[str, Any],
    given: dict[str, Any] | None = None,
    label: str = "plain",
    error: str = "",
    finding: str = "",
) -> Execution:
    """Return how a notebook ended that showed a figure and collected the rows; without any, it did not come so far."""
    result = {"notebook": "note", "parameters": given or {}, "rows": list(rows)}
    alt = {"image/png": {"alt": finding or f"of {name}"}}
    outputs = [nbformat.v4.new_output("display_data", {"image/png": ""}, metadata=alt)]
    if rows:
        outputs.append(nbformat.v4.new_output("display_data", {RESULT_MIME: result}))
    cell = nbformat.v4.new_code_cell(outputs=outputs, metadata={"tags": ["key"]})
    path = out / f"{name}.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    job = Job(Path("note.ipynb"), {"eta": 1e-6, "label": label}, name)
    return Execution(job, path, error, 1.23456, package=("1.2.3", "0123456789abcdef"))


def test_results_have_a_row_an_estimate(tmp_path: Path) -> None:
    found = [
        rerun(tmp_path, "a", {"value": 3.0, "eta": 7.0}, given={"eta": 1e-5, "etas": [1e-5]}),
        rerun(tmp_path, "b", {"value": 1.0, "name": "a"}, {"value": 2.0, "list": [1, 2]}, given={"eta": 2e-6, "n": 4}),
    ]
    table = results_table(found)
    assert list(table.columns)[:4] == ["notebook", "param.eta", "param.etas", "param.n"]
    assert set(table.columns[4:]) == {"value", "name", "list", "eta"}
    assert table["param.eta"].tolist() == [1e-5, 2e-6, 2e-6]
    assert table["value"].tolist() == [3.0, 1.0, 2.0]
    assert table["eta"].tolist()[0] == 7.0  # an estimate of that name is not taken for the parameter


def test_a_notebook_that_did_not_come_so_far_has_no_rows_but_a_line_in_the_log(tmp_path: Path) -> None:
    found = [rerun(tmp_path, "a", error="ValueError: no"), rerun(tmp_path, "b", {"value": 1.0}, given={"eta": 2e-6})]
    assert results_table(found)["param.eta"].tolist() == [2e-6]
    log = runlog_table(found)[["status", "error", "seconds", "version", "digest", "parameters"]]
    same = [1.235, "1.2.3", "0123456789ab", '{"eta": 1e-06, "label": "plain"}']
    assert log.to_numpy().tolist() == [["failed", "ValueError: no", *same], ["done", "", *same]]


def test_tables_are_written_with_ten_significant_digits(tmp_path: Path) -> None:
    write_summary([rerun(tmp_path, "a", {"x": 1 / 3, "text": 'c"d', "list": [1, 2]})], [], tmp_path)
    assert (tmp_path / "results.csv").read_text() == 'notebook,list,text,x\nnote,"[1, 2]","c""d",0.3333333333\n'
    write_summary([rerun(tmp_path, "a")], [], tmp_path)
    assert (tmp_path / "results.csv").read_text() == "notebook\n"


def test_the_map_of_verdicts_comes_first_then_figures_then_the_table(tmp_path: Path) -> None:
    answers = {(1e-6, 64): ["no"], (2e-6, 64): ["yes"], (2e-6, 256): ["yes", "no", "no"]}
    made = [
        rerun(tmp_path, f"{name}", *({"linear": a} for a in found), given={"eta": eta, "subset_size": n}, finding="one")
        for name, ((eta, n), found) in zip("abc", answers.items(), strict=True)
    ]
    skipped = Execution(Job(Path("05_x.ipynb"), {}, "05_x"), skipped="no eta")
    page = write_summary(made, [skipped], tmp_path).read_text()
    places = [page.index(part) for part in ('<table class="map">', "<figure>", 'href="pages/a.html"', 'alt="one"')]
    assert places == sorted(places)
    assert "05_x" in page
    cells = re.findall(r'<td class="([a-z-]*)">([^<]*)</td>', page)
    assert cells[:4] == [("no", "no"), ("", ""), ("yes", "yes"), ("cannot-tell", "2 x no, 1 x yes")]


def test_a_figure_that_is_the_same_in_several_reruns_is_shown_once(tmp_path: Path) -> None:
    made = [rerun(tmp_path, "a"), rerun(tmp_path, "b", finding="of a"), rerun(tmp_path, "c")]
    page = write_summary(made, [], tmp_path).read_text()
    assert (page.count("<figure>"), page.count("the same in 2 reruns")) == (2, 1)


def test_a_failed_rerun_shows_its_error_and_no_stale_figure_or_map(tmp_path: Path) -> None:
    page = write_summary([rerun(tmp_path, "a", error="ValueError: no")], [], tmp_path).read_text()
    assert "ValueError: no" in page
    assert "<figure>" not in page
    assert '<table class="map">' not in page


@pytest.mark.parametrize("text", NASTY)
def test_names_and_errors_are_escaped_wherever_they_stand(tmp_path: Path, text: str) -> None:
    made = rerun(tmp_path, "a & 'b\" #?", label=text)
    broken = rerun(tmp_path, "c", label=text, error=text)
    skipped = Execution(Job(Path("x.ipynb"), {}, text), skipped=text)
    page = write_summary([made, broken], [skipped], tmp_path).read_text()
    assert "<script" not in page
    assert not set("<>\"'") & set(text) or text not in page
    links = [unquote(link) for link in re.findall(r'href="([^"]*)"', page)]
    assert "pages/a & 'b\" #?.html" in links
    assert not [link for link in links if "://" in link or link.startswith("..")]
