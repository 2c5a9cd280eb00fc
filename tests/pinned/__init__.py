"""What must not change while code moves: fingerprints of results on the published runs, and of what figures plot.

Results on the sample data are held by the stored outputs of notebooks and by `tests.plain`.

``python -m tests.pinned`` stores them anew; do so only in a commit that says which number changed and why.
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import analysis_helpers as ah
from analysis_helpers import inference, plots, runs
from analysis_helpers.notebook.explorer import explore
from analysis_helpers.notebook.parameters import read_parameters
from analysis_helpers.synthetic.calibration import read_calibration

PLACE = Path(__file__).parent
REPOSITORY = PLACE.parent.parent
SAMPLES = REPOSITORY / "data_samples"
ETAS = (1.6e-6, 3.2e-6)
KEEP_TO: dict[str, Any] = {"tolerance": 0.25, "probability": 0.9}


def fingerprint(value: Any) -> Any:
    """Return numbers as they are, long columns as count, sum, sum of magnitudes and a weighted sum."""
    if isinstance(value, pd.DataFrame):
        return {str(name): fingerprint(value[name].tolist()) for name in value.columns}
    if is_dataclass(value):
        return {f.name: fingerprint(getattr(value, f.name)) for f in fields(value) if f.name not in ("runs", "source")}
    if isinstance(value, dict):
        return {str(key): fingerprint(part) for key, part in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return _sequence(list(np.asarray(value, dtype=object).ravel()))
    if isinstance(value, bool | np.bool_ | str | None):
        return None if value is None else str(value)
    return None if value is pd.NA else float(value)


def _sequence(values: list[Any]) -> Any:
    plain = [fingerprint(value) for value in values]
    if len(plain) <= 12 or not all(isinstance(value, float) for value in plain):
        return plain[:12]
    finite = np.nan_to_num(np.array(plain), posinf=0.0, neginf=0.0)
    weighted = finite @ np.linspace(0, 1, len(finite))
    return [float(total) for total in (len(finite), finite.sum(), np.abs(finite).sum(), weighted)]


def plotted(figure: Figure) -> list[Any]:
    """Return the data that a figure draws: lines, bars, areas, histograms, panel by panel."""
    found = []
    for ax in figure.axes:
        found.append([fingerprint(np.asarray(line.get_xydata())) for line in ax.lines])
        found.append([fingerprint(np.concatenate([p.vertices for p in c.get_paths()])) for c in ax.collections])
        found.append([fingerprint(patch.get_path().vertices) for patch in ax.patches])
    plt.close(figure)
    return found


def results(root: Path) -> dict[str, Any]:
    """Return the public results on the runs below a data root."""
    return {name: fingerprint(value) for name, value in _results(root)}


def _results(root: Path) -> Iterator[tuple[str, Any]]:
    large, small = ah.load_runs(root / "E_2048"), ah.load_runs(root / "E_256")
    references = ah.reference_true_totals(large)
    yield "inventory", ah.inventory(root)
    yield "health", ah.run_health(large).drop(columns="meaning")
    yield "totals", inference.run_totals({"E_2048": large, "E_256": small})
    yield "references", references
    yield "decomposition", inference.decomposition_table(large, ETAS)
    yield "published", ah.sample_err_rel_across_runs(large, ETAS, samples_per_eta=500, seed=42)
    yield "explained", ah.explain_partial_sum(large, list(ETAS), 256)
    yield "sizes", inference.spread_by_size(large, ETAS[0], num_samples=100)
    for eta in ETAS:
        yield f"contributions {eta}", [ah.per_sequence_contributions(run, eta) for run in large.values()]
        yield f"tails {eta}", inference.influence_tails(inference.influence_table(large, eta))
        for estimator in ("partial_sum", "ratio", "matched", "adjusted"):
            named = f"{estimator} {eta}"
            chosen: Any = {"estimator": estimator}
            for sampler in ("sequential", "disjoint"):
                draws = ah.simulate_err_rel_across_runs(large, [eta], num_samples=50, sampler=sampler, **chosen)
                yield f"draws {sampler} {named}", draws
            yield f"actual {named}", ah.collect_err_rel_across_runs(small, eta, references[eta], **chosen)
            compared = ah.compare_err_rel_distributions(large, small, eta, num_samples=50, **chosen)
            yield f"comparison {named}", compared.summary
            of_subset: Any = {"population": "run", "reference": references[eta], **chosen}
            errors = [ah.err_rel_standard_error(run, eta, 256, **of_subset) for run in large.values()]
            yield f"standard errors {named}", errors
            yield f"moments {named}", inference.subset_moments(large, [eta], 256, **chosen)
            if estimator != "partial_sum":
                required = [ah.required_batch_size(large, eta, tolerance=t, **chosen) for t in (0.25, 0.5, 1.0, 2.0)]
                yield f"required {named}", [*required, ah.required_batch_size(large, eta, target_sd=0.25, **chosen)]
        predicted = ah.predict_err_rel(large, eta, 256)
        yield f"prediction {eta}", [predicted.mean, predicted.sd, predicted.tau, *predicted.interval(0.9)]
        yield f"check {eta}", ah.check_prediction(large, small, eta)
        yield f"verdict {eta}", ah.verdict_map(large, [eta], small_runs=small)
        yield f"errors {eta}", inference.error_by_size(large, eta, [64, 256, 2048], tolerance=0.25)
        yield f"budget {eta}", inference.budget_table(large, eta)
    yield "plans", inference.plan_batch_sizes(large, ETAS, tolerance=1.0)
    yield "trend", ah.entropy_trend(large)
    yield "nonlinearity", ah.nonlinearity(large)
    yield "estimators", inference.estimator_table(large, ETAS[0])
    yield "trusted", [ah.trusted_eta(large, tolerance=t) for t in (0.25, 1.0, 4.0)]


def figures(root: Path) -> dict[str, Any]:
    """Return the data that every figure plots."""
    return {name: plotted(figure) for name, figure in _figures(root)}


def _figures(root: Path) -> Iterator[tuple[str, Any]]:
    batches = runs.sound_batches(root)
    large, small = batches["E_2048"], batches["E_256"]
    for estimator in ("partial_sum", "ratio"):
        found = ah.compare_err_rel_distributions(large, small, ETAS[0], num_samples=50, estimator=estimator)
        yield f"comparison by {estimator}", plots.plot_err_rel_comparison(found).figure
    moments = inference.subset_moments(large, ETAS, 256)
    draws = ah.sample_err_rel_across_runs(large, ETAS, estimator="ratio", samples_per_eta=50)
    yield "histograms", plots.plot_err_rel_histograms(draws, ETAS, estimator="ratio", moments=moments)
    checked = ah.check_prediction(large, small, ETAS[0])
    yield "prediction", plots.plot_prediction(ah.predict_err_rel(large, ETAS[0], 256), checked)
    spread = inference.spread_by_size(large, ETAS[0], [64, 256, 2048], num_samples=50)
    yield "spread", plots.plot_spread_by_size(spread, 256)
    yield "totals", plots.plot_totals(inference.run_totals(batches))
    yield "tails", plots.plot_influence_tails(inference.influence_table(large, ETAS[0]))
    yield "trend", plots.plot_trend(ah.entropy_trend(large), inference.run_totals({"E_2048": large}))
    yield "nonlinearity", plots.plot_nonlinearity(ah.nonlinearity(large), tolerance=0.25)
    yield "parts", plots.plot_decomposition(inference.decomposition_table(large, ETAS))
    errors = inference.error_by_size(large, ETAS[0], [64, 256, 2048], **KEEP_TO)
    yield "errors", plots.plot_error_by_size(errors, eta=ETAS[0], **KEEP_TO)
    plans = inference.plan_batch_sizes(large, ETAS, tolerance=0.5)
    yield "required", plots.plot_required_sizes(plans, goal="")
    yield "map", plots.plot_verdict_map(ah.verdict_map(large, ETAS, **KEEP_TO))
    yield "budget", plots.plot_budget(inference.budget_table(large, ETAS[0]), sequences=2048)
    folders = {"data_root": str(root), "large_batch": "E_2048", "small_batch": "E_256"}
    choice = {"eta": ETAS[0], "subset_size": 256, "estimator": "ratio", "num_samples": 50, "seed": 0, **KEEP_TO}
    yield "exploration", explore(read_parameters({**folders, **choice})).plot()
    stored = read_calibration()
    yield "calibration", plots.plot_calibration(stored["coverage"], stored["pit"])
    yield "rates", plots.plot_verdict_rates(stored["enough"], "n", "")


SOURCES: dict[str, Callable[[], dict[str, Any]]] = {
    "real": lambda: results(Path(os.environ["RESEARCH_RUNS"])),
    "figures": lambda: figures(SAMPLES),
}


def stored(name: str) -> Any:
    return json.loads((PLACE / f"{name}.json").read_text(encoding="utf-8"))
