"""What sections are made of: blocks that the template knows by their `kind`."""

from collections.abc import Sequence
from typing import Any

Section = dict[str, Any]
Block = dict[str, Any]


def section(slug: str, title: str, intro: Sequence[str], blocks: Sequence[Block | None]) -> Section | None:
    """A section of a chapter; None if there is nothing in it."""
    present = [block for block in blocks if block]
    return {"slug": slug, "title": title, "intro": list(intro), "blocks": present} if present or intro else None


def table(
    caption: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    strong: Sequence[int] = (),
    folded: bool = False,
) -> Block:
    """A table; `strong` are the numbers of its emphasised rows. Folded, only its caption shows at first."""
    return {
        "kind": "folded" if folded else "table",
        "caption": caption,
        "columns": list(columns),
        "rows": [list(row) for row in rows],
        "strong": list(strong),
    }


def figure(svg: str, caption: str) -> Block:
    """A plot with its caption."""
    return {"kind": "figure", "svg": svg, "caption": caption}


def facts(rows: Sequence[tuple[str, str]]) -> Block:
    """Names and values, large."""
    return {"kind": "facts", "rows": list(rows)}


def notes(sentences: Sequence[str]) -> Block | None:
    """Small print, a sentence each; None if there is none."""
    return {"kind": "notes", "notes": list(sentences)} if sentences else None


def spread(items: list[str], most: int) -> list[str]:
    """At most that many of the items, evenly spread, the ends among them."""
    if len(items) <= most:
        return items
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
