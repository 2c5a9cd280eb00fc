"""HTML pages of executed notebooks: one page each, figures as files, and a first page that sums them up.

The first page takes each notebook's answer in brief and its cells tagged ``key``: texts, figures and tables in order.
Pages load nothing from a network.
"""

from __future__ import annotations

import base64
import copy
import re
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from .display import RESULT_MIME
from .execution import Execution

KEY_TAG = "key"


def write_report(executions: Sequence[Execution], out: Path) -> Path:
    """Write the pages of a report and return the path of the first one, ``out/index.html``.

    Parameters
    ----------
    executions
        Executed notebooks.
    out
        Folder for the pages; figures go to ``out/figures`` as PNG and SVG.
    """
    out.mkdir(parents=True, exist_ok=True)
    pages = [execution.name for execution in executions if execution.path.is_file()]
    return write_first_page([write_page(execution, out, pages) for execution in executions], out)


def write_first_page(sections: Sequence[Mapping[str, Any]], out: Path) -> Path:
    """Write ``out/index.html`` from what `write_page` returned of each notebook, and return its path."""
    index = out / "index.html"
    index.write_text(rendered("index.html", {"sections": sections}), encoding="utf-8")
    return index


def rendered(template: str, values: Mapping[str, Any]) -> str:
    """Return a template of the package filled with values, which are escaped."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("analysis_helpers"), autoescape=True)
    return environment.get_template(template).render(values)


def notebook_page(path: Path) -> str:
    """Return an executed notebook as one HTML page."""
    body, _ = _exporter().from_filename(str(path))
    return str(body).replace("</head>", f"{rendered('fit.html', {})}</head>", 1)


def save_figures(notebook: Any, folder: Path, stem: str) -> list[str]:
    """Write the figures of an executed notebook as ``stem-1.png``, ``stem-1.svg`` and so on; return their stems."""
    from nbconvert.preprocessors import ExtractOutputPreprocessor

    extractor = ExtractOutputPreprocessor(extract_output_types={"image/png", "image/svg+xml"})
    _, resources = extractor.preprocess(copy.deepcopy(notebook), {"outputs": {}})
    folder.mkdir(parents=True, exist_ok=True)
    stems: dict[str, str] = {}
    for name, content in resources["outputs"].items():
        file = Path(name)
        numbered = stems.setdefault(file.stem, f"{stem}-{len(stems) + 1}")
        (folder / f"{numbered}{file.suffix}").write_bytes(content)
    return list(stems.values())


def key_figure(notebook: Any) -> bytes | None:
    """Return the first figure among the key cells of an executed notebook, as PNG; None if there is none."""
    found = [data["image/png"] for data in _displayed(_key_cells(notebook)) if "image/png" in data]
    return base64.b64decode(found[0]) if found else None


def collected_result(notebook: Any) -> dict[str, Any]:
    """Return the result that an executed notebook displayed for collection; empty if it stopped before."""
    found = [data[RESULT_MIME] for data in _displayed(notebook.cells) if RESULT_MIME in data]
    return dict(found[-1]) if found else {}


@cache
def _exporter() -> Any:
    """Return the exporter of pages, made once: it compiles its templates."""
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    shown = ["text/html", "text/markdown", "image/svg+xml", "image/png", "text/plain"]  # widgets need a kernel
    config = Config({"NbConvertBase": {"display_data_priority": shown}})
    exporter = HTMLExporter(config=config, require_js_url="", mathjax_url="", mermaid_js_url="", jquery_url="")
    exporter.embed_images = True
    return exporter


def write_page(execution: Execution, out: Path, pages: Collection[str]) -> dict[str, Any]:
    """Write the page and the figures of one notebook, and return what the first page shows of it.

    ``pages`` are the names of all notebooks that have or will have a page.
    """
    import nbformat

    section: dict[str, Any] = {"title": execution.name, "error": execution.error, "skipped": execution.skipped}
    if execution.skipped or not execution.path.is_file():
        return section
    page = f"{execution.name}.html"
    (out / page).write_text(notebook_page(execution.path), encoding="utf-8")
    notebook = nbformat.read(execution.path, as_version=4)
    title = _title(notebook) or execution.name
    answers = [data["text/markdown"] for data in _displayed(notebook.cells) if "text/markdown" in data]
    # Of a notebook that failed: no answer, and no text on how to read figures that are missing.
    cells = [cell for cell in _key_cells(notebook) if cell.cell_type == "code" or not execution.error]
    return section | {
        "title": title,
        "page": page,
        "answer": _html_of(answers[0]) if answers and not execution.error else "",
        "parameters": collected_result(notebook).get("parameters", {}),
        "blocks": [block for cell in cells for block in _blocks(cell, title)],
        "figures": save_figures(notebook, out / "figures", execution.name),
    }


def _key_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if KEY_TAG in cell.metadata.get("tags", [])]


def _blocks(cell: Any, title: str) -> list[str]:
    from markupsafe import escape

    if cell.cell_type == "markdown":
        return [_html_of(cell.source)]
    printed = "".join(output.text for output in cell.outputs if output.output_type == "stream")
    blocks = [f"<pre>{escape(printed)}</pre>"] if printed else []
    for data in _displayed([cell]):
        if "image/png" in data:
            source = "data:image/png;base64," + data["image/png"].replace("\n", "")
            blocks.append(f'<div class="figure"><img alt="{escape(title)}" src="{source}"></div>')
        elif "text/html" in data:
            blocks.append(f'<div class="table">{data["text/html"]}</div>')
    return blocks


def _displayed(cells: Sequence[Any]) -> list[dict[str, Any]]:
    outputs = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    return [output.data for output in outputs if output.output_type in ("display_data", "execute_result")]


def _title(notebook: Any) -> str:
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    found = re.search(r"^# (.+)$", texts[0], re.MULTILINE) if texts else None
    return found[1] if found else ""


def _html_of(markdown: str) -> str:
    from nbconvert.filters.markdown import markdown2html

    return str(markdown2html(markdown))
