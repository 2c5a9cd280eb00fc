"""What is left out where PyTorch is not installed: `make test-measure` runs it."""

from importlib.util import find_spec

NEEDS_TORCH = ["analysis_helpers/measure*", "tests/measure*", "notebooks/08_measure_a_model.ipynb"]

collect_ignore_glob = [] if find_spec("torch") else NEEDS_TORCH
