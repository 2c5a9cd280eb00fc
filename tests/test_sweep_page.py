from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
import pytest

from analysis_helpers.sweep import Outcome, Rerun
from analysis_helpers.sweep_page import write_sweep_page

NASTY = ["<script>alert(1)</script>", "../../up", "quo\"te's", "new\nline", "x" * 300]


class Page(HTMLParser):
    """Collects the tags of a page with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remember a tag."""
        self.tags.append((tag, dict(attrs)))


def outcome(out: Path, name: str, *, label: str = "plain", error: str = "", figure: bool = True) -> Outcome:
    (out / "figures").mkdir(parents=True, exist_ok=True)
    if figure:
        (out / "figures" / f"{name}.png").write_bytes(b"png")
    rerun = Rerun(Path("note.ipynb"), {"eta": 1e-6, "label": label}, name, "key")
    return Outcome(rerun, "failed" if error else "done", error, 1.0, out / "notebooks" / f"{name}.ipynb")


def results(answers: dict[tuple[float, int], list[str]]) -> pd.DataFrame:
    rows = [(eta, n, answer, "yes") for (eta, n), found in answers.items() for answer in found]
    return pd.DataFrame(rows, columns=["param.eta", "param.subset_size", "enough", "linear_trusted"])


def test_the_map_of_verdicts_comes_first_then_figures_then_the_table(tmp_path: Path) -> None:
    table = results({(1e-6, 64): ["no"], (2e-6, 64): ["yes"], (2e-6, 256): ["yes", "no", "no"]})
    page = write_sweep_page([outcome(tmp_path, "a")], {}, table, tmp_path).read_text()
    places = [page.index(part) for part in ("Is the batch enough?", "<figure>", "All reruns")]
    assert places == sorted(places)
    cells = re.findall(r'<td class="([a-z-]*)">([^<]*)</td>', page)
    assert cells[:4] == [("no", "no"), ("", ""), ("yes", "yes"), ("cannot-tell", "2 x no, 1 x yes")]
    assert "<th>n = 64</th><th>n = 256</th>" in page


def test_without_verdicts_there_is_no_map_and_what_was_left_out_is_said(tmp_path: Path) -> None:
    page = write_sweep_page(
        [outcome(tmp_path, "a", figure=False)], {"05_x": "it has none of the parameters eta"}, pd.DataFrame(), tmp_path
    ).read_text()
    assert "Verdicts" not in page
    assert "Key figures" not in page
    assert "05_x was left out: it has none of the parameters eta." in page


def test_a_failed_rerun_shows_its_error_and_no_stale_figure(tmp_path: Path) -> None:
    page = write_sweep_page([outcome(tmp_path, "a", error="ValueError: no")], {}, pd.DataFrame(), tmp_path).read_text()
    assert "ValueError: no" in page
    assert "<figure>" not in page
    assert "0 done, 0 kept from before, 1 failed" in page


@pytest.mark.parametrize("text", NASTY)
def test_names_and_errors_are_escaped_wherever_they_stand(tmp_path: Path, text: str) -> None:
    made = outcome(tmp_path, "a & 'b\" #?", label=text, error="")
    broken = outcome(tmp_path, "c", label=text, error=text)
    page = Page(write_sweep_page([made, broken], {text: text}, pd.DataFrame(), tmp_path).read_text())
    assert not [attributes for tag, attributes in page.tags if tag == "script"]
    links = [attributes["href"] or "" for tag, attributes in page.tags if tag == "a"]
    assert "pages/a & 'b\" #?.html" in [unquote(link) for link in links]
    assert not [link for link in links if "://" in link or link.startswith("..")]
    assert all(
        set(attributes) <= {"href", "class", "src", "alt", "loading", "lang", "charset", "name", "content"}
        for _, attributes in page.tags
    )


def test_a_hundred_reruns_make_a_small_page(tmp_path: Path) -> None:
    outcomes = [outcome(tmp_path, f"n{k}") for k in range(100)]
    assert write_sweep_page(outcomes, {}, pd.DataFrame(), tmp_path).stat().st_size < 10_000_000
