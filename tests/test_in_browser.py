"""Pages as a reader sees them: in Chromium, at the width of a desk and of a phone."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from analysis_helpers.execution import RunOptions, find_notebooks, run_notebooks
from tests.browsing import in_browser, opened_browser
from tests.conftest import REPOSITORY
from tests.sweeping import run_copies, write_notebook

pytest.importorskip("papermill", reason="the extra 'notebooks' is not installed")
pytest.importorskip("playwright", reason="playwright is not installed")
pytestmark = in_browser
WIDTHS = [1280, 390]  # of a desk and of a phone


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with opened_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sweep the verdict over two etas and two sizes, and a notebook that fails, with a name to be escaped."""
    out = tmp_path_factory.mktemp("sweep")
    folder = tmp_path_factory.mktemp("notebooks")
    shutil.copy(REPOSITORY / "notebooks" / "00_start_here.ipynb", folder)
    write_notebook(folder / "it's <b>bold<b> & 50%.ipynb", "raise ValueError('<script>alert(1)</script>')")
    values = {"data_root": [str(REPOSITORY / "data_samples")], "eta": ["1.6e-6", "3.2e-6"], "subset_size": ["128", "4"]}
    run_notebooks("sweep", find_notebooks(folder), values, out, RunOptions())
    return out


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pages of the stored notebooks, of which one failed."""
    out = tmp_path_factory.mktemp("report")
    run_copies("report", REPOSITORY / "notebooks", out, {}, "failed", "05_", f"ValueError: {'x' * 300}")
    return out


@contextmanager
def opened(browser: Any, path: Path, width: int = WIDTHS[0]) -> Iterator[Any]:
    """Open a page, which fits its width, asks nothing of a network and reports no error."""
    page, urls, errors = browser.new_page(viewport={"width": width, "height": 900}), list[str](), list[str]()
    page.on("request", lambda request: urls.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(path.as_uri())
    page.wait_for_load_state("networkidle")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    yield page
    assert errors == []
    assert all(url.startswith(("file://", "data:")) for url in urls)
    page.close()


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_of_a_sweep_shows_maps_figures_and_errors(browser: Any, sweep: Path, width: int) -> None:
    with opened(browser, sweep / "index.html", width) as page:
        assert page.locator("script").count() == 0
        maps = page.locator("table.map")
        assert maps.count() == 4  # each question, and whether a batch is enough for it
        cells = maps.first.locator("td").all_inner_texts()
        assert len(cells) == 4
        assert set(cells) <= {"yes", "no", "cannot tell"}
        figures = page.locator("figure img")
        assert figures.count() == 2  # one for each eta: the batch in question is not in it
        figures.first.scroll_into_view_if_needed()
        figures.last.scroll_into_view_if_needed()
        page.wait_for_function("[...document.images].every(image => image.complete && image.naturalWidth > 100)")
        failed = page.locator("tr.failed")
        assert failed.count() == 4
        assert "<script>alert(1)</script>" in failed.first.inner_text()
        for link in page.locator("table a").all():
            target = browser.new_page()
            assert target.goto(page.evaluate("link => link.href", link.element_handle())).ok
            assert target.title()
            target.close()


# Numbers of which a part stands on another line than the rest.
BROKEN = """() => {
    const broken = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const node = walker.currentNode;
        if (!node.parentElement.closest("td, th, li")) continue;
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


# Cells that hold a long text in a column too narrow for it, or that no scrolling brings into sight.
UNREADABLE = """() => [...document.querySelectorAll("td")].filter(cell => {
    const box = cell.getBoundingClientRect(), frame = cell.closest(".jp-RenderedHTMLCommon, .jp-RenderedMarkdown");
    const scrolls = frame.scrollWidth > frame.clientWidth && getComputedStyle(frame).overflowX === "auto";
    return box.width && (cell.innerText.length > 40 && box.width < 100 || box.right > innerWidth && !scrolls);
}).map(cell => cell.innerText)"""


@pytest.mark.parametrize("width", WIDTHS)
def test_every_page_of_a_report_shows_its_figures_and_breaks_no_number(browser: Any, report: Path, width: int) -> None:
    pages = list(report.rglob("*.html"))
    assert len(pages) > 8
    for path in pages:
        with opened(browser, path, width) as page:
            for loaded, inside, alt in page.evaluate(IMAGES):
                assert (loaded, inside) == (True, True)
                assert re.search(r"\d", alt)
            page.evaluate("document.querySelectorAll('.folded').forEach(folded => folded.open = true)")
            assert page.evaluate(BROKEN) == []
            assert page.evaluate(UNREADABLE) == []


def test_a_report_begins_with_what_failed_and_folds_its_code(browser: Any, report: Path) -> None:
    with opened(browser, report / "index.html") as page:
        notice = page.locator(".notice")
        assert notice.count() == 1
        assert notice.inner_text().startswith("05_")
        assert notice.bounding_box()["y"] < page.locator("h1").first.bounding_box()["y"] < 300
        code = page.locator(".jp-InputArea-editor").first
        assert not code.is_visible()
        page.locator("summary").first.click()
        assert code.is_visible()
