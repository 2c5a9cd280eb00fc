"""Shared data: the sample data of the repository, and real runs where RESEARCH_RUNS says where they are."""

import os
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
from hypothesis import settings

from analysis_helpers import Runs, load_runs

REPOSITORY = Path(__file__).parent.parent

mpl.use("Agg")

# No test is timed: on a busy machine any example may take long.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def _close_figures() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.fixture(scope="session")
def sample_root() -> Path:
    return REPOSITORY / "data_samples"


@pytest.fixture(scope="session")
def large_runs(sample_root: Path) -> Runs:
    return load_runs(sample_root / "E_2048")


@pytest.fixture(scope="session")
def small_runs(sample_root: Path) -> Runs:
    return load_runs(sample_root / "E_256")


@pytest.fixture(scope="session")
def research_root() -> Path:
    place = os.environ.get("RESEARCH_RUNS")
    if not place:
        pytest.skip("RESEARCH_RUNS is not set: it names a folder with the published runs E_2048 and E_256")
    return Path(place)
