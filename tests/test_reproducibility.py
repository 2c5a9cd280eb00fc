"""The tables of a sweep are the same bytes whatever surrounds it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

pytest.importorskip("papermill", reason="the extra 'notebooks' is not installed")

QUESTION = ["--notebook", "02_batch_size_comparison", "--notebook", "03_subsampling_distribution"]
VALUES = ["--eta", "3.2e-6", "--eta", "1.6e-6", "-p", "num_samples", "20", "-p", "samples_per_eta", "20"]


@dataclass(frozen=True)
class Surroundings:
    """What must not matter: workers, working folder, place of the checkout, environment."""

    workers: int
    folder: str
    environment: dict[str, str] = field(default_factory=dict)
    copied: bool = False


USUAL = Surroundings(1, ".", {"LC_ALL": "C.UTF-8", "TZ": "UTC", "PYTHONHASHSEED": "0"})
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
UNUSUAL = {
    "more workers, plain ASCII": Surroundings(3, "notebooks", {**ASCII, "TZ": "Asia/Kolkata", "PYTHONHASHSEED": "1"}),
    "another checkout, decimal comma": Surroundings(
        2, "/", {"LC_ALL": "de_DE.UTF-8", "TZ": "America/St_Johns", "PYTHONHASHSEED": "12345"}, copied=True
    ),
}


def swept(around: Surroundings, out: Path) -> bytes:
    """Return `results.csv` of a sweep made in the surroundings."""
    root = REPOSITORY
    if around.copied:
        root = out / "another place, with spaces"
        for name in ("notebooks", "data_samples"):
            shutil.copytree(REPOSITORY / name, root / name)
    command = [sys.executable, "-m", "analysis_helpers", "sweep", *QUESTION, *VALUES, "--workers", str(around.workers)]
    places = ["--notebooks", str(root / "notebooks"), "--data-root", str(root / "data_samples"), "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **around.environment}
    if around.environment["LC_ALL"] == "de_DE.UTF-8":
        environment["LOCPATH"] = str(with_decimal_comma(out))
    subprocess.run([*command, *places], cwd=root / around.folder, env=environment, check=True, capture_output=True)
    return (out / "results.csv").read_bytes()


def with_decimal_comma(folder: Path) -> Path:
    """Return a folder with the German locale in it, where the machine can make it; a locale that lacks does no harm."""
    place = folder / "locales"
    place.mkdir()
    if shutil.which("localedef"):
        command = ["localedef", "--inputfile=de_DE", "--charmap=UTF-8", str(place / "de_DE.UTF-8")]
        subprocess.run(command, check=False, capture_output=True)
    return place


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return swept(USUAL, tmp_path_factory.mktemp("usual"))


@pytest.mark.slow
@pytest.mark.parametrize("which", UNUSUAL)
def test_results_are_the_same_bytes_whatever_surrounds_the_sweep(usual: bytes, tmp_path: Path, which: str) -> None:
    assert usual.count(b"\n") == 9  # 2 etas, 2 notebooks, 2 estimators, and the header
    assert swept(UNUSUAL[which], tmp_path) == usual
