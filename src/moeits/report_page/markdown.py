"""The report's tables in Markdown, for a paper or a model card."""

from collections.abc import Iterator, Sequence

from moeits.card_slot import with_results
from moeits.printable import markdown_text
from moeits.report_page.artefacts import Run
from moeits.report_page.blocks import Block, Section
from moeits.report_page.evidence_sections import SIZES_CAPTION
from moeits.report_page.sections import sections_of

# Sections whose tables say what came out; the others are about how it is drawn or made.
_OF_RESULTS = ("left-out", "accuracy", "footprint", "ledger", "healing", "rows", "runs")


def tables(runs: Sequence[Run], extra: Sequence[Section] = (), *, level: int = 2) -> str:
    """Sizes, accuracy, healing and footprint of each run, as headings and pipe tables; then further sections, once."""
    parts = []
    for run in runs:
        if len(runs) > 1:
            parts.append(f"{'#' * level} {markdown_text(run.name)}")
        for each in sections_of(run, "run"):
            parts += _section(each, level + (len(runs) > 1))
    for each in extra:
        parts += _section(each, level)
    return "\n\n".join(parts) + "\n"


def _section(section: Section, level: int) -> Iterator[str]:
    shown = [block for block in section["blocks"] if _is_result(section, block)]
    if not shown:
        return
    yield f"{'#' * level} {markdown_text(section['title'])}"
    yield from map(markdown_text, section["intro"])
    for block in shown:
        yield _notes(block) if block["kind"] == "notes" else f"{markdown_text(block['caption'])}:\n\n{_table(block)}"


def _is_result(section: Section, block: Block) -> bool:
    """Whether it is a table of results, and whole, or a note on them."""
    if block["kind"] == "notes" or block.get("caption") == SIZES_CAPTION:
        return block["kind"] != "notes" or section["slug"] in _OF_RESULTS
    return section["slug"] in _OF_RESULTS and block["kind"] in ("table", "folded") and not block["thinned"]


def _notes(block: Block) -> str:
    return "\n".join(f"- {markdown_text(note)}" for note in block["notes"])


def _table(block: Block) -> str:
    def row(cells: Sequence[str]) -> str:
        return "| " + " | ".join(markdown_text(str(cell)) for cell in cells) + " |"

    words = block["words"]
    ruler = row(["---" if number < words else "---:" for number in range(len(block["columns"]))])
    return "\n".join([row(block["columns"]), ruler, *(row(cells) for cells in block["rows"])])


def card_with_results(card: str, runs: Sequence[Run]) -> str:
    """A model card with the results of its runs, in place of older ones or of the sentence that there are none."""
    return with_results(card, f"## Results\n\n{tables(runs, level=3).strip()}")
