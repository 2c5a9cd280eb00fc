"""Run notebooks through papermill, with parameters, keeping what finished when another fails."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .notebook import notebooks_folder

# The history database, which kernels would share, is left out, and so is what a
# kernel says on the terminal about being stopped.
_KERNEL_CONFIG = """
c.InlineBackend.figure_formats = FORMATS
c.HistoryManager.enabled = False
c.Application.log_level = "CRITICAL"
"""


@dataclass(frozen=True)
class Execution:
    """A notebook that was run.

    Attributes
    ----------
    name
        Name of the notebook, without ending.
    path
        The executed notebook; where it failed, as far as it came.
    error
        One sentence; empty where it ran through.
    """

    name: str
    path: Path
    error: str = ""


def find_notebooks(folder: str | os.PathLike[str] | None = None) -> list[Path]:
    """Return the notebooks to run, sorted: those in ``folder``, else beside the package, else in ``./notebooks``.

    Raises
    ------
    ValueError
        If there are none; the message says where was looked.
    """
    place = Path(folder) if folder is not None else notebooks_folder()
    found = sorted(place.glob("*.ipynb")) if place is not None else []
    if not found:
        raise ValueError(f"no notebooks (*.ipynb) in {place or 'a folder notebooks beside the package or here'}")
    return found


def run_notebooks(
    notebooks: Sequence[Path], parameters: Mapping[str, object], out: Path, *, progress: bool = False
) -> Iterator[Execution]:
    """Run notebooks one after the other into ``out``, each with those of the parameters that it has.

    Parameters
    ----------
    notebooks
        Paths of notebooks.
    parameters
        Name -> value. ``eta`` also fills ``etas``, as a list of one. Others that no notebook has are refused.
    out
        Folder for the executed notebooks.
    progress
        Whether to draw a progress bar for each notebook.

    Yields
    ------
    Execution
        In the order given, each as soon as it is done.

    Raises
    ------
    ValueError
        If a parameter is in none of the notebooks; nothing has run then.
    """
    wanted = {path: _parameters_for(path, parameters) for path in notebooks}
    unknown = [name for name in parameters if not any(_fills(name, wanted[path]) for path in notebooks)]
    if unknown:
        raise ValueError(f"no notebook has the parameter {', '.join(unknown)}")
    out.mkdir(parents=True, exist_ok=True)
    with _kernel_settings("png", "svg"):
        for path in notebooks:
            yield _run(path, wanted[path], out / path.name, progress)


def refresh(path: Path) -> None:
    """Run a notebook in place with its defaults and store its outputs, without metadata that differs between machines.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        If a cell fails; the file is then left as it was.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, kernel_name="python3", config=_client_config(), resources={"metadata": {"path": str(path.parent)}}
    )
    with _kernel_settings("png"):
        client.execute()
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    notebook.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": {"name": "python"}})
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({k: v for k, v in cell.metadata.items() if k == "tags"})
    nbformat.write(notebook, path)


def _run(source: Path, parameters: Mapping[str, object], target: Path, progress: bool) -> Execution:
    import papermill

    try:
        papermill.execute_notebook(
            source,
            target,
            parameters=dict(parameters),
            cwd=source.parent,
            kernel_name="python3",
            progress_bar=progress,
            config=_client_config(),
        )
    except papermill.PapermillExecutionError as error:
        return Execution(source.stem, target, f"{error.ename}: {error.evalue}")
    except Exception as error:  # a kernel that died, a full disk: the other notebooks still run
        return Execution(source.stem, target, f"{type(error).__name__}: {error}")
    return Execution(source.stem, target)


def _parameters_for(path: Path, parameters: Mapping[str, object]) -> dict[str, object]:
    import papermill

    has = papermill.inspect_notebook(path)
    chosen = {name: value for name, value in parameters.items() if name in has}
    if "etas" in has and "eta" in parameters:
        chosen["etas"] = [parameters["eta"]]
    return chosen


def _fills(name: str, chosen: Mapping[str, object]) -> bool:
    return name in chosen or (name == "eta" and "etas" in chosen)


def _client_config() -> object:
    from traitlets.config import Config

    return Config({"KernelManager": {"transport_encryption": "auto"}})


@contextmanager
def _kernel_settings(*formats: str) -> Iterator[None]:
    """Give kernels settings of their own, so that nobody's personal IPython configuration changes an output."""
    before = os.environ.get("IPYTHONDIR")
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder) / "profile_default"
        profile.mkdir()
        (profile / "ipython_kernel_config.py").write_text(
            _KERNEL_CONFIG.replace("FORMATS", repr(set(formats))), encoding="utf-8"
        )
        os.environ["IPYTHONDIR"] = folder
        try:
            yield
        finally:
            os.environ.pop("IPYTHONDIR")
            if before is not None:
                os.environ["IPYTHONDIR"] = before
