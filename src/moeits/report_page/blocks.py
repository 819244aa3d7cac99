"""What sections are made of: blocks that the template knows by their `kind`."""

from collections.abc import Callable, Sequence
from typing import Any

Section = dict[str, Any]
Block = dict[str, Any]

# A table of more rows than this is shown thinned, and whole where it is unfolded.
MOST_ROWS = 16
# How many points of it a thinned table shows.
SHOWN = 5


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
    words: int = 1,
    folded: bool = False,
    thinned: bool = False,
) -> Block:
    """A table; `strong` are the numbers of its emphasised rows, `words` its first columns, which are not numbers.

    Folded, only its caption shows at first. A thinned one leaves out rows that a table after it has.
    """
    return {
        "kind": "folded" if folded else "table",
        "caption": caption,
        "columns": list(columns),
        "rows": [list(row) for row in rows],
        "strong": list(strong),
        "words": words,
        "thinned": thinned,
    }


def few_of(points: Sequence[Sequence[list[str]]]) -> tuple[list[list[str]], bool]:
    """Rows to be shown of points with some rows each, and whether any were left out: a few points, evenly spread."""
    points = [rows for rows in points if rows]
    whole = [row for rows in points for row in rows]
    if len(whole) <= MOST_ROWS or len(points) <= SHOWN:
        return whole, False
    return [row for rows in spread(points, SHOWN) for row in rows], True


def figure(draw: Callable[[], str], caption: str) -> Block:
    """A plot with its caption; it is drawn when a page shows it, for tables in Markdown need none."""
    return {"kind": "figure", "draw": draw, "caption": caption}


def facts(rows: Sequence[tuple[str, str]]) -> Block:
    """Names and values, large."""
    return {"kind": "facts", "rows": list(rows)}


def notes(sentences: Sequence[str]) -> Block | None:
    """Small print, a sentence each; None if there is none."""
    return {"kind": "notes", "notes": list(sentences)} if sentences else None


def spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most that many of the items, evenly spread, the ends among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
