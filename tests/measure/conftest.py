"""PyTorch on one thread, as these models are too small for two to help; and the directions that a test takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from analysis_helpers.measure import direction_from_optimizer

torch.set_num_threads(1)


@pytest.fixture
def directions(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """Return a list that holds every direction taken from an optimizer."""
    taken: list[dict[str, torch.Tensor]] = []

    def kept(model: Any, optimizer: Any) -> dict[str, torch.Tensor]:
        taken.append(direction_from_optimizer(model, optimizer))
        return taken[-1]

    for place in ("analysis_helpers.measure", "analysis_helpers.measure.measuring"):
        monkeypatch.setattr(f"{place}.direction_from_optimizer", kept)
    return taken
