"""The shape of the package, kept: imports run one way, each library has its place, importing is cheap."""

import ast
import inspect
import subprocess
import sys
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import analysis_helpers

PACKAGE = Path(analysis_helpers.__file__).parent

# A subpackage or module imports only what stands above it.
ORDER = [
    "_checks",
    "runs",
    "estimators",
    "subsampling",
    "err_rel",
    "published",
    "inference",
    "synthetic",
    "plots",
    "notebook",
]
ORDER += ["execution", "measure", "__init__", "__main__"]
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
EVERYWHERE = {"numpy", "analysis_helpers"}  # notebooks' own version is read late, by its name
EXECUTION = ["dask", "ipykernel", "jinja2", "jupyter_client", "markupsafe", "nbclient", "nbconvert"]
EXECUTION += ["nbformat", "papermill", "psutil", "traitlets", "zmq"]
# Libraries with a place of their own: a subpackage, or one module of it.
PLACES = {
    "pandas": {
        "runs/folders.py",
        "err_rel",
        "published",
        "inference",
        "synthetic",
        "plots",
        "notebook",
        "execution",
        "__main__.py",
    },
    "msgspec": {"runs/json.py", "notebook"},
    "scipy": {"inference"},
    "matplotlib": {"plots"},
    "click": {"__main__.py"},
    **{library: {"notebook"} for library in ("IPython", "ipywidgets")},
    **{library: {"execution"} for library in EXECUTION},
    **{library: {"execution", "measure"} for library in ("filelock", "tqdm")},
    "torch": {"measure"},
    "transformers": {"measure"},
}


def parsed(module: str) -> ast.Module:
    return ast.parse((PACKAGE / module).read_text(encoding="utf-8"))


def own_imports(module: str) -> set[tuple[str, ...]]:
    """Return the modules of the package that a module imports, as paths: ("runs",) or ("runs", "json")."""
    here = module.removesuffix(".py").split("/")[:-1]
    found = set()
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = (*here[: len(here) - node.level + 1], *(node.module.split(".") if node.module else ()))
            modules = {(*base, alias.name) for alias in node.names if _is_module((*base, alias.name))}
            found |= {base} if base and (node.module or not modules) else modules or {("__init__",)}
    return found


def _is_module(path: tuple[str, ...]) -> bool:
    place = PACKAGE.joinpath(*path)
    return place.is_dir() or place.with_suffix(".py").exists()


def libraries(module: str) -> set[str]:
    found = set()
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - EVERYWHERE


def room(module: str) -> str:
    """Return the subpackage or top-level module that a module belongs to."""
    return module.removesuffix(".py").split("/")[0]


def test_every_subpackage_has_its_place_in_the_order() -> None:
    assert sorted(ORDER) == sorted({room(module) for module in MODULES})


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_downwards_only(module: str) -> None:
    below = set(ORDER[: ORDER.index(room(module)) + 1])
    assert {imported[0] for imported in own_imports(module)} <= below


def test_inference_selects_runs_and_reads_no_table_of_draws() -> None:
    modules = [module for module in MODULES if room(module) == "inference"]
    assert [m for m in modules if own_imports(m) & {("err_rel",), ("published",)}] == []


@pytest.mark.parametrize("module", MODULES)
def test_other_subpackages_are_imported_by_their_interface_only(module: str) -> None:
    assert {imported for imported in own_imports(module) if len(imported) > 1 and imported[0] != room(module)} == set()


def test_modules_of_a_subpackage_do_not_import_each_other_in_a_circle() -> None:
    graph = {
        m.removesuffix(".py"): {"/".join(i) for i in own_imports(m)} & {n.removesuffix(".py") for n in MODULES}
        for m in MODULES
    }
    list(TopologicalSorter(graph).static_order())  # raises CycleError


@pytest.mark.parametrize("module", MODULES)
def test_each_library_is_used_only_where_it_belongs(module: str) -> None:
    for library in libraries(module):
        assert PLACES.get(library, set()) & {module, room(module)}, f"{module} imports {library}"


