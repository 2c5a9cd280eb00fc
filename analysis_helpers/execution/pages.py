"""HTML pages of executed notebooks, two tables of their results, and a first page.

The first page of a report is that of its first notebook, with links to the others. That of a sweep shows maps of the
answers, the key figures (the first figure of the cells tagged ``key``) and all reruns. Pages load nothing from the
network.
"""

from __future__ import annotations

import base64
import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader

from ..inference import QUESTIONS
from ..notebook import RESULT_MIME, shown
from ..runs import write_in_one_step
from .engine import Execution, Job

INDEX, RESULTS, RUNLOG = "index.html", "results.csv", "runlog.csv"
PAGES, FIGURES = "pages", "figures"
KEY_TAG = "key"
PARAMETER = "param."  # before the name of a parameter, so that it is not taken for an estimate
_DIGITS, _MOST_RERUNS = 12, 100  # of a digest; in the table of a sweep
_PLACES = ("above", "below")
_SVG, _PNG = "image/svg+xml", "image/png"
REPEATED_TAG = "repeated"  # of cells that repeat what a page shows elsewhere, and are left out of it
_HEADER, _END_OF_HEADER, _LINKS = "<!-- header -->", "<!-- end of header -->", "<!-- links -->"  # of notebook.html
_NO_PAGE = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>No page</title></head>
<body>{_HEADER}{_END_OF_HEADER}<p>No page could be made of this notebook.</p>{_LINKS}</body></html>
"""
_LINK = re.compile(r'<a href="(?![a-z]+:|#)([^"]*)">(.*?)</a>', re.DOTALL)  # to a file, in a text
_NUMBER = re.compile(r"(?:[-+±]|\b\d)[\d.,]*\d(?:e[-+]\d+)?%?(?![^<>]*>)")  # outside tags
_MAPPED = {  # columns of results that are shown by step size and batch size
    "linear": QUESTIONS["linear"],
    "linear_enough": "Is one batch enough for that?",
    "recorded": QUESTIONS["recorded"],
    "recorded_enough": "Is one batch enough for that?",
}


def read_notebook(path: Path) -> dict[str, Any]:
    """Return a stored notebook without nbformat, whose import takes longer than an unchanged report.

    Raises
    ------
    ValueError
        If it is not a notebook of format 4.
    """
    with suppress(ValueError, KeyError, TypeError):
        notebook: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if notebook["nbformat"] == 4:
            return notebook
    raise ValueError(f"{path} must be a notebook of format 4")


def write_page(execution: Execution, notebook: Mapping[str, Any], names: Collection[str], out: Path) -> str:
    """Write the page and the key figure of an executed notebook; return the error, empty if there is none.

    Parameters
    ----------
    execution
        How it ended; shown on the page.
    notebook
        The notebook to show.
    names
        Names of the notebooks that have or will have a page; a link to any other file becomes text.
    out
        Folder of the report or sweep.
    """
    import nbformat

    name, problem = execution.job.name, ""
    resources = {"metadata": {"name": name}, "execution": execution, "made": _made(execution)}
    try:
        page, _ = page_exporter().from_notebook_node(nbformat.reads(json.dumps(notebook), as_version=4), resources)
    except Exception as failure:  # nbconvert and its templates raise many kinds of errors; the other notebooks continue
        page, problem = _NO_PAGE, f"its page cannot be made ({type(failure).__name__}: {failure})"
    write_in_one_step(out / PAGES / f"{name}.html", _linked(page, names))
    if figure := key_figure(notebook):
        write_in_one_step(out / FIGURES / f"{name}.png", figure[0])
    return problem


def _made(execution: Execution) -> str:
    """Return the foot of a page: date, version, data root and digest of the data."""
    job, (version, package) = execution.job, execution.package
    made_by = f"analysis_helpers {version} (digest {package[:_DIGITS]})" if version else "not finished"
    data = f" Data: {job.data_root} (digest {job.data[:_DIGITS]})." if job.data else ""
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M UTC}; {made_by}.{data}"


@cache
def page_exporter() -> Any:
    """Return the exporter of pages, made once: importing nbconvert and compiling templates takes a second."""
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    shown = ["text/html", "text/markdown", _SVG, _PNG, "text/plain"]  # widgets need a kernel
    left_out = {"enabled": True, "remove_cell_tags": [REPEATED_TAG]}
    config = Config({"NbConvertBase": {"display_data_priority": shown}, "TagRemovePreprocessor": left_out})
    own: dict[str, Any] = {"extra_loaders": [PackageLoader("analysis_helpers")], "template_file": "notebook.html"}
    exporter = HTMLExporter(config=config, require_js_url="", mathjax_url="", mermaid_js_url="", jquery_url="", **own)
    exporter.register_filter("whole", lambda html: _NUMBER.sub(r'<span class="whole">\g<0></span>', html))
    return exporter


def key_figure(notebook: Mapping[str, Any]) -> tuple[bytes, str] | None:
    """Return the first figure among the key cells of an executed notebook, as PNG, and its alternative text."""
    cells = [cell for cell in notebook["cells"] if KEY_TAG in cell["metadata"].get("tags", ())]
    for output in _outputs(cells, _PNG):
        text = output["metadata"].get(_PNG, {}).get("alt", "A figure")
        return base64.b64decode("".join(output["data"][_PNG])), str(text)
    return None


def collected_result(notebook: Mapping[str, Any]) -> dict[str, Any]:
    """Return the result that an executed notebook displayed for collection; empty if it stopped before."""
    results = [output["data"][RESULT_MIME] for output in _outputs(notebook["cells"], RESULT_MIME)]
    return dict(results[-1]) if results else {}


def write_index(report: bool, executions: Sequence[Execution], out: Path) -> None:
    """Write the tables and the first page of a report or of a sweep."""
    results = results_table(executions)
    for name, table in ((RESULTS, results), (RUNLOG, runlog_table(executions))):
        write_in_one_step(out / name, table.to_csv(index=False, float_format="%.10g", lineterminator="\n"))
    page = _report_index(executions, out) if report else _sweep_index(executions, results)
    write_in_one_step(out / INDEX, page)


def results_table(executions: Sequence[Execution]) -> pd.DataFrame:
    """Return a row per notebook, set of parameters and estimate, from the results that notebooks display.

    Returns
    -------
    DataFrame
        Columns notebook, ``param.`` and the name of each parameter, then the estimates. The data root is as it was
        given. Of reruns with equal estimates there is one, without the parameters that did not matter.
    """
    equal: dict[tuple[str, str], list[dict[str, Any]]] = {}  # notebook and estimates -> parameters of the reruns
    for execution in filter(attrgetter("complete"), executions):
        result = collected_result(read_notebook(execution.path))
        parameters = dict(result.get("parameters", {}))
        if "data_root" in parameters:
            parameters["data_root"] = execution.job.data_root or parameters["data_root"]
        key = execution.job.source.stem, json.dumps(result.get("rows", []))
        equal.setdefault(key, []).append({f"{PARAMETER}{name}": value for name, value in parameters.items()})
    rows: list[dict[str, Any]] = []
    for (notebook, estimates), (first, *others) in equal.items():
        mattered = {name: value for name, value in first.items() if all(value == other.get(name) for other in others)}
        rows += [{"notebook": notebook, **mattered, **row} for row in json.loads(estimates)]
    table = pd.DataFrame(rows)
    columns: list[str] = table.columns.tolist()
    of_parameters = sorted(name for name in columns if name.startswith(PARAMETER))
    return table.reindex(columns=list(dict.fromkeys(["notebook", *of_parameters, *columns])))


def runlog_table(executions: Sequence[Execution]) -> pd.DataFrame:
    """Return a row per execution: file, notebook, parameters, status, seconds, reason, version, digest.

    Version and digest are those of the package that ran it.
    """
    return pd.DataFrame(
        {
            "file": execution.path.name,
            "notebook": execution.job.source.stem,
            "parameters": json.dumps(_as_given(execution.job), sort_keys=True),
            "status": execution.status,
            "seconds": round(execution.seconds, 3),
            "reason": execution.reason,
            "version": execution.package[0],
            "digest": execution.package[1][:_DIGITS],
        }
        for execution in executions
    )


def _as_given(job: Job) -> dict[str, object]:
    return {**job.parameters, **({"data_root": job.data_root} if "data_root" in job.parameters else {})}


def _report_index(executions: Sequence[Execution], out: Path) -> str:
    """Return the page of the first notebook, with a header that names those that failed and links to all."""
    ordered = sorted(executions, key=lambda execution: execution.job.name)
    pages = [execution.job.name for execution in ordered if execution.path.name]
    first = ordered[0].job.name
    page = (out / PAGES / f"{first}.html").read_text(encoding="utf-8") if first in pages else _NO_PAGE
    before, _, rest = page.partition(_HEADER)
    _, _, body = rest.partition(_END_OF_HEADER)
    above, below = (_rendered("report.html", {"executions": ordered, "pages": pages, "place": p}) for p in _PLACES)
    return before + above + _LINK.sub(rf'<a href="{PAGES}/\1">\2</a>', body).replace(_LINKS, below)


def _sweep_index(executions: Sequence[Execution], results: pd.DataFrame) -> str:
    """Return the first page of a sweep; it has no scripts."""
    reruns = [execution for execution in executions if execution.status != "skipped"]
    parameters = {name: value for execution in reruns for name, value in execution.job.parameters.items()}
    parameters.pop("data_root", None)
    names_by_figure: dict[tuple[bytes, str], list[str]] = {}  # several reruns may share a figure
    for execution in filter(attrgetter("complete"), executions):
        if figure := key_figure(read_notebook(execution.path)):
            names_by_figure.setdefault(figure, []).append(execution.job.name)
    values = {
        "counts": Counter(execution.status for execution in reruns),
        "skipped": [execution for execution in executions if execution.status == "skipped"],
        "maps": [(title, table) for name, title in _MAPPED.items() if len(table := _answer_map(results, name))],
        "names": list(parameters),
        "reruns": reruns,
        "shown": reruns[:_MOST_RERUNS],
        "made": list(dict.fromkeys(map(_made, reruns))),
        "figures": {names[0]: (text, len(names)) for (_, text), names in names_by_figure.items()},
        "text": shown,
    }
    return _rendered("sweep.html", values)


def _answer_map(results: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return the answers by eta (rows) and batch size (columns); empty if no notebook of the sweep has them."""
    eta, size = f"{PARAMETER}eta", f"{PARAMETER}subset_size"
    answered = results.reindex(columns=[eta, size, column]).dropna()
    return answered.pivot_table(column, index=eta, columns=size, aggfunc=_counted, fill_value="")


def _counted(answers: pd.Series[str]) -> str:
    """Return the answer of all reruns, or how many gave each answer."""
    counts = sorted(Counter(answers).items())
    return counts[0][0] if len(counts) == 1 else ", ".join(f"{count} x {answer}" for answer, count in counts)


def _rendered(template: str, values: Mapping[str, Any]) -> str:
    """Return a template of the package filled with values, which are escaped."""
    environment = Environment(loader=PackageLoader("analysis_helpers"), autoescape=True)
    return environment.get_template(template).render(values)


def _outputs(cells: Sequence[Any], kind: str) -> Iterator[Any]:
    """Return the outputs of cells in a given media type."""
    outputs = (output for cell in cells for output in cell.get("outputs", ()))
    return (output for output in outputs if kind in output.get("data", {}))


def _linked(html: str, names: Collection[str]) -> str:
    """Return a page whose links to notebooks lead to their pages; where there is none, the link becomes text."""

    def live(link: re.Match[str]) -> str:
        name, ending = link[1][:-6], link[1][-6:]
        return link[0].replace(link[1], f"{name}.html", 1) if ending == ".ipynb" and name in names else link[2]

    return _LINK.sub(live, html)
