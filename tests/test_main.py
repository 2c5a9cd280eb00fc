from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from analysis_helpers.__main__ import main
from analysis_helpers.runs.json import encode_run
from tests.building import random_run
from tests.conftest import REPOSITORY
from tests.sweeping import write_notebook


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_inventory_is_printed(sample_root: Path) -> None:
    result = call("inventory", sample_root)
    assert result.exit_code == 0
    assert len(result.output.splitlines()) == 9
    assert "1.6e-06, 3.2e-06" in result.output


def test_an_inventory_with_a_problem_has_exit_status_1(tmp_path: Path) -> None:
    bad = tmp_path / "E_12" / "run_01" / "results.json"
    bad.parent.mkdir(parents=True)
    bad.write_bytes(encode_run(random_run())[:100])
    result = call("inventory", tmp_path)
    assert result.exit_code == 1
    assert "file must be complete JSON" in result.output


def test_a_missing_folder_is_one_sentence(tmp_path: Path) -> None:
    result = call("inventory", tmp_path / "nowhere")
    assert result.exit_code == 1
    assert re.fullmatch(r"Error: .*nowhere: folder does not exist; looked for .*\n", result.output)


def test_simulate_writes_the_sample_data(tmp_path: Path) -> None:
    result = call("simulate", tmp_path / "made")
    assert result.exit_code == 0
    assert len(list((tmp_path / "made").rglob("results.json"))) == 8


def test_the_version_is_that_of_the_package() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'^version = "(.+)"$', text, re.MULTILINE)
    assert found is not None
    assert found[1] in call("--version").output


def test_a_report_of_no_notebooks_is_one_sentence(tmp_path: Path) -> None:
    result = call("report", "--notebooks", tmp_path, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert result.output == f"Error: no notebooks (*.ipynb) in {tmp_path}\n"


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--eta", "small", "'small' is not a valid float"),
        ("--eta", "-1", "-1.0 is not in the range x>0"),
        ("--subset-size", "256.5", "'256.5' is not a valid integer"),
        ("--subset-size", "0", "0 is not in the range x>=1"),
        ("--data-root", "nowhere", "Directory 'nowhere' does not exist"),
    ],
)
def test_a_bad_option_is_refused_by_name_before_anything_runs(option: str, value: str, message: str) -> None:
    result = call("report", option, value)
    assert result.exit_code == 2
    assert f"Invalid value for '{option}': {message}" in result.output


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a report with non-default parameters; return its folder."""
    folder = tmp_path_factory.mktemp("report")
    result = call("report", "--out", folder, "--eta", "3.2e-6", "--subset-size", "128")
    assert result.exit_code == 0, result.output
    assert Path(result.stdout.splitlines()[-1]) == folder / "index.html"
    return folder


def test_a_report_shows_every_notebook_with_its_parameters_answer_and_figures(report: Path) -> None:
    page = (report / "index.html").read_text(encoding="utf-8")
    shown = {
        "00_start_here": 1,
        "01_load_runs": 3,
        "02_batch_size_comparison": 2,
        "03_subsampling_distribution": 3,
        "04_choosing_a_batch_size": 3,
        "05_known_truth": 3,
        "06_explore": 1,
    }
    for name, figures in shown.items():
        assert f'href="{name}.html"' in page
        assert (report / f"{name}.html").stat().st_size > 100_000
        assert len(list((report / "figures").glob(f"{name}-*.png"))) == figures
        assert len(list((report / "figures").glob(f"{name}-*.svg"))) == figures
    assert "computed below" not in page
    assert "etas = [3.2e-06]" in page
    assert page.count("subset_size = 128") == 4


def test_pages_load_nothing_from_a_network(report: Path) -> None:
    for page in report.glob("*.html"):
        loaded = re.findall(
            r"""<(?:script|link|img|iframe)[^>]*\s(?:src|href)=["'](?!data:)([^"']+)""", page.read_text("utf-8")
        )
        assert loaded == [], f"{page.name} loads {loaded}"


def test_a_report_whose_notebooks_fail_says_so_on_the_page_and_exits_with_1(tmp_path: Path) -> None:
    folder = tmp_path / "notebooks"
    write_notebook(folder / "03_fine.ipynb")
    for name in ("01_load_runs", "02_batch_size_comparison"):
        shutil.copy(REPOSITORY / "notebooks" / f"{name}.ipynb", folder)
    result = call("report", "--notebooks", folder, "--data-root", tmp_path, "--out", tmp_path / "out")
    assert result.exit_code == 1
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert page.count("This notebook stopped:") == 2
    assert (
        f"ParameterError: large_batch must be a batch folder in {tmp_path} (there: none), got &#39;E_2048&#39;" in page
    )
    assert 'href="03_fine.html"' in page
