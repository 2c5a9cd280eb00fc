"""The shape of the package, kept: imports run one way, each library has its place, importing is cheap."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import analysis_helpers

PACKAGE = Path(analysis_helpers.__file__).parent

# A module imports only modules that stand above it.
ORDER = [
    "checks",
    "files",
    "runs",
    "results_schema",
    "results_text",
    "results_json",
    "run_files",
    "policy",
    "synthetic",
    "estimators",
    "subsampling",
    "pooling",
    "err_rel",
    "drawn_subsets",
    "partial_sum",
    "comparison",
    "inference",
    "random_effects",
    "prediction",
    "prediction_check",
    "planning",
    "answers",
    "decomposition",
    "integrity",
    "run_tables",
    "health_checks",
    "health",
    "verdict",
    "exploration",
    "replicates",
    "unhealthy",
    "known_truth",
    "calibration",
    "wording",
    "known_truth_wording",
    "plot_style",
    "plots",
    "run_plots",
    "exploration_plots",
    "planning_plots",
    "known_truth_plots",
    "notebook",
    "explorer",
    "execute",
    "pages",
    "engines",
    "sweep",
    "sweep_tables",
    "sweep_page",
    "sweep_run",
    "__init__",
    "__main__",
]
# Libraries with a place of their own; NumPy and the standard library may be used everywhere.
PLACES = {
    "msgspec": {"results_schema", "results_text", "results_json"},
    "pandas": {
        "err_rel",
        "drawn_subsets",
        "partial_sum",
        "comparison",
        "inference",
        "prediction_check",
        "planning",
        "decomposition",
        "run_tables",
        "health",
        "verdict",
        "exploration",
        "exploration_plots",
        "unhealthy",
        "known_truth",
        "calibration",
        "wording",
        "known_truth_wording",
        "plot_style",
        "plots",
        "run_plots",
        "planning_plots",
        "known_truth_plots",
        "notebook",
        "explorer",
        "sweep_tables",
        "sweep_page",
    },
    "scipy": {"random_effects", "prediction_check", "calibration"},
    "arviz_stats": {"health_checks"},
    "matplotlib": {"plot_style", "plots", "run_plots", "exploration_plots", "planning_plots", "known_truth_plots"},
    "IPython": {"notebook"},
    "ipywidgets": {"explorer"},
    "papermill": {"execute"},
    "nbclient": {"execute"},
    "traitlets": {"execute"},
    "nbformat": {"execute", "pages", "sweep", "sweep_tables"},
    "nbconvert": {"pages"},
    "jinja2": {"pages", "sweep_page"},
    "dask": {"engines"},
    "psutil": {"engines"},
    "jupyter_core": {"engines"},
    "filelock": {"sweep"},
    "tqdm": {"sweep_run"},
    "markupsafe": {"pages"},
    "click": {"__main__"},
}


def imports_of(name: str) -> set[str]:
    """Return what a module imports: ``.name`` for one of ours, the top-level name for others."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            ours = {alias.name for alias in node.names} & set(ORDER)  # as in: from . import plots
            found |= {f".{name}" for name in ([node.module] if node.module else ours or {"__init__"})}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def test_every_module_has_its_place_in_the_order() -> None:
    assert sorted(ORDER) == sorted(path.stem for path in PACKAGE.glob("*.py"))


@pytest.mark.parametrize("name", ORDER)
def test_imports_run_one_way(name: str) -> None:
    above = {f".{module}" for module in ORDER[: ORDER.index(name)]}
    assert {module for module in imports_of(name) if module.startswith(".")} <= above


@pytest.mark.parametrize("name", ORDER)
def test_each_library_is_used_only_where_it_belongs(name: str) -> None:
    others = {module for module in imports_of(name) if not module.startswith(".")} - set(sys.stdlib_module_names)
    for module in others - {"numpy", "analysis_helpers"}:
        assert name in PLACES.get(module, set()), f"{name} imports {module}"


