import re
import signal
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import nbformat
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from filelock import FileLock

from analysis_helpers import __version__
from analysis_helpers.__main__ import main
from analysis_helpers.execution.engine import UNFINISHED, Execution, Job, package_digest
from analysis_helpers.execution.pages import write_index
from analysis_helpers.execution.sweep import STAMP, Kind, find_notebooks, plan
from analysis_helpers.notebook.display import RESULT_MIME
from tests.building import refused
from tests.conftest import REPOSITORY
from tests.sweeping import BODY, command, printed, run_copies, runlog, start, wait_until, write_notebook

pytest.importorskip("papermill", reason="the extra 'notebooks' is not installed")
NASTY = ["<script>alert(1)</script>", "../../up", "quo\"te's", "new\nline", "x" * 300]
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_notebook(tmp_path / "notebooks" / "tiny.ipynb").parent


def sweep(out: Path, folder: Path, *options: str) -> Result:
    return CliRunner().invoke(main, command(out, folder, *options))


def report(out: Path, folder: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["report", "--notebooks", str(folder), "--out", str(out), *options])


def statuses(*arguments: Any) -> list[str]:
    return list(run_copies(*arguments)["status"])


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def stored(out: Path) -> list[Path]:
    """Return the notebooks that have finished."""
    return [path for path in out.glob("notebooks/*.ipynb") if not path.name.endswith(UNFINISHED)]


def notices(page: Path) -> list[str]:
    """Return what a page says in its header to have gone wrong."""
    return [re.sub(r"<[^>]*>", "", notice) for notice in re.findall(r'<p class="notice">(.*?)</p>', text(page))]


def links(page: Path) -> list[str]:
    return [unquote(link) for link in re.findall(r'<a[^>]* href="([^"#]+)', text(page).replace("<a href", "<a  href"))]


# --- planning ---------------------------------------------------------------------------------------------------------


def test_notebooks_are_found_beside_the_package_or_where_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_notebooks() == NOTEBOOKS
    for name in ("b", "a"):
        (tmp_path / f"{name}.ipynb").touch()
    assert find_notebooks(tmp_path) == [tmp_path / "a.ipynb", tmp_path / "b.ipynb"]
    with refused("no notebooks", tmp_path / "nothing"):
        find_notebooks(tmp_path / "nothing")


def test_every_combination_is_planned_once_in_the_order_given_and_named_by_its_parameters(folder: Path) -> None:
    write_notebook(folder / "list.ipynb", parameters="etas: list = [1e-6]  # step sizes")
    write_notebook(folder / "other.ipynb", parameters="seed: int = 1  # seed")
    values = {"eta": ["3.2e-6", "1.6e-6", "0.0000016"], "subset_size": ["256", "1e2"]}
    jobs, skipped = plan("sweep", find_notebooks(folder), values)
    assert [job.parameters for job in jobs[:2]] == [{"etas": [3.2e-6]}, {"etas": [1.6e-6]}]
    pairs = [(job.parameters["eta"], job.parameters["subset_size"]) for job in jobs[2:]]
    assert pairs == [(3.2e-6, 256), (3.2e-6, 100), (1.6e-6, 256), (1.6e-6, 100)]
    assert jobs[2].name == "tiny_eta=3.2e-06_subset_size=256"
    assert [execution.job.name for execution in skipped] == ["other"]
    jobs, skipped = plan("report", find_notebooks(folder), {"subset_size": ["256"]})
    assert {job.name: job.parameters for job in jobs} == {"list": {}, "other": {}, "tiny": {"subset_size": 256}}
    assert skipped == []


