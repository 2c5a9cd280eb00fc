"""What pages show of notebooks; how they look is tested in a browser."""

import re
from pathlib import Path

import nbformat
import pytest

from analysis_helpers.inference import QUESTIONS
from tests.conftest import REPOSITORY
from tests.sweeping import ended, write_report

pytest.importorskip("nbconvert", reason="the extra 'notebooks' is not installed")
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pages of all stored notebooks but the last, which was skipped."""
    skipped = ended(NOTEBOOKS[-1], skipped="it needs PyTorch")
    return write_report([*map(ended, NOTEBOOKS[:-1]), skipped], tmp_path_factory.mktemp("report")).parent


def test_the_first_page_shows_one_figure_and_one_table_a_notebook_and_answers_once(report: Path) -> None:
    page = (report / "index.html").read_text(encoding="utf-8")
    assert page.count("<img ") == page.count("<table") == len(NOTEBOOKS) - 1
    assert page.index("<table") < page.index("<img ") < page.index("Next: ") < page.index("<nav>")
    for question in QUESTIONS.values():
        assert len(re.findall(rf"<td[^>]*>{re.escape(question)}", page)) == 1
    assert "<strong>Skipped:</strong> it needs PyTorch" in page


def test_links_between_notebooks_lead_to_pages_and_back(report: Path) -> None:
    for page in report.glob("*.html"):
        links = re.findall(r'<a href="([^"#]+)', page.read_text(encoding="utf-8"))
        assert page.stem == "index" or page.stem == NOTEBOOKS[-1].stem or "index.html" in links
        assert [link for link in links if ":" not in link and not (report / link).is_file()] == []
    assert f'href="{NOTEBOOKS[1].stem}.html"' in (report / f"{NOTEBOOKS[0].stem}.html").read_text(encoding="utf-8")


def test_a_link_to_what_is_not_there_is_text(tmp_path: Path) -> None:
    text = "[other](other.ipynb), [data](../README.md), [web](https://example.org), [section](#top)"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)]), tmp_path / "a.ipynb")
    write_report([ended(tmp_path / "a.ipynb")], tmp_path)
    links = re.findall(r'<a href="([^"]*)"', (tmp_path / "a.html").read_text(encoding="utf-8"))
    assert [link for link in links if link != "index.html"] == ["https://example.org", "#top"]