def test_no_two_public_names_are_the_same_and_none_is_that_of_a_module() -> None:
    defined = [
        node.name
        for module in MODULES
        for node in parsed(module).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    names = Counter(defined)
    assert [name for name, count in names.items() if count > 1] == []
    assert set(names) & {Path(module).stem for module in MODULES} == set()


@pytest.mark.parametrize("module", MODULES)
def test_files_are_data_and_none_is_run(module: str) -> None:
    nodes = list(ast.walk(parsed(module)))
    banned = {"eval", "exec", "compile", "__import__", "__builtins__", "allow_pickle", "pickle", "shelve", "marshal"}
    banned |= {"cloudpickle", "dill", "joblib", "yaml"}
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    names |= {node.arg for node in nodes if isinstance(node, ast.keyword) and node.arg}
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    assert (names | imported) & banned == set()
    assert "code" not in imported
    methods = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    assert methods & {"eval", "read_pickle", "to_pickle", "load_module", "exec_module"} == set()


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import analysis_helpers, sys; print(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"matplotlib", "scipy", "click", "torch", "transformers", "IPython", "ipywidgets", *EXECUTION}
    assert heavy & {module.split(".")[0] for module in output} == set()
    assert "pandas" in output


@pytest.mark.parametrize("module", MODULES)
def test_no_function_swallows_options(module: str) -> None:
    functions = [node for node in ast.walk(parsed(module)) if isinstance(node, ast.FunctionDef)]
    # IPython and trainers pass options; `Run.from_arrays` refuses columns that are not declared.
    by_others = {"_repr_mimebundle_", "on_pre_optimizer_step", "on_log", "from_arrays"}
    swallowing = {f.name for f in functions if f.args.kwarg} - by_others
    assert [name for name in swallowing if not name.endswith("_command")] == []  # click passes options that it knows


# Signatures that people call from their own notebooks: names, order, what is keyword-only, defaults.
SIGNATURES = {
    "load_runs": "(source, *, on_error='raise')",
    "write_run": "(path, run)",
    "inventory": "(data_root)",
    "merge_runs": "(runs)",
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
    "plot_err_rel_comparison": "(comparison, *, ax=None, moments=None, tolerance=None)",
    "plot_err_rel_histograms": "(df, eta_values, *, estimator='partial_sum', moments=None)",
    "err_rel_standard_error": "(run, eta, n=None, *, reference=None, estimator='ratio', population='policy')",
    "decompose_err_rel": "(runs, eta, *, reference=None, score_adjusted=False)",
    "predict_err_rel": "(large_runs, eta, n, *, reference=None, estimator='ratio')",
    "check_prediction": "(large_runs, small_runs, eta, *, reference=None)",
    "required_batch_size": "(runs, eta, *, target_sd=None, tolerance=None, probability=0.9, estimator='ratio', "
    "reference=None)",
    "entropy_trend": "(runs)",
    "nonlinearity": "(runs, etas=None)",
    "change_by_origin": "(runs, etas=None)",
    "run_health": "(runs)",
    "verdict": "(large_runs, eta=None, n=None, *, tolerance=0.25, probability=0.9, small_runs=None, etas=None)",
    "trusted_eta": "(runs, *, tolerance=0.25, probability=0.9)",
    "verdict_map": "(runs, etas=None, n=256, *, tolerance=0.25, probability=0.9, small_runs=None)",
    "read_run": "(path)",
    "write_sample_data": "(root)",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_public_signatures_are_a_contract(name: str) -> None:
    signature = inspect.signature(getattr(analysis_helpers, name))
    plain = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    bare = signature.replace(parameters=plain, return_annotation=inspect.Signature.empty)
    assert str(bare) == SIGNATURES[name]


def test_public_names_have_docstrings_functions_with_a_doctest() -> None:
    imported = [node for node in ast.walk(parsed("__init__.py")) if isinstance(node, ast.ImportFrom) and node.level]
    names = {alias.asname for node in imported for alias in node.names if alias.asname}
    assert names >= set(SIGNATURES)
    for name in names:
        thing = getattr(analysis_helpers, name)
        assert thing.__doc__, name
        assert ">>>" in thing.__doc__ or not inspect.isfunction(thing), name


def test_the_public_names_are_few_and_listed_with_the_plots_that_are_not_imported() -> None:
    assert len(analysis_helpers.__all__) <= 38
    assert set(analysis_helpers.__all__) <= set(dir(analysis_helpers))
    assert all(getattr(analysis_helpers, name).__doc__ for name in analysis_helpers.__all__)
    assert callable(analysis_helpers.plot_trend)  # type: ignore[attr-defined, unused-ignore]
