"""What browser tests share: a Chromium and a JupyterLab that ask nothing of a network or of anybody's settings."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
in_browser = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)"),
]
PATIENCE = 180  # seconds; a notebook takes a few

# What Chromium would otherwise ask the network for at its start.
_QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Waits until Lab has opened the notebook and its kernel answers, then runs all cells by Lab's own command.
_RUN_ALL = """async () => {
    const lab = window.jupyterapp;
    await lab.restored;
    const panel = lab.shell.currentWidget;
    await panel.context.ready;
    await panel.sessionContext.ready;
    await lab.commands.execute("notebook:run-all-cells");
    const cells = panel.context.model.toJSON().cells.filter(cell => cell.cell_type === "code");
    return cells.map(cell => ({count: cell.execution_count, kinds: cell.outputs.map(output => output.output_type)}));
}"""


@contextmanager
def opened_browser() -> Iterator[Any]:
    """Start Chromium and close it in the end."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=_QUIET)
        yield browser
        browser.close()


@contextmanager
def served_lab(folder: Path) -> Iterator[str]:
    """Serve a copy of the notebooks in ``folder`` by JupyterLab, on loopback; yields its address."""
    shutil.copytree(REPOSITORY / "notebooks", folder / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    (folder / "data_samples").symlink_to(REPOSITORY / "data_samples")
    extensions = folder / "settings" / "@jupyterlab"
    # Every cell is in the page, not only those in sight; nobody is asked about news.
    for name, settings in {
        "notebook-extension/tracker": {"windowingMode": "none"},
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    }.items():
        path = extensions / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings))
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser"]
    command += ["--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0", "--IdentityProvider.token="]
    command += [f"--ServerApp.root_dir={folder / 'notebooks'}", f"--LabApp.user_settings_dir={folder / 'settings'}"]
    own = {name: str(folder / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")}
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, env=os.environ | own, stdout=log, stderr=log)
    try:
        _wait_for(f"http://127.0.0.1:{port}/api", server, folder / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


def run_all(page: Any, lab: str, name: str) -> list[dict[str, Any]]:
    """Open a notebook, run all of it, and return execution count and kinds of outputs of each code cell."""
    page.goto(f"{lab}/lab/tree/{name}.ipynb?reset")
    page.wait_for_function("window.jupyterapp && window.jupyterapp.shell.currentWidget?.context")
    cells: list[dict[str, Any]] = page.evaluate(_RUN_ALL)
    return cells


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