@pytest.mark.parametrize(
    ("values", "start", "part"),
    [
        ({"eta": ["3.2e-6", "1.6e-6"]}, "a report takes one value of eta", "1.6e-6"),
        ({"subset_sise": ["3"]}, "parameter ", "subset_sise"),
        ({"subset_size": ["0"]}, "subset_size ", "'0'"),
        ({"eta": ["nan"]}, "eta ", "'nan'"),
        ({"large_batch": ["E_99"]}, "large_batch ", "'E_99'"),
        ({"data_root": ["one", "two"]}, "a report takes one value of data_root", "one, two"),
        ({"data_root": ["nowhere"]}, "data_root ", "'nowhere'"),
    ],
)
def test_a_bad_parameter_is_refused_by_name_and_value(values: dict[str, list[str]], start: str, part: str) -> None:
    with refused(start, part):
        plan("report", [REPOSITORY / "notebooks" / "02_batch_size_comparison.ipynb"], values)


def test_the_command_says_what_is_wrong_before_anything_runs(tmp_path: Path, folder: Path) -> None:
    for options, part in ((("-p", "lable", "x"), "label"), (("--notebook", "tyni"), "tiny")):
        result = sweep(tmp_path / "out", folder, *options)
        assert result.exit_code == 1
        [line] = result.output.splitlines()
        assert line.startswith("Error: ")
        assert options[-2] in line or options[-1] in line
        assert part in line
    (folder / "broken.ipynb").write_text("{}")
    assert str(folder / "broken.ipynb") in report(tmp_path / "out", folder).output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("label", [*NASTY, "ünïcödé", ".", ""])
def test_names_are_safe_and_unique_whatever_the_parameters(folder: Path, label: str) -> None:
    jobs, _ = plan("sweep", [folder / "tiny.ipynb"], {"label": [label, label + " "]})
    names = {job.name for job in jobs}
    assert len(names) == 2
    for name in names:
        assert len(name) <= 120
        assert name == Path(name).name
        assert not set(name) & set("<>\"'\n/\\ ")


def test_a_notebook_that_needs_an_extra_is_skipped_with_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_notebook(tmp_path / "a.ipynb", "from analysis_helpers.measure import sample")
    monkeypatch.setattr("analysis_helpers.execution.sweep.find_spec", lambda name: None)
    [row] = run_copies("report", tmp_path, tmp_path / "out").to_dict("records")
    assert row["status"] == "skipped"
    assert 'pip install ".[measure]"' in row["reason"]
    assert row["reason"] in text(tmp_path / "out" / "index.html").replace("&#34;", '"')


# --- running ----------------------------------------------------------------------------------------------------------


def test_a_sweep_writes_notebooks_pages_tables_and_nothing_else(tmp_path: Path) -> None:
    folder = write_notebook(tmp_path / "notebooks" / "tiny.ipynb", figure=True).parent
    before = sorted(tmp_path.rglob("*"))
    result = sweep(tmp_path / "out", folder, "--eta", "1e-6", "--eta", "2e-6", "--subset-size", "8", "--workers", "2")
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == str(tmp_path / "out" / "index.html")
    made = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    stems = [f"tiny_eta={eta}_subset_size=8" for eta in ("1e-06", "2e-06")]
    kinds = (("notebooks", "ipynb"), ("pages", "html"), ("figures", "png"))
    files = {f"{place}/{stem}.{ending}" for stem in stems for place, ending in kinds}
    assert {name for name in made if not name.startswith(".")} == {"index.html", "results.csv", "runlog.csv", *files}
    assert sorted(path for path in tmp_path.rglob("*") if tmp_path / "out" not in (path, *path.parents)) == before
    assert (tmp_path / "out" / "figures" / f"{stems[0]}.png").read_bytes().startswith(b"\x89PNG")
    results = pd.read_csv(tmp_path / "out" / "results.csv")
    assert results["param.eta"].tolist() == [1e-6, 1e-6, 2e-6, 2e-6]
    assert results["value"].fillna(-1).tolist() == [8e-6, -1, 1.6e-5, -1]
    log = runlog(tmp_path / "out")
    assert log[["status", "reason", "version"]].to_numpy().tolist() == [["done", "", __version__]] * 2
    assert (log["seconds"] > 0).all()


