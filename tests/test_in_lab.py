"""Notebooks as people use them: opened in JupyterLab, run by its own command, controls moved by hand."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from analysis_helpers.execution.sweep import find_notebooks, missing_extra
from tests.browsing import PATIENCE, in_browser, opened_browser, run_all, served_lab
from tests.conftest import REPOSITORY

pytest.importorskip("jupyterlab", reason="the extra 'notebooks' is not installed")
pytest.importorskip("playwright", reason="playwright is not installed")
pytestmark = in_browser
NOTEBOOKS = [path.stem for path in find_notebooks() if not missing_extra(path)]
FIGURES = """() => [...document.querySelectorAll(".jp-RenderedImage img")]
    .filter(image => image.complete && image.naturalWidth > 300).length"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served_lab(tmp_path_factory.mktemp("lab")) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with opened_browser() as browser:
        yield browser


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    opened = browser.new_page(viewport={"width": 1440, "height": 1000})
    opened.set_default_timeout(PATIENCE * 1000)
    yield opened
    opened.close()


def stored_figures(name: str) -> int:
    cells = json.loads((REPOSITORY / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    return sum("image/png" in output.get("data", {}) for cell in cells for output in cell.get("outputs", []))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_through_in_lab_and_shows_its_figures(page: Any, lab: str, name: str) -> None:
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    cells = run_all(page, lab, name)
    assert [cell["count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not [kind for cell in cells for kind in cell["kinds"] if kind == "error"]
    page.wait_for_function(f"({FIGURES})() === {stored_figures(name)}")
    assert complaints == []


def test_dragging_and_typing_change_numbers_and_figure(page: Any, lab: str) -> None:
    run_all(page, lab, "07_explore")
    explorer = page.locator(".entropy-explorer")
    sliders = explorer.locator(".widget-slider")
    size = sliders.filter(has_text="subset size")
    explorer.get_by_text("256 enough?").wait_for()
    before = explorer.locator("img").first.get_attribute("src")
    handle, track = size.locator(".noUi-handle"), size.locator(".noUi-base")
    handle.scroll_into_view_if_needed()
    box, line = handle.bounding_box(), track.bounding_box()
    assert line["width"] > 250  # a pixel is a few sequences
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(line["x"] + line["width"] / 2, box["y"] + box["height"] / 2, steps=5)
    page.mouse.up()
    explorer.get_by_text(re.compile(r"^10\d\d enough\?$")).wait_for()  # about half of 2,048
    for typed, expected in (("96", "96"), ("many", "96")):  # a number is taken, anything else refused
        size.locator(".widget-readout").fill(typed)
        size.locator(".widget-readout").press("Enter")
        explorer.get_by_text(f"{expected} enough?", exact=True).wait_for()
        assert size.locator(".widget-readout").inner_text() == expected
    page.wait_for_function("before => document.querySelector('.entropy-explorer img').src !== before", arg=before)


@pytest.mark.parametrize("width", [390, 1280, 1920])
def test_controls_and_figure_fit_into_the_window(page: Any, lab: str, width: int) -> None:
    run_all(page, lab, "07_explore")
    page.evaluate("window.jupyterapp.commands.execute('application:toggle-left-area')")
    page.set_viewport_size({"width": width, "height": 1000})
    explorer = page.locator(".entropy-explorer")
    explorer.locator("img").first.scroll_into_view_if_needed()
    page.wait_for_timeout(500)  # until Lab has settled into the new width
    room, margin = explorer.bounding_box(), 4
    for part in (".widget-dropdown", ".widget-slider", "img:visible"):
        for k in range(explorer.locator(part).count()):
            box = explorer.locator(part).nth(k).bounding_box()
            assert box["x"] >= room["x"] - margin
            assert box["x"] + box["width"] <= room["x"] + room["width"] + margin, part