@pytest.mark.parametrize("name", ORDER)
def test_files_are_data_and_none_is_run(name: str) -> None:
    assert imports_of(name) & {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "code", "yaml"} == set()
    tree = ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))
    plain = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert plain & {"eval", "exec", "compile", "__import__", "__builtins__"} == set()
    methods = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert methods & {"eval", "read_pickle", "to_pickle", "load_module", "exec_module"} == set()
    options = {node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword)}
    assert "allow_pickle" not in options


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import analysis_helpers, sys; print(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {
        "matplotlib",
        "scipy",
        "arviz_stats",
        "IPython",
        "papermill",
        "nbformat",
        "nbclient",
        "nbconvert",
        "jinja2",
        "click",
    }
    assert heavy & {module.split(".")[0] for module in output} == set()
    assert "pandas" in output


@pytest.mark.parametrize("name", ORDER)
def test_no_function_swallows_options(name: str) -> None:
    tree = ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert [function.name for function in functions if function.args.kwarg] == []


# Signatures that people call from their own notebooks: names, order, what is keyword-only, defaults.
SIGNATURES = {
    "load_runs": "(source, *, on_error='raise')",
    "write_run": "(path, run)",
    "inventory": "(data_root)",
    "reference_true_totals": "(runs)",
    "per_sequence_contributions": "(run, eta)",
    "aggregate_err_rel": "(true_subset, linear_subset, true_total_full)",
    "simulate_err_rel": "(run, eta, sample_size=256, *, num_samples=1000, seed=0, estimator='partial_sum', "
    "sampler='sequential', reference=None)",
    "simulate_err_rel_across_runs": "(runs, etas, sample_size=256, *, num_samples=1000, seed=0, "
    "estimator='partial_sum', sampler='sequential', references=None)",
    "collect_err_rel_across_runs": "(runs, eta, true_total_ref, *, estimator='partial_sum')",
    "sample_err_rel_across_runs": "(runs, eta_values, *, subset_size=256, samples_per_eta=200, seed=0, "
    "estimator='partial_sum', sampler='sequential', references=None)",
    "summarize_err_rel_distribution": "(df)",
    "compare_err_rel_distributions": "(large_runs, small_runs, eta, *, sample_size=256, num_samples=2000, seed=0, "
    "estimator='partial_sum', sampler='sequential')",
    "plot_err_rel_comparison": "(comparison, *, ax=None)",
    "plot_err_rel_histograms": "(df, eta_values, *, estimator='partial_sum', moments=None)",
    "err_rel_standard_error": "(run, eta, n=None, *, reference=None, estimator='ratio', population='policy')",
    "decompose_err_rel": "(runs, eta, *, reference=None, score_adjusted=False)",
    "predict_err_rel": "(large_runs, eta, n, *, reference=None)",
    "check_prediction": "(large_runs, small_runs, eta, *, reference=None)",
    "required_batch_size": "(runs, eta, *, target_sd=None, tolerance=None, probability=0.9, estimator='ratio', "
    "reference=None)",
    "run_health": "(runs)",
    "verdict": "(large_runs, eta, n, *, tolerance=0.25, probability=0.9, small_runs=None)",
    "trusted_eta": "(runs, *, tolerance=0.25, probability=0.9)",
    "write_sample_data": "(root)",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_public_signatures_are_a_contract(name: str) -> None:
    signature = inspect.signature(getattr(analysis_helpers, name))
    plain = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    bare = signature.replace(parameters=plain, return_annotation=inspect.Signature.empty)
    assert str(bare) == SIGNATURES[name]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'plot_err_rel'"):
        _ = analysis_helpers.plot_err_rel


def test_public_names_are_sorted_exist_and_have_docstrings() -> None:
    names = analysis_helpers.__all__
    assert names == sorted(names)
    assert all(getattr(analysis_helpers, name).__doc__ for name in names)


def test_public_functions_have_a_doctest() -> None:
    for name in analysis_helpers.__all__:
        thing = getattr(analysis_helpers, name)
        if inspect.isfunction(thing):
            assert ">>>" in (thing.__doc__ or ""), name