def test_a_second_report_on_unchanged_data_runs_no_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_notebook(tmp_path / "notebooks" / "tiny.ipynb", figure=True).parent
    arguments = tmp_path / "out", folder, "--eta", "2e-6"
    assert report(*arguments).exit_code == 0
    index = text(tmp_path / "out" / "index.html")
    assert 'src="data:image/svg+xml;base64' in index
    monkeypatch.setattr("analysis_helpers.execution.sweep.run_jobs", None)
    assert report(*arguments).exit_code == 0
    assert text(tmp_path / "out" / "index.html") == index
    assert runlog(tmp_path / "out")["status"].tolist() == ["unchanged"]
    assert pd.read_csv(tmp_path / "out" / "results.csv")["value"].tolist()[0] == 8e-6


def test_progress_is_a_line_for_each_notebook(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_notebook(folder / "other.ipynb", parameters="unrelated: int = 1  # nothing")
    log = run_copies("sweep", folder, tmp_path / "out", {"label": ["fine", "odd"]}, "failed", "odd", "no")
    assert log["status"].tolist() == ["done", "failed", "skipped"]
    starts = "other: skipped: ", "[1/2] tiny_label=odd: failed: no", "[2/2] tiny_label=fine: done"
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith(start) for line, start in zip(lines, starts, strict=True))


