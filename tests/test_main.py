import re
import shutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import analysis_helpers
from analysis_helpers import Runs, load_runs, verdict
from analysis_helpers.__main__ import main
from analysis_helpers.execution.sweep import find_notebooks, missing_extra
from analysis_helpers.runs.json import encode_run
from tests.building import random_run
from tests.conftest import REPOSITORY
from tests.sweeping import write_notebook


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_inventory_is_printed_and_a_problem_is_an_exit_status_of_1(
    sample_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(sample_root.parent))
    monkeypatch.setenv("USERPROFILE", str(sample_root.parent))
    result = call("inventory", f"~/{sample_root.name}/")
    assert result.exit_code == 0
    assert len(result.output.splitlines()) == 9
    assert "1.6e-06, 3.2e-06" in result.output
    bad = tmp_path / "E_12" / "run_01" / "results.json"
    bad.parent.mkdir(parents=True)
    bad.write_bytes(encode_run(random_run())[:100])
    result = call("inventory", tmp_path)
    assert result.exit_code == 1
    assert "file must be complete JSON" in result.output


@pytest.mark.parametrize("command", [None, "inventory", "verdict", "report", "sweep", "simulate", "measure"])
def test_help_is_shown_and_nothing_else(command: str | None) -> None:
    result = call(*filter(None, (command, "--help")))
    assert result.exit_code == 0
    assert result.output.startswith("Usage: ")
    assert "Error" not in result.output


def test_what_is_missing_is_one_sentence(tmp_path: Path) -> None:
    places = ("inventory", tmp_path / "nowhere"), ("report", "--notebooks", tmp_path, "--out", tmp_path / "out")
    for arguments in places:
        result = call(*arguments)
        assert result.exit_code == 1
        assert re.fullmatch(rf"Error: .*{tmp_path}.*\n", result.output)


def test_measuring_without_pytorch_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "analysis_helpers.measure", raising=False)
    monkeypatch.delattr(analysis_helpers, "measure", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    result = call("measure", "--demo", "out")
    assert result.exit_code == 1
    assert result.output.endswith('measuring needs PyTorch and transformers: pip install ".[measure]" in a checkout\n')


def test_the_verdict_needs_no_option_and_takes_several_step_sizes(sample_root: Path, large_runs: Runs) -> None:
    small = load_runs(sample_root / "E_256")
    assert str(verdict(large_runs, 1.6e-6, 256, small_runs=small)) in call("verdict", sample_root).output
    both = call("verdict", sample_root, "--eta", "1.6e-6", "--eta", "3.2e-6", "-n", 64, "--small-batch", "").output
    for eta in (1.6e-6, 3.2e-6):
        assert str(verdict(large_runs, eta, 64)) in both
    refused = call("verdict", sample_root, "--eta", "5e-6")
    assert refused.exit_code == 1
    assert refused.output.startswith("Error: eta must be a step size of E_2048")


def test_simulate_writes_the_sample_data(tmp_path: Path) -> None:
    result = call("simulate", tmp_path / "made")
    assert result.exit_code == 0
    assert len(list((tmp_path / "made").rglob("results.json"))) == 8


def test_the_version_is_that_of_the_package() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    [version] = re.findall(r'^version = "(.+)"$', text, re.MULTILINE)
    assert version in call("--version").output


@pytest.mark.parametrize(
    ("option", "value"),
    [("--eta", "small"), ("--eta", "-1"), ("--subset-size", "256.5"), ("--subset-size", "0"), ("--data-root", "no")],
)
def test_a_bad_option_is_refused_by_name_and_value_before_anything_runs(option: str, value: str) -> None:
    result = call("report", option, value)
    assert result.exit_code == 2
    assert f"Invalid value for '{option}': " in result.output
    assert value in result.output


def test_a_report_whose_notebooks_fail_says_so_on_the_page_and_exits_with_1(tmp_path: Path) -> None:
    folder = tmp_path / "notebooks"
    write_notebook(folder / "03_fine.ipynb")
    write_notebook(folder / "04_failing.ipynb", "from analysis_helpers import load_runs\nload_runs('nowhere')")
    result = call("report", "--notebooks", folder, "--out", tmp_path / "out")
    assert result.exit_code == 1
    page = (tmp_path / "out" / "failed" / "index.html").read_text(encoding="utf-8")
    assert result.stdout.splitlines()[-1] == str(tmp_path / "out" / "failed" / "index.html")
    assert page.count("RunError: ") == 1  # one sentence, no traceback
    assert "File &quot;" not in page
    assert 'href="03_fine.html"' in page


def test_a_report_is_refused_before_anything_runs_if_a_notebook_cannot_take_its_parameters(tmp_path: Path) -> None:
    folder = write_notebook(tmp_path / "notebooks" / "01_fine.ipynb").parent
    shutil.copy(REPOSITORY / "notebooks" / "02_batch_size_comparison.ipynb", folder)
    result = call("report", "--notebooks", folder, "--data-root", tmp_path, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert len(result.output.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow  # runs every notebook, which nbval does in `make test` too
def test_a_report_shows_every_notebook_and_loads_nothing_from_a_network(tmp_path: Path) -> None:
    result = call("report", "--out", tmp_path, "--eta", "3.2e-6", "--subset-size", "128")
    assert result.exit_code == 0, result.output
    assert Path(result.stdout.splitlines()[-1]) == tmp_path / "index.html"
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    for path in find_notebooks():
        if missing_extra(path):
            assert re.search(rf'id="{path.stem}">\s*<h2>[^<]*</h2>\s*<p class="error"><strong>Skipped:</strong>', page)
            continue
        assert f'href="{path.stem}.html"' in page
        assert (tmp_path / f"{path.stem}.html").stat().st_size > 100_000
        figures = sorted(figure.suffix for figure in (tmp_path / "figures").glob(f"{path.stem}-*"))
        assert figures == [".png"] * (len(figures) // 2) + [".svg"] * (len(figures) // 2)
        assert figures
    shown = re.sub(r"<[^>]*>", "", page)
    assert [each for each in ("eta = 3.2e-06", "etas = [3.2e-06]", "subset_size = 128") if each not in shown] == []
    for made in tmp_path.glob("*.html"):
        pattern = r"""<(?:script|link|img|iframe)[^>]*\s(?:src|href)=["'](?!data:)([^"']+)"""
        assert re.findall(pattern, made.read_text("utf-8")) == [], made.name
