"""The whole page: every chapter's sections rendered into one self-contained HTML file."""

import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from moeits.report_page.blocks import Section
from moeits.report_page.decision import SLUG, TITLE
from moeits.runtime import need
from moeits.version import __version__


def render(title: str, lead: Sequence[str], chapters: Sequence[Mapping[str, Any]]) -> str:
    """HTML of the page. A chapter has slug, title and sections; a section has slug, title, intro and blocks.

    What says whether to ship a model comes before the contents: of one run the whole of it, of several a line each.
    """
    jinja = need("jinja2", extra="report")
    environment = jinja.Environment(autoescape=True, undefined=jinja.StrictUndefined, trim_blocks=True)
    template = environment.from_string(_asset("page.html.j2"))
    decisions = [(each, section) for each in chapters for section in each["sections"] if section["slug"] == SLUG]
    alone = len(decisions) == 1
    chapters = [
        {**each, "sections": [s for s in each["sections"] if not (alone and s["slug"] == SLUG)]} for each in chapters
    ]
    text: str = template.render(
        title=title,
        lead=lead,
        chapters=chapters,
        question=TITLE,
        first=(decisions[0][0]["slug"], decisions[0][1]) if alone else None,
        verdicts=[] if alone else [_line(chapter, section) for chapter, section in decisions],
        version=__version__,
        css=_asset("page.css"),
        js=_asset("page.js"),
    )
    # A line may not end between a number and its percent sign.
    return re.sub(r"(?<=\d) %", "\N{NO-BREAK SPACE}%", text)


def _line(chapter: Mapping[str, Any], section: Section) -> dict[str, str]:
    """What a run's first screen says, in short."""
    (block,) = section["blocks"]
    sentence = " ".join(block["sentences"][:2])
    return {"slug": chapter["slug"], "run": chapter["title"], "heading": block["heading"], "sentence": sentence}


def _asset(name: str) -> str:
    return resources.files("moeits.report_page").joinpath(name).read_text(encoding="utf-8")
