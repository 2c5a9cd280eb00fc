"""Notebooks as people use them: opened in JupyterLab, run by its own command, controls moved by hand."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.browsing import in_browser, opened_browser
from tests.conftest import REPOSITORY

pytest.importorskip("jupyterlab", reason="the extra 'notebooks' is not installed")
pytest.importorskip("playwright", reason="playwright is not installed")
pytestmark = in_browser
NOTEBOOKS = sorted(path.stem for path in (REPOSITORY / "notebooks").glob("*.ipynb"))
PATIENCE = 180  # seconds; running one takes a few

# Waits until Lab has opened the notebook and its kernel answers, then runs all cells by Lab's own command.
RUN_ALL = """async () => {
    const lab = window.jupyterapp;
    await lab.restored;
    const panel = lab.shell.currentWidget;
    await panel.context.ready;
    await panel.sessionContext.ready;
    await lab.commands.execute("notebook:run-all-cells");
    const cells = panel.context.model.toJSON().cells.filter(cell => cell.cell_type === "code");
    return cells.map(cell => ({count: cell.execution_count, kinds: cell.outputs.map(output => output.output_type)}));
}"""
FIGURES = """() => [...document.querySelectorAll(".jp-RenderedImage img")]
    .filter(image => image.complete && image.naturalWidth > 300).length"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve a copy of the notebooks on loopback, with nobody's personal settings."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(REPOSITORY / "notebooks", folder / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    (folder / "data_samples").symlink_to(REPOSITORY / "data_samples")
    settings = folder / "settings" / "@jupyterlab" / "notebook-extension"
    settings.mkdir(parents=True)
    # Every cell is in the page, not only those in sight.
    (settings / "tracker.jupyterlab-settings").write_text(json.dumps({"windowingMode": "none"}))
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser"]
    command += ["--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0", "--IdentityProvider.token="]
    command += [f"--ServerApp.root_dir={folder / 'notebooks'}", f"--LabApp.user_settings_dir={folder / 'settings'}"]
    command += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", "--LabApp.news_url=None"]
    own = {name: str(folder / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")}
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, env=os.environ | own, stdout=log, stderr=log)
    try:
        _wait_for(f"http://127.0.0.1:{port}/api", server, folder / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


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


def run_all(page: Any, lab: str, name: str) -> list[dict[str, Any]]:
    """Open a notebook, run all of it, and return execution count and kinds of outputs of each code cell."""
    page.goto(f"{lab}/lab/tree/{name}.ipynb?reset")
    page.wait_for_function("window.jupyterapp && window.jupyterapp.shell.currentWidget?.context")
    cells: list[dict[str, Any]] = page.evaluate(RUN_ALL)
    return cells


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
    stored = json.loads((REPOSITORY / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
    figures = sum(
        "image/png" in output.get("data", {}) for cell in stored["cells"] for output in cell.get("outputs", [])
    )
    page.wait_for_function(f"({FIGURES})() === {figures}")
    assert complaints == []


def test_moving_a_slider_changes_numbers_and_figure(page: Any, lab: str) -> None:
    run_all(page, lab, "06_explore")
    figure = page.locator(".entropy-explorer img")
    numbers = page.locator(".entropy-explorer table")
    numbers.get_by_text("SD of err_rel over subsets of 256").wait_for()
    before = figure.get_attribute("src"), numbers.inner_text()
    handle = page.locator(".explore-subset-size .noUi-handle")
    handle.scroll_into_view_if_needed()
    box, track = handle.bounding_box(), page.locator(".explore-subset-size .noUi-base").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(track["x"] + track["width"] / 3, box["y"] + box["height"] / 2, steps=5)
    page.mouse.up()
    numbers.get_by_text("SD of err_rel over subsets of 64").wait_for()
    page.wait_for_function(
        "before => document.querySelector('.entropy-explorer img').src !== before && "
        "!document.querySelector('.entropy-explorer').innerText.includes('Drawing')",
        arg=before[0],
    )
    assert numbers.inner_text() != before[1]
    assert page.locator(".entropy-explorer").get_by_text("Is a batch of 64 enough").count() == 1


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(PATIENCE * 5):
        if server.poll() is not None:
            raise RuntimeError(f"JupyterLab ended: {log.read_text(errors='replace')}")
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise RuntimeError(f"JupyterLab does not answer: {log.read_text(errors='replace')}")
