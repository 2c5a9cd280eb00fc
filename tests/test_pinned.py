"""Numbers that must not change while code moves."""

import math
from pathlib import Path
from typing import Any

from tests import pinned

RELATIVE = 1e-9  # of the largest number beside it: sums over sequences cancel, in another order on other processors


def differences(found: Any, expected: Any, path: str = "", scale: float = 0.0) -> list[str]:
    """Return where two nested structures differ by more than rounding."""
    if isinstance(expected, dict):
        if not isinstance(found, dict) or list(map(str, found)) != list(expected):
            return [f"{path}: names {list(found)} instead of {list(expected)}"]
        return [d for key in expected for d in differences(found[key], expected[key], f"{path}/{key}")]
    if isinstance(expected, list):
        if len(found) != len(expected):
            return [f"{path}: {len(found)} values instead of {len(expected)}"]
        numbers = [abs(v) for v in expected if isinstance(v, float) and math.isfinite(v)]
        pairs = enumerate(zip(found, expected, strict=True))
        return [d for k, (f, e) in pairs for d in differences(f, e, f"{path}[{k}]", max(numbers, default=0.0))]
    if isinstance(expected, float) and isinstance(found, int | float):
        if found == expected or (math.isnan(expected) and math.isnan(found)):
            return []
        same = abs(found - expected) <= RELATIVE * max(abs(expected), scale)
        return [] if same else [f"{path}: {found!r} instead of {expected!r}"]
    return [] if found == expected else [f"{path}: {found!r} instead of {expected!r}"]


def test_figures_plot_what_they_did() -> None:
    assert differences(pinned.SOURCES["figures"](), pinned.stored("figures")) == []


def test_results_on_the_published_runs_stay_what_they_were(research_root: Path) -> None:
    assert differences(pinned.results(research_root), pinned.stored("real")) == []


def test_a_change_of_one_part_in_a_billion_is_noticed() -> None:
    assert differences({"a": [1.0 + 1e-9]}, {"a": [1.0]}) == ["/a[0]: 1.000000001 instead of 1.0"]