@pytest.mark.parametrize("kind", ["report", "sweep"])
def test_what_changed_or_failed_runs_again_and_nothing_else(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    path, arguments = folder / "tiny.ipynb", (kind, folder, tmp_path / "out")
    assert statuses(*arguments, {"eta": ["2e-6"]}, "failed") == ["failed"]
    assert statuses(*arguments, {"eta": ["2e-6"]}) == ["done"]
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[2].outputs = [nbformat.v4.new_output("stream", text="stored")]
    nbformat.write(notebook, path)
    assert statuses(*arguments, {"eta": ["2e-6"]}) == ["unchanged"]
    write_notebook(path, BODY + "\n# changed")
    assert statuses(*arguments, {"eta": ["2e-6"]}) == ["done"]
    monkeypatch.setattr("analysis_helpers.execution.sweep.package_digest", lambda: "of another version")
    assert statuses(*arguments, {"eta": ["2e-6"]}) == ["done"]


def test_a_second_sweep_of_other_values_adds_its_rows_and_leaves_out_what_has_changed_since(
    tmp_path: Path, folder: Path
) -> None:
    path = write_notebook(folder / "tiny.ipynb", BODY, figure=True)
    for eta in ("1e-6", "2e-6"):
        assert sweep(tmp_path / "out", folder, "--eta", eta).exit_code == 0
    assert pd.read_csv(tmp_path / "out" / "results.csv")["param.eta"].dropna().unique().tolist() == [2e-6, 1e-6]
    assert runlog(tmp_path / "out")["status"].tolist() == ["done", "unchanged"]
    pages = [f"pages/tiny_eta={eta}.html" for eta in ("1e-06", "2e-06")]
    assert set(pages) <= set(links(tmp_path / "out" / "index.html"))
    write_notebook(path, BODY + "\n# changed")
    log = run_copies("sweep", folder, tmp_path / "out", {"eta": ["2e-6"]})
    assert log["status"].tolist() == ["done", "skipped"]
    assert "changed" in log["reason"][1]


def test_changed_data_run_again(tmp_path: Path) -> None:
    data = tmp_path / "data" / "E_1" / "run_01" / "results.json"
    data.parent.mkdir(parents=True)
    folder = write_notebook(tmp_path / "n" / "tiny.ipynb", parameters='data_root: str = "."  # data').parent
    for content, status in (("{}", "done"), (None, "unchanged"), ("{ }", "done")):
        if content:
            data.write_text(content)
        assert statuses("sweep", folder, tmp_path / "out", {"data_root": [str(tmp_path / "data")]}) == [status]


def test_the_digest_of_the_package_follows_nested_modules_data_and_templates(tmp_path: Path) -> None:
    digests = set()
    for name in ("part/module.py", "data/calibration.json", "templates/page.html"):
        (tmp_path / name).parent.mkdir()
        for content in ("a = 1\n", "a = 2\n"):
            (tmp_path / name).write_text(content, encoding="utf-8")
            digests.add(package_digest.__wrapped__(tmp_path))
    assert len(digests) == 6


@pytest.mark.parametrize("kind", ["report", "sweep"])
@pytest.mark.parametrize("name", ["results.csv", "index.html", "pages/mine.html", "notebooks/tiny.ipynb"])
def test_files_of_other_origin_are_left_alone(tmp_path: Path, folder: Path, kind: Kind, name: str) -> None:
    out, mine = tmp_path / "out", tmp_path / "out" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with refused(str(out / Path(name).parts[0]), kind):
        run_copies(kind, folder, out, {"eta": ["1e-6"]})
    assert mine.read_text() == "mine"
    assert [path for path in out.rglob("*") if path.is_file() and not path.name.startswith(".")] == [mine]
    with FileLock(out / ".lock"), refused("another report or sweep is running", out):
        run_copies(kind, folder, out, {"eta": ["1e-6"]})


def test_a_notebook_without_a_page_has_failed(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis_helpers.execution.pages.page_exporter", lambda: 1 / 0)
    [row] = run_copies("report", folder, tmp_path / "out").to_dict("records")
    assert row["status"] == "failed"
    assert "ZeroDivisionError" in row["reason"]
    assert (tmp_path / "out" / "notebooks" / row["file"]).is_file()
    assert len(notices(tmp_path / "out" / "index.html")) == 1


# --- stopping ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_report_shows_what_ran_leaves_no_kernel_and_is_resumed(tmp_path: Path, how: signal.Signals) -> None:
    import psutil

    folder, out, begun = tmp_path / "notebooks", tmp_path / "out", tmp_path / "begun"
    write_notebook(folder / "b.ipynb", "print('done')")
    waiting = "if not path.exists(): path.touch(); time.sleep(60)"
    write_notebook(folder / "a.ipynb", f"import pathlib, time\npath = pathlib.Path({str(begun)!r})\n{waiting}")
    process = start("report", "--notebooks", folder, "--out", out, "--workers", 1)
    wait_until(lambda: begun.exists() and (out / "notebooks" / "b.ipynb").exists())
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(how)
    _, log = process.communicate(timeout=60)
    assert process.returncode == 130, log
    assert str(out) in log
    assert psutil.wait_procs(children, timeout=10)[1] == []
    assert dict(runlog(out)[["notebook", "status"]].to_numpy()) == {"a": "skipped", "b": "done"}
    assert "pages/b.html" in links(out / "index.html")
    assert report(out, folder).exit_code == 0
    assert dict(runlog(out)[["notebook", "status"]].to_numpy()) == {"a": "done", "b": "unchanged"}


@pytest.mark.slow  # eighteen kernels each
@pytest.mark.parametrize("moment", [0, 2])
def test_a_killed_sweep_is_resumed_by_the_same_command(tmp_path: Path, folder: Path, moment: int) -> None:
    sizes = [part for n in range(1, 7) for part in ("--subset-size", str(n))]
    options = *sizes, "-p", "seconds", "0.5", "--workers", "2"
    out, afresh = (command(tmp_path / name, folder, *options) for name in ("out", "afresh"))
    place = tmp_path / "out" / "notebooks"
    process = start(*out)
    wait_until(lambda: len(stored(tmp_path / "out")) >= moment if moment else place.exists())
    process.kill()
    process.communicate()
    finished = stored(tmp_path / "out")
    assert all(STAMP in nbformat.read(path, as_version=4).metadata for path in finished)
    for again in (start(*out), start(*afresh)):
        _, log = again.communicate(timeout=300)
        assert again.returncode == 0, log
    statuses = ["done"] * (6 - len(finished)) + ["unchanged"] * len(finished)
    assert sorted(runlog(tmp_path / "out")["status"]) == statuses
    assert (tmp_path / "out" / "results.csv").read_bytes() == (tmp_path / "afresh" / "results.csv").read_bytes()


# --- pages and tables -------------------------------------------------------------------------------------------------


def test_the_first_page_of_a_report_is_its_first_notebook_with_links_to_the_others(tmp_path: Path) -> None:
    run_copies("report", REPOSITORY / "notebooks", tmp_path)
    index = tmp_path / "index.html"
    pages = [f"pages/{name}.html" for name in runlog(tmp_path)[lambda log: log["status"] == "done"]["notebook"]]
    assert len(pages) >= 8
    # In the text, in its table, and at the foot.
    assert [link for link in links(index) if link.startswith("pages/")] == pages[1:2] + pages[1:] + pages
    assert notices(index) == []
    cells = nbformat.read(NOTEBOOKS[0], as_version=4).cells
    tags = [cell.metadata.get("tags", []) for cell in cells if cell.cell_type == "code"]
    folded = len([tag for tag in tags if "repeated" not in tag]) + len([tag for tag in tags if "folded" in tag])
    assert text(index).count("<details") == folded
    assert text(index).count("Is the step linear? Yes") == 1  # everything once
    for page in tmp_path.rglob("*.html"):
        local = [link for link in links(page) if ":" not in link]
        assert [link for link in local if not (page.parent / link).is_file()] == []
        assert page == index or "../index.html" in local


def test_a_link_to_what_is_not_there_is_text(tmp_path: Path) -> None:
    body = "[other](other.ipynb), [data](../README.md), [web](https://example.org), [section](#top)"
    write_notebook(tmp_path / "n" / "a.ipynb", title=body)
    run_copies("report", tmp_path / "n", tmp_path / "out")
    assert links(tmp_path / "out" / "pages" / "a.html") == ["../index.html", "https://example.org"]


def test_a_notebook_that_fails_keeps_its_page_of_an_earlier_run_and_is_named_on_the_first_page(tmp_path: Path) -> None:
    folder, out = tmp_path / "notebooks", tmp_path / "out"
    for name in ("a", "b"):
        write_notebook(folder / f"{name}.ipynb", title=f"# First {name}")
    index, page, arguments = out / "index.html", out / "pages" / "b.html", ("report", folder, out)
    assert statuses(*arguments) == ["done", "done"]
    assert notices(index) == notices(page) == []
    for name in ("a", "b"):
        write_notebook(folder / f"{name}.ipynb", title=f"# Second {name}")
    error = "ValueError: <script>"
    assert statuses(*arguments, {}, "failed", "", error) == ["failed", "failed"]
    assert ["&lt;script&gt;" in notice for notice in notices(index)] == [True, True]
    for path, title in ((index, "First a"), (page, "First b")):
        assert title in text(path)
    assert "earlier run" in notices(page)[0]
    assert "Second b" in text(out / "notebooks" / "b.unfinished.ipynb")
    assert statuses(*arguments, {}, "skipped", "b", "no score") == ["done", "skipped"]
    assert notices(index) == []
    assert "no score" in notices(page)[0]
    assert "Second b" in text(page)
    write_notebook(folder / "b.ipynb", title="# First b")
    assert statuses(*arguments) == ["unchanged", "unchanged"]
    assert notices(index) == notices(page) == []
    assert "First b" in text(page)
    assert not list(out.rglob("*.unfinished.ipynb"))


def test_a_failing_first_notebook_leaves_its_part_is_named_on_the_first_page_and_stops_no_other(tmp_path: Path) -> None:
    folder, out = tmp_path / "notebooks", tmp_path / "out"
    cells = "print('first cell')", "from analysis_helpers import load_runs\nload_runs('nowhere')", "print('third cell')"
    write_notebook(folder / "a.ipynb", *cells)
    write_notebook(folder / "b.ipynb")
    result = report(out, folder)
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1] == str(out / "index.html")
    assert runlog(out)["status"].tolist() == ["failed", "done"]
    assert printed(out / "notebooks" / runlog(out)["file"][0]) == "first cell\n"
    [notice] = notices(out / "index.html")
    assert notice.startswith("a ")
    assert re.fullmatch("RunError: .*nowhere.*", runlog(out)["reason"][0])  # one sentence
    assert notice.endswith(runlog(out)["reason"][0].replace("'", "&#39;"))
    assert "pages/b.html" in links(out / "index.html")


def rerun(
    out: Path, name: str, *rows: Any, label: str = "plain", error: str = "", alt: str = "a figure", **parameters: Any
) -> Execution:
    """Return how a notebook ended that showed a figure and collected the rows."""
    result = {"notebook": "note", "parameters": parameters, "rows": list(rows)}
    figure = nbformat.v4.new_output("display_data", {"image/png": ""}, metadata={"image/png": {"alt": alt}})
    outputs = [figure, nbformat.v4.new_output("display_data", {RESULT_MIME: result})]
    cell = nbformat.v4.new_code_cell(outputs=outputs, metadata={"tags": ["key"]})
    path = out / f"{name}.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    job = Job(Path("note.ipynb"), {"eta": 1e-6, "label": label}, name)
    return Execution(job, "failed" if error else "done", error, path, 1.23456, ("1.2.3", "0123456789abcdef"))


def first_page(out: Path, *executions: Execution) -> str:
    write_index(False, executions, out)
    return text(out / "index.html")


def test_results_have_a_row_an_estimate_with_ten_significant_digits(tmp_path: Path) -> None:
    one = rerun(tmp_path, "a", {"value": 1 / 3, "eta": 7.0}, eta=1e-5, etas=[1e-5])
    two = rerun(tmp_path, "b", {"value": 1.0, "text": 'c"d'}, {"value": 2.0, "list": [1, 2]}, eta=2e-6, n=4)
    first_page(tmp_path, one, two, rerun(tmp_path, "c", {"value": 4.0}, error="ValueError: after the result"))
    header, *rows = (tmp_path / "results.csv").read_text().splitlines()
    assert header == "notebook,param.eta,param.etas,param.n,eta,value,text,list"  # no estimate is taken for a parameter
    second, third = 'note,2e-06,,4,,1,"c""d",', 'note,2e-06,,4,,2,,"[1, 2]"'
    assert rows == ["note,1e-05,[1e-05],,7,0.3333333333,,", second, third]
    log = runlog(tmp_path)[["status", "reason", "seconds", "version", "digest", "parameters"]]
    same = [1.235, "1.2.3", "0123456789ab", '{"eta": 1e-06, "label": "plain"}']
    assert log.to_numpy()[1:].tolist() == [["done", "", *same], ["failed", "ValueError: after the result", *same]]


def test_equal_reruns_give_one_row_without_the_parameters_that_did_not_matter(tmp_path: Path) -> None:
    made = [rerun(tmp_path, f"a{eta}", {"value": 1.0}, eta=eta, n=4) for eta in (1e-6, 2e-6)]
    first_page(tmp_path, *made, rerun(tmp_path, "b", {"value": 2.0}, eta=1e-6, n=4))
    rows = (tmp_path / "results.csv").read_text().splitlines()
    assert rows == ["notebook,param.eta,param.n,value", "note,,4,1", "note,1e-06,4,2"]


def test_the_data_root_is_as_it_was_given_in_tables_and_at_the_foot_of_each_page_with_a_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    parameters = 'data_root: str = "."  # data'
    result = {"notebook": "tiny", "parameters": {"data_root": str(tmp_path)}, "rows": [{"value": 1.0}]}
    folder = write_notebook(tmp_path / "n" / "tiny.ipynb", f"{result}", parameters=parameters).parent
    notebook = nbformat.read(folder / "tiny.ipynb", as_version=4)
    notebook.cells[2].outputs = [nbformat.v4.new_output("display_data", {RESULT_MIME: result, "text/plain": ""})]
    nbformat.write(notebook, folder / "tiny.ipynb")
    feet = []
    for content in ("{}", "{ }"):
        (tmp_path / "d" / "E_1" / "r").mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / "E_1" / "r" / "results.json").write_text(content)
        run_copies("report", folder, tmp_path / "out", {"data_root": ["../" + tmp_path.name + "/d"]})
        given = f"../{tmp_path.name}/d"
        assert pd.read_csv(tmp_path / "out" / "results.csv")["param.data_root"].tolist() == [given]
        assert given in runlog(tmp_path / "out")["parameters"][0]
        pages = [text(path).partition("page-foot")[2] for path in (tmp_path / "out").rglob("*.html")]
        assert all(given in foot and __version__ not in foot and "1.2.3" in foot for foot in pages)
        feet += re.findall(r"\(digest (\w+)\)\.</p>", pages[0])
    assert len(set(feet)) == 2  # of the contents


