"""The paper's published rows, as the package carries them: shown beside ours on request, caveats and all."""

import json
from importlib import resources
from typing import Any

from moeits.report_page.accuracy import NOTHING
from moeits.report_page.blocks import Block, Section, notes, section, table


def published_rows() -> dict[str, Any]:
    """The package's `published_rows.json`: tables, the source of each row, and the caveats."""
    text = resources.files("moeits").joinpath("published_rows.json").read_text(encoding="utf-8")
    value: dict[str, Any] = json.loads(text)
    return value


def published_section() -> Section:
    """Every quoted row; what is not quoted is left blank."""
    known = published_rows()
    sources = [f"{name}: {where}." for name, where in known["sources"].items()]
    blocks: list[Block | None] = [_table(each) for each in known["tables"]]
    made = section("rows", "Published rows", [known["about"]], [*blocks, notes([*known["caveats"], *sources])])
    assert made is not None
    return made


def _table(facts: dict[str, Any]) -> Block:
    rows = [
        [
            row["method"],
            f"{row['reduction_percent']:g}",
            NOTHING if row["mean"] is None else f"{row['mean']:g}",
            f"HellaSwag {row['hellaswag']:g}" if "hellaswag" in row else row.get("note", NOTHING),
            row.get("really", NOTHING),
            row["source"],
        ]
        for row in facts["rows"]
    ]
    number = f"Table {facts['table']}" + (" (its number is inferred)" if facts.get("table_number_is_inferred") else "")
    columns = ["method", "removed, %", "mean accuracy, %", "also", "what it seems to be", "source"]
    return table(f"{number}, {facts['model']}", columns, rows)
