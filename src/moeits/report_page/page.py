"""The whole page: every chapter's sections rendered into one self-contained HTML file."""

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from moeits.runtime import need
from moeits.version import __version__


def render(title: str, lead: Sequence[str], chapters: Sequence[Mapping[str, Any]]) -> str:
    """HTML of the page. A chapter has slug, title and sections; a section has slug, title, intro and blocks."""
    jinja = need("jinja2", extra="report")
    environment = jinja.Environment(autoescape=True, undefined=jinja.StrictUndefined, trim_blocks=True)
    template = environment.from_string(_asset("page.html.j2"))
    return template.render(
        title=title, lead=lead, chapters=chapters, version=__version__, css=_asset("page.css"), js=_asset("page.js")
    )


def _asset(name: str) -> str:
    return resources.files("moeits.report_page").joinpath(name).read_text(encoding="utf-8")
