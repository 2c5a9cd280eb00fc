"""HTML pages of executed notebooks: one page each, figures as files, and a first page that sums them up.

The first page shows of each notebook its answer in brief and, of its cells tagged ``key``, the first figure, the first
table and the texts. The first notebook stands before the table of contents. Pages load nothing from a network.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from .display import RESULT_MIME
from .execution import Execution

KEY_TAG = "key"
_SVG, _PNG = "image/svg+xml", "image/png"
_LINK = re.compile(r'<a href="(?![a-z]+:|#)([^"]*)">(.*?)</a>', re.DOTALL)  # to a file, in a text
_SMALL_NUMBER = re.compile(r"(<[^>]*>)|(\d[\d.]*e-\d+)")  # browsers break lines at its sign; tags are left alone


def write_first_page(sections: Sequence[Mapping[str, Any]], out: Path) -> Path:
    """Write ``out/index.html`` from what `write_page` returned of each notebook, and return its path."""
    index = out / "index.html"
    page = rendered("index.html", {"sections": sections})
    whole = _SMALL_NUMBER.sub(lambda found: found[1] or f'<span class="whole">{found[2]}</span>', page)
    index.write_text(whole, encoding="utf-8")
    return index


def rendered(template: str, values: Mapping[str, Any]) -> str:
    """Return a template of the package filled with values, which are escaped."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("analysis_helpers"), autoescape=True)
    return environment.get_template(template).render(values)


def notebook_page(path: Path, pages: Collection[str] = (), index: str = "index.html") -> tuple[str, str]:
    """Return an executed notebook as one HTML page, and what went wrong in making it; empty if nothing did.

    Parameters
    ----------
    path
        The executed notebook.
    pages
        Names of the notebooks that have a page beside it; a link to any other file becomes text.
    index
        Address of the first page, relative to this one.
    """
    try:
        body, _ = page_exporter().from_filename(str(path), resources={"index": index})
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
    output = next(_shown(_key_cells(notebook), _PNG), None)
    return (base64.b64decode(output.data[_PNG]), _finding(output)) if output else None


def collected_result(notebook: Any) -> dict[str, Any]:
    """Return the result that an executed notebook displayed for collection; empty if it stopped before."""
    found = [output.data[RESULT_MIME] for output in _shown(notebook.cells, RESULT_MIME)]
    return dict(found[-1]) if found else {}


@cache
def page_exporter() -> Any:
    """Return the exporter of pages, made once: importing nbconvert and compiling templates takes a second."""
    from jinja2 import PackageLoader
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
    import nbformat

    name = execution.name
    section: dict[str, Any] = {"name": name, "title": name, "error": execution.error, "skipped": execution.skipped}
    page = f"{name}.html"
    if execution.skipped or not execution.path.is_file():
        if name in pages:  # others may link to it
            (out / page).write_text(rendered("index.html", {"sections": [section]}), encoding="utf-8")
        return section
    text, problem = notebook_page(execution.path, pages)
    (out / page).write_text(text, encoding="utf-8")
    notebook = nbformat.read(execution.path, as_version=4)
    section |= {
        "title": _title(notebook) or name,
        "page": page,
        "error": execution.error or problem,
        "parameters": collected_result(notebook).get("parameters", {}),
        "figures": save_figures(notebook, out / "figures", name),
    }
    if section["error"]:  # no answer, and nothing that could be taken for one
        return section
    cells = _key_cells(notebook)
    answers = [output.data["text/markdown"] for output in _shown(notebook.cells, "text/markdown")]
    texts = [cell.source for cell in cells if cell.cell_type == "markdown"]
    return section | {
        "answer": _html_of(answers[:1], pages),
        "reading": _html_of(texts, pages),
        "figure": next((_image(output) for output in _shown(cells, _PNG)), None),
        "table": next((output.data["text/html"] for output in _shown(cells, "text/html")), ""),
    }


def _key_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if KEY_TAG in cell.metadata.get("tags", [])]


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
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    found = re.search(r"^# (.+)$", texts[0], re.MULTILINE) if texts else None
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
