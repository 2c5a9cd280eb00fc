"""HTML pages of executed notebooks: one page each, figures as files, and a first page that sums them up.

The first page of a report shows of each notebook its answer in brief and, of its cells tagged ``key``, the first
figure, the first table and the texts; the first notebook stands before the table of contents. That of a sweep shows
maps of the answers, the key figures and all reruns, beside tables of the same. Pages load nothing from a network.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
from jinja2 import Environment, PackageLoader

from ..inference import QUESTIONS
from ..notebook import RESULT_MIME, shown
from ..runs import write_in_one_step
from .engine import Execution, Job

INDEX, RESULTS, RUNLOG = TABLES = ("index.html", "results.csv", "runlog.csv")
PAGES, FIGURES = "pages", "figures"
KEY_TAG = "key"
PARAMETER = "param."  # before the name of a parameter, so that it is not taken for an estimate
_SVG, _PNG = "image/svg+xml", "image/png"
_LINK = re.compile(r'<a href="(?![a-z]+:|#)([^"]*)">(.*?)</a>', re.DOTALL)  # to a file, in a text
_MAPPED = {  # columns of results that are shown by step size and batch size
    "linear": QUESTIONS["linear"],
    "linear_enough": "Is one batch enough for that?",
    "recorded": QUESTIONS["recorded"],
    "recorded_enough": "Is one batch enough for that?",
}
_SMALL_NUMBER = re.compile(r"(<[^>]*>)|(\d[\d.]*e-\d+)")  # browsers break lines at its sign; tags are left alone


def write_first_page(sections: Sequence[Mapping[str, Any]], out: Path) -> Path:
    """Write ``out/index.html`` from what `write_page` returned of each notebook, and return its path."""
    page = rendered("index.html", {"sections": sections})
    whole = _SMALL_NUMBER.sub(lambda found: found[1] or f'<span class="whole">{found[2]}</span>', page)
    write_in_one_step(out / INDEX, whole)
    return out / INDEX


def rendered(template: str, values: Mapping[str, Any]) -> str:
    """Return a template of the package filled with values, which are escaped."""
    environment = Environment(loader=PackageLoader("analysis_helpers"), autoescape=True)
    return environment.get_template(template).render(values)


def notebook_page(notebook: Any, name: str, pages: Collection[str] = (), index: str = INDEX) -> tuple[str, str]:
    """Return an executed notebook as one HTML page, and what went wrong in making it; empty if nothing did.

    Parameters
    ----------
    notebook, name
        The notebook, and its name without ending.
    pages
        Names of the notebooks that have a page beside it; a link to any other file becomes text.
    index
        Address of the first page, relative to this one.
    """
    try:
        body, _ = page_exporter().from_notebook_node(notebook, {"metadata": {"name": name}, "index": index})
    except Exception as failure:  # nbconvert and its templates raise many kinds; the other notebooks go on
        no_page = "<!doctype html><title>No page</title><p>This notebook cannot be shown as a page.</p>"
        return no_page, f"its page cannot be made ({type(failure).__name__}: {failure})"
    return _linked(str(body), pages), ""


def save_figures(notebook: Any, folder: Path, stem: str) -> list[list[str]]:
    """Write the figures of a notebook as ``stem-1.png``, ``stem-1.svg`` and so on; return the names of each."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for k, output in enumerate(_shown(notebook.cells, _PNG), start=1):
        files = {f"{stem}-{k}.png": base64.b64decode(output.data[_PNG])}
        if _SVG in output.data:
            files[f"{stem}-{k}.svg"] = output.data[_SVG].encode()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        names.append(list(files))
    return names


def key_figure(notebook: Any) -> tuple[bytes, str] | None:
    """Return the first figure among the key cells of an executed notebook, as PNG, and its finding."""
    output = next(_shown(_key_cells(notebook.cells), _PNG), None)
    return (base64.b64decode(output.data[_PNG]), _finding(output)) if output else None


def collected_result(notebook: Any) -> dict[str, Any]:
    """Return the result that an executed notebook displayed for collection; empty if it stopped before."""
    found = [output.data[RESULT_MIME] for output in _shown(notebook.cells, RESULT_MIME)]
    return dict(found[-1]) if found else {}


