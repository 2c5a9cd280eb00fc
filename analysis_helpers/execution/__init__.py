"""Execution of notebooks as reports and sweeps, by one engine; needs the extra "notebooks"."""

from .engine import RunOptions as RunOptions
from .sweep import find_notebooks as find_notebooks, missing_extra as missing_extra, run_notebooks as run_notebooks
