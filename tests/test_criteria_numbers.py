"""What docs/validity.md says of criteria is what the run folders' files in docs/validity say."""

from pathlib import Path

import pytest

from moeits.criteria_file import ShownRow, read_criteria, shown_rows

DOCS = Path(__file__).parents[1] / "docs"
FILES = sorted((DOCS / "validity").glob("criteria-*.json"))


def cell(row: ShownRow) -> str:
    refused = ", refused" if row.refused else ""
    return f"{row.rise:.3f} ({row.low:.3f} to {row.high:.3f}){refused}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_table_of_the_page_is_a_file_of_a_run(file: Path) -> None:
    found = read_criteria(file)
    _, table = (DOCS / "validity.md").read_text().split(f"[{file.name}]")
    table = table.partition("\n[")[0]
    assert found["text"] is not None
    assert f"{found['text']['nats_per_token']:.4f}" in table
    rows = shown_rows(found["rows"])
    by_label: dict[str, dict[str, str]] = {}
    for row in rows:
        by_label.setdefault(row.label, {})[row.state] = cell(row)
    for label, states in by_label.items():
        assert f"| {label} | {states['pruned']} | {states['refitted']} |" in table
    assert file.stat().st_size < 40_000


def test_there_are_numbers() -> None:
    assert FILES
