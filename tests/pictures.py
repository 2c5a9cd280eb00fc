"""Make the pictures of the README anew: ``python -m tests.pictures``, with Chromium."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.browsing import opened_browser, run_all, served_lab
from tests.conftest import REPOSITORY

FIGURES = REPOSITORY / "notebooks" / "figures"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, opened_browser() as browser:
        _of_the_explorer(browser, Path(folder) / "lab")
        _of_a_report(browser, Path(folder) / "report")


def _of_the_explorer(browser: Any, folder: Path) -> None:
    folder.mkdir()
    with served_lab(folder) as address:
        page = browser.new_page(viewport={"width": 1280, "height": 1100})
        run_all(page, address, "07_explore")
        page.evaluate("window.jupyterapp.commands.execute('application:toggle-left-area')")
        explorer = page.locator(".entropy-explorer")
        explorer.scroll_into_view_if_needed()
        page.wait_for_timeout(1000)  # until the window has settled
        explorer.screenshot(path=FIGURES / "explore.png")


def _of_a_report(browser: Any, out: Path) -> None:
    command = [sys.executable, "-m", "analysis_helpers", "report", "--out", str(out)]
    subprocess.run(command, check=True, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    shutil.copy(out / "figures" / "02_batch_size_comparison.png", FIGURES / "comparison.png")
    page = browser.new_page(viewport={"width": 900, "height": 620})
    page.goto((out / "index.html").as_uri())
    page.screenshot(path=FIGURES / "report.png")


if __name__ == "__main__":
    main()