@cache
def page_exporter() -> Any:
    """Return the exporter of pages, made once: importing nbconvert and compiling templates takes a second."""
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    shown = ["text/html", "text/markdown", _SVG, _PNG, "text/plain"]  # widgets need a kernel
    config = Config({"NbConvertBase": {"display_data_priority": shown}})
    own: dict[str, Any] = {"extra_loaders": [PackageLoader("analysis_helpers")], "template_file": "notebook.html"}
    return HTMLExporter(config=config, require_js_url="", mathjax_url="", mermaid_js_url="", jquery_url="", **own)


def write_page(execution: Execution, out: Path, pages: Collection[str]) -> dict[str, Any]:
    """Write the page and the figures of one notebook, and return what the first page shows of it.

    ``pages`` are the names of all notebooks that have or will have a page.
    """
    name, page = execution.job.name, f"{execution.job.name}.html"
    section: dict[str, Any] = {"name": name, "error": execution.error, "skipped": execution.skipped}
    section["title"] = _title(nbformat.read(execution.job.source, as_version=4)) or name
    if execution.skipped or not execution.path.is_file():
        if name in pages:  # others may link to it
            write_in_one_step(out / page, rendered("index.html", {"sections": [section]}))
        return section
    notebook = execution.notebook
    text, problem = notebook_page(notebook, name, pages)
    write_in_one_step(out / page, text)
    error = execution.error or problem
    cells = [] if error else notebook.cells  # no answer, and nothing that could be taken for one
    key = _key_cells(cells)
    answers = [output.data["text/markdown"] for output in _shown(cells, "text/markdown")]
    return section | {
        "page": page,
        "error": error,
        "parameters": collected_result(notebook).get("parameters", {}),
        "figures": save_figures(notebook, out / "figures", name),
        "answer": _html_of(answers[:1], pages),
        "reading": _html_of((cell.source for cell in key if cell.cell_type == "markdown"), pages),
        "figure": next(map(_image, _shown(key, _PNG)), None),
        "table": next((output.data["text/html"] for output in _shown(key, "text/html")), ""),
    }


# --- of a sweep -------------------------------------------------------------------------------------------------------


def write_rerun(job: Job, notebook: Any, out: Path) -> str:
    """Write the page and the key figure of a rerun of a sweep; return what went wrong, empty if nothing did."""
    page, problem = notebook_page(notebook, job.name, index=f"../{INDEX}")
    write_in_one_step(out / PAGES / f"{job.name}.html", page)
    if figure := key_figure(notebook):
        write_in_one_step(out / FIGURES / f"{job.name}.png", figure[0])
    return problem


def results_table(ended: Sequence[Execution]) -> pd.DataFrame:
    """Return a row per notebook, set of parameters and estimate, from the results that notebooks display.

    Returns
    -------
    DataFrame
        Columns notebook, ``param.`` and the name of each parameter, then the estimates. It does not depend on the
        place of the checkout: a data root is given relative to the folder of the notebook.
    """
    rows: list[dict[str, Any]] = []
    for execution in ended:
        result, folder = collected_result(execution.notebook), execution.job.source.parent
        given = dict(result.get("parameters", {}))
        if "data_root" in given:
            given["data_root"] = Path(os.path.relpath(folder / given["data_root"], folder)).as_posix()
        first = {"notebook": execution.job.source.stem, **{f"{PARAMETER}{name}": v for name, v in given.items()}}
        rows += [{**first, **row} for row in result.get("rows", [])]
    table = pd.DataFrame(rows)
    names: list[str] = table.columns.tolist()
    parameters = sorted(name for name in names if name.startswith(PARAMETER))
    return table.reindex(columns=list(dict.fromkeys(["notebook", *parameters, *names])))


def runlog_table(ended: Sequence[Execution]) -> pd.DataFrame:
    """Return a row per rerun: file, notebook, parameters, status, seconds, error, version and digest of the package.

    Version and digest are those of the package where it ran.
    """
    rows = [
        {
            "file": f"{execution.job.name}.ipynb",
            "notebook": execution.job.source.stem,
            "parameters": json.dumps(execution.job.parameters, sort_keys=True),
            "status": execution.status,
            "seconds": round(execution.seconds, 3),
            "error": execution.error or execution.skipped,
            "version": execution.package[0],
            "digest": execution.package[1][:12],
        }
        for execution in ended
    ]
    return pd.DataFrame(rows)


