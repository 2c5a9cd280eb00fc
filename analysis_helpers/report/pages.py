"""Executed notebooks to HTML: a page each, figures as files, and a first page with answers, figures and tables.

The first page takes each notebook's answer in brief, and the cells tagged ``key``: texts, figures and tables, in their
order.
"""

from __future__ import annotations

import base64
import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from .display import RESULT_MIME
from .execution import Execution

KEY_TAG = "key"

# A figure or table wider than the page is fitted or scrolled, not cut off. On a phone, two panels fitted would be too
# small to read: there figures keep a size at which letters are legible, and scroll.
_FIT = """<style>
.jp-RenderedImage img, .jp-RenderedSVG img { max-width: 100%; height: auto; }
.jp-RenderedHTMLCommon, .jp-RenderedImage, .jp-RenderedSVG { overflow-x: auto; }
@media (max-width: 600px) {
  .jp-RenderedImage img { max-width: none; zoom: 0.62; }
  .jp-RenderedSVG img { max-width: none; zoom: 0.7; }
}
.jp-RenderedHTMLCommon td { white-space: normal; }
</style>
"""


@dataclass
class _Section:
    """What the first page shows of one notebook."""

    name: str
    title: str
    error: str = ""
    page: str = ""
    answer: str = ""
    parameters: dict[str, object] = field(default_factory=dict)
    blocks: list[str] = field(default_factory=list)
    figures: list[str] = field(default_factory=list)


def write_report(executions: Sequence[Execution], out: Path) -> Path:
    """Write the pages of a report and return the path of the first one, ``out/index.html``.

    Parameters
    ----------
    executions
        Notebooks that were run.
    out
        Folder for the pages; figures go to ``out/figures`` as PNG and SVG.
    """
    from jinja2 import Environment, PackageLoader

    out.mkdir(parents=True, exist_ok=True)
    sections = [_section(execution, out) for execution in executions]
    environment = Environment(loader=PackageLoader("analysis_helpers"), autoescape=True)
    index = out / "index.html"
    index.write_text(environment.get_template("index.html").render(sections=sections), encoding="utf-8")
    return index


def notebook_page(path: Path) -> str:
    """Return an executed notebook as one HTML page that loads nothing from a network."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    body, _ = _exporter().from_notebook_node(notebook, resources={"metadata": {"name": path.stem}})
    return str(body).replace("</head>", f"{_FIT}</head>", 1)


def save_figures(notebook: Any, folder: Path, stem: str) -> list[str]:
    """Write every figure of an executed notebook as ``stem-1.png``, ``stem-1.svg`` and so on; return the stems used."""
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
    """Return the first figure among the key cells of an executed notebook, as PNG; None where there is none."""
    keys = [cell for cell in notebook.cells if KEY_TAG in cell.metadata.get("tags", [])]
    found = [data["image/png"] for data in _displayed(keys) if "image/png" in data]
    return base64.b64decode(found[0]) if found else None


def collected_result(notebook: Any) -> dict[str, Any]:
    """Return the result that an executed notebook displayed for collection; empty where it did not come so far."""
    found = [data[RESULT_MIME] for data in _displayed(notebook.cells) if RESULT_MIME in data]
    return dict(found[-1]) if found else {}


@cache
def _exporter() -> Any:
    """Return the exporter of pages; making one compiles its templates."""
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    shown = ["text/html", "text/markdown", "image/svg+xml", "image/png", "text/plain"]  # no widgets: no kernel answers
    config = Config({"NbConvertBase": {"display_data_priority": shown}})
    exporter = HTMLExporter(config=config, require_js_url="", mathjax_url="", mermaid_js_url="", jquery_url="")
    exporter.embed_images = True
    return exporter


def _section(execution: Execution, out: Path) -> _Section:
    import nbformat

    section = _Section(execution.name, execution.name, execution.error)
    if not execution.path.is_file():
        return section
    notebook = nbformat.read(execution.path, as_version=4)
    section.page = f"{execution.name}.html"
    (out / section.page).write_text(notebook_page(execution.path), encoding="utf-8")
    section.title = _title(notebook) or execution.name
    section.figures = save_figures(notebook, out / "figures", execution.name)
    section.parameters = collected_result(notebook).get("parameters", {})
    answers = [data["text/markdown"] for data in _displayed(notebook.cells) if "text/markdown" in data]
    section.answer = _html_of(answers[0]) if answers and not execution.error else ""
    key_cells = [cell for cell in notebook.cells if KEY_TAG in cell.metadata.get("tags", [])]
    if execution.error:  # what to read into figures that are not there would only confuse
        key_cells = [cell for cell in key_cells if cell.cell_type == "code"]
    section.blocks = [block for cell in key_cells for block in _blocks(cell, section.title)]
    return section


def _blocks(cell: Any, title: str) -> list[str]:
    from markupsafe import escape

    if cell.cell_type == "markdown":
        return [_html_of(cell.source)]
    printed = "".join(output.text for output in cell.outputs if output.output_type == "stream")
    blocks = [f"<pre>{escape(printed)}</pre>"] if printed else []
    for data in _displayed([cell]):
        if "image/png" in data:
            encoded = data["image/png"].replace("\n", "")
            figure = f'<img alt="{escape(title)}" src="data:image/png;base64,{encoded}">'
            blocks.append(f'<div class="figure">{figure}</div>')
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
