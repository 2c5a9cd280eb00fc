"""Execution of notebooks as reports and sweeps, by one engine; needs the extra "notebooks"."""

from .engine import How as How
from .sweep import (
    find_notebooks as find_notebooks,
    make_report as make_report,
    make_sweep as make_sweep,
    missing_extra as missing_extra,
)