def write_summary(ended: Sequence[Execution], skipped: Sequence[Execution], out: Path) -> Path:
    """Write the tables and the first page of a sweep, and return its path; the page has no scripts.

    Parameters
    ----------
    ended
        How the reruns ended.
    skipped
        Notebooks that were not run, with the reason.
    out
        Folder of the sweep.
    """
    results = results_table(ended)
    for name, table in ((RESULTS, results), (RUNLOG, runlog_table(ended))):
        write_in_one_step(out / name, table.to_csv(index=False, float_format="%.10g", lineterminator="\n"))
    given = {name: value for execution in ended for name, value in execution.job.parameters.items()}
    data_root = given.pop("data_root", None)
    reruns: dict[tuple[bytes, str], list[str]] = {}  # by their figure, which several may share
    for execution in ended:
        if not execution.error and (figure := key_figure(execution.notebook)):
            reruns.setdefault(figure, []).append(execution.job.name)
    values = {
        "counts": Counter(execution.status for execution in ended),
        "skipped": skipped,
        "maps": [found for column, title in _MAPPED.items() if (found := _verdict_map(results, column, title))],
        "names": list(given),
        "data_root": data_root,
        "ended": ended,
        "findings": {alike[0]: (finding, len(alike)) for (_, finding), alike in reruns.items()},
        "text": shown,
    }
    write_in_one_step(out / INDEX, rendered("sweep.html", values))
    return out / INDEX


def _verdict_map(results: pd.DataFrame, column: str, title: str) -> dict[str, Any] | None:
    """Return the answers by eta (rows) and batch size (columns); None if no notebook of the sweep gives them."""
    eta, size = f"{PARAMETER}eta", f"{PARAMETER}subset_size"
    given = results.reindex(columns=[eta, size, column]).dropna()
    if given.empty:
        return None
    answers = given.pivot_table(column, index=eta, columns=size, aggfunc=_counted, fill_value="")
    rows = [{"eta": f"{eta:g}", "cells": cells} for eta, *cells in answers.itertuples()]
    return {"title": title, "sizes": [f"{n:,.0f}" for n in answers.columns], "rows": rows}


def _counted(answers: pd.Series[str]) -> str:
    """Return the answer of all reruns, or how many gave each answer."""
    counts = sorted(Counter(answers).items())
    return counts[0][0] if len(counts) == 1 else ", ".join(f"{count} x {answer}" for answer, count in counts)


# --- what notebooks show ----------------------------------------------------------------------------------------------


def _key_cells(cells: Sequence[Any]) -> list[Any]:
    return [cell for cell in cells if KEY_TAG in cell.metadata.get("tags", [])]


def _shown(cells: Sequence[Any], kind: str) -> Iterator[Any]:
    """Return the outputs of cells that are there as a kind of data."""
    outputs = (output for cell in cells if cell.cell_type == "code" for output in cell.outputs)
    return (output for output in outputs if kind in output.get("data", {}))


def _image(output: Any) -> dict[str, str]:
    """Return address and alternative text of a figure, as SVG where it has one."""
    png, svg = output.data[_PNG].replace("\n", ""), output.data.get(_SVG)
    kind, content = (_SVG, base64.b64encode(svg.encode()).decode()) if svg else (_PNG, png)
    return {"source": f"data:{kind};base64,{content}", "alt": _finding(output)}


def _finding(output: Any) -> str:
    return str(output.metadata.get(_PNG, {}).get("alt", "A figure"))


def _title(notebook: Any) -> str:
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    found = re.search(r"^# (.+)$", text, re.MULTILINE)
    return found[1] if found else ""


def _html_of(markdown: Iterable[str], pages: Collection[str]) -> str:
    from nbconvert.filters.markdown import markdown2html

    return _linked("".join(map(markdown2html, markdown)), pages)


def _linked(html: str, pages: Collection[str]) -> str:
    """Return a text whose links to notebooks lead to their pages; where there is none, the link becomes text."""

    def live(link: re.Match[str]) -> str:
        name, ending = link[1][:-6], link[1][-6:]
        return link[0].replace(link[1], f"{name}.html", 1) if ending == ".ipynb" and name in pages else link[2]

    return _LINK.sub(live, html)