def test_the_map_of_verdicts_comes_first_then_figures_then_the_table(tmp_path: Path) -> None:
    answers = {(1e-6, 64): ["no"], (2e-6, 64): ["yes"], (2e-6, 256): ["yes", "no", "no"]}
    made = [
        rerun(tmp_path, name, *({"linear": answer} for answer in of_cell), eta=eta, subset_size=n)
        for name, ((eta, n), of_cell) in zip("abc", answers.items(), strict=True)
    ]
    page = first_page(tmp_path, *made, Execution(Job(Path("05_x.ipynb"), {}, "05_x"), "skipped", "no eta"))
    places = [page.index(part) for part in ('<table class="map">', "<figure>", 'href="pages/a.html"', 'alt="a figure"')]
    assert places == sorted(places)
    assert "05_x" in page
    cells = re.findall(r'<td class="([a-z-]*)">([^<]*)</td>', page)
    assert cells[:4] == [("no", "no"), ("", ""), ("yes", "yes"), ("cannot-tell", "2 x no, 1 x yes")]


def test_a_figure_is_shown_once_and_none_of_a_failed_rerun(tmp_path: Path) -> None:
    made = [rerun(tmp_path, name, alt=alt) for name, alt in (("a", "one"), ("b", "one"), ("c", "two"))]
    failed = rerun(tmp_path, "d", {"linear": "yes"}, eta=1e-6, subset_size=1, error="ValueError: no")
    page = first_page(tmp_path, *made, failed)
    assert (page.count("<figure>"), page.count("the same in 2 reruns")) == (2, 1)
    assert "ValueError: no" in page
    assert '<table class="map">' not in page


@pytest.mark.parametrize("nasty", NASTY)
def test_names_and_errors_are_escaped_wherever_they_stand(tmp_path: Path, nasty: str) -> None:
    made = rerun(tmp_path, "a & 'b\" #?", label=nasty)
    broken = rerun(tmp_path, "c", label=nasty, error=nasty)
    first_page(tmp_path, made, broken, Execution(Job(Path("x.ipynb"), {}, nasty), "skipped", nasty))
    page = text(tmp_path / "index.html")
    assert "<script" not in page
    assert not set("<>\"'") & set(nasty) or nasty not in page
    assert "pages/a & 'b\" #?.html" in [unquote(link) for link in re.findall(r'href="([^"]*)"', page)]
    assert not [link for link in links(tmp_path / "index.html") if "://" in link or link.startswith("..")]
