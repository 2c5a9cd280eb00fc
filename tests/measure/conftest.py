"""PyTorch on one thread: these models are too small for two to help."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
