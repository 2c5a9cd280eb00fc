"""Pages as a reader sees them: in Chromium, at the width of a desk and of a phone."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browsing import in_browser, opened_browser
from tests.conftest import REPOSITORY
from tests.sweeping import ended, write_notebook, write_report

pytest.importorskip("papermill", reason="the extra 'notebooks' is not installed")
pytest.importorskip("playwright", reason="playwright is not installed")
pytestmark = in_browser
WIDTHS = {"desk": 1280, "phone": 390}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with opened_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sweep the verdict over two etas and two sizes, and a notebook that fails, with a name to be escaped."""
    from analysis_helpers.execution import How, make_sweep

    out = tmp_path_factory.mktemp("sweep")
    folder = tmp_path_factory.mktemp("notebooks")
    shutil.copy(REPOSITORY / "notebooks" / "00_start_here.ipynb", folder)
    write_notebook(folder / "it's <b>bold<b> & 50%.ipynb", "raise ValueError('<script>alert(1)</script>')")
    options = {
        "data_root": [str(REPOSITORY / "data_samples")],
        "eta": ["1.6e-6", "3.2e-6"],
        "subset_size": ["128", "4"],
    }
    make_sweep(options, out, How(), folder=folder)
    return out


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pages of the stored notebooks."""
    paths = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
    return write_report(list(map(ended, paths)), tmp_path_factory.mktemp("report")).parent


class Visit:
    """A page that was opened, with what it asked for and what it complained of."""

    def __init__(self, browser: Any, path: Path, width: int) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 900})
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        self.page.goto(path.as_uri())
        self.page.wait_for_load_state("networkidle")


@pytest.fixture(params=list(WIDTHS))
def visit(request: pytest.FixtureRequest, browser: Any, sweep: Path) -> Iterator[Visit]:
    made = Visit(browser, sweep / "index.html", WIDTHS[request.param])
    yield made
    made.page.close()


def test_the_page_of_a_sweep_asks_for_nothing_but_its_own_files_and_complains_of_nothing(visit: Visit) -> None:
    assert all(url.startswith(("file://", "data:")) for url in visit.asked)
    assert visit.complaints == []
    assert visit.page.locator("script").count() == 0


def test_the_page_fits_its_width_and_only_tables_scroll(visit: Visit) -> None:
    width = visit.page.evaluate("document.documentElement.clientWidth")
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_map_says_an_answer_in_every_cell_and_figures_are_loaded(visit: Visit) -> None:
    maps = visit.page.locator("table.map")
    assert maps.count() == 4  # each question, and whether a batch is enough for it
    cells = maps.first.locator("td").all_inner_texts()
    assert len(cells) == 4
    assert set(cells) <= {"yes", "no", "cannot tell"}
    figures = visit.page.locator("figure img")
    assert figures.count() == 1  # the same in all four reruns
    figures.scroll_into_view_if_needed()
    visit.page.wait_for_function("[...document.images].every(image => image.complete && image.naturalWidth > 100)")


def test_errors_are_text_and_every_row_links_to_its_notebook(visit: Visit, browser: Any) -> None:
    failed = visit.page.locator("tr.failed")
    assert failed.count() == 4
    assert "<script>alert(1)</script>" in failed.first.inner_text()
    for link in visit.page.locator("table a").all():
        path = visit.page.evaluate("link => link.href", link.element_handle())
        page = browser.new_page()
        assert page.goto(path).ok
        assert page.title()
        page.close()


@pytest.mark.parametrize("width", WIDTHS.values(), ids=list(WIDTHS))
def test_the_page_of_a_notebook_asks_for_nothing_from_a_network(browser: Any, sweep: Path, width: int) -> None:
    path = next((sweep / "pages").glob("00_*.html"))
    opened = Visit(browser, path, width)
    assert all(url.startswith(("file://", "data:")) for url in opened.asked)
    assert opened.page.locator("text=How to read it.").count() >= 2
    opened.page.close()


# Numbers of which a part stands on another line than the rest.
BROKEN = """() => {
    const broken = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const node = walker.currentNode;
        if (!node.parentElement.closest("td, th, .answer")) continue;
        for (const found of node.data.matchAll(/[-+]?\\d[\\d.,]*(e[-+]\\d+)?/g)) {
            const range = document.createRange();
            range.setStart(node, found.index);
            range.setEnd(node, found.index + found[0].length);
            if (new Set([...range.getClientRects()].map(box => Math.round(box.top))).size > 1) broken.push(found[0]);
        }
    }
    return broken;
}"""
IMAGES = """() => [...document.images].map(image => {
    const box = image.getBoundingClientRect();
    return [image.naturalWidth > 100, box.left >= 0 && box.right <= innerWidth, image.alt];
})"""
CUT = "() => [...document.querySelectorAll('.table')].filter(box => box.scrollWidth > box.clientWidth).length"
FIRST = ["table", "img", ".answer", "nav ul"]
BOTTOMS = "names => names.map(name => document.querySelector(name).getBoundingClientRect().bottom)"


@pytest.mark.parametrize(("width", "longest"), [(1280, 9000), (390, 14000)])
def test_every_page_of_a_report_fits_its_width(browser: Any, report: Path, width: int, longest: int) -> None:
    for path in report.glob("*.html"):
        opened = Visit(browser, path, width)
        assert opened.complaints == []
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
        for loaded, inside, alt in opened.page.evaluate(IMAGES):
            assert (loaded, inside) == (True, True)
            assert re.search(r"\d", alt)
        assert opened.page.evaluate(BROKEN) == []
        if path.stem == "index":
            assert opened.page.evaluate(CUT) == 0
            assert opened.page.evaluate("document.documentElement.scrollHeight") < longest
        opened.page.close()


def test_the_first_screen_of_a_report_has_the_verdict_a_figure_and_what_to_do_next(browser: Any, report: Path) -> None:
    opened = Visit(browser, report / "index.html", 1280)
    table, figure, following, contents = opened.page.evaluate(BOTTOMS, FIRST)
    assert table < min(figure, following) < max(figure, following) < min(contents, 800)
    opened.page.close()
