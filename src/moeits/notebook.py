"""What results show of themselves in a notebook: a small table of HTML, in which names of strangers are text."""

from collections.abc import Iterable, Sequence
from html import escape

import numpy as np

from moeits.printable import printable

SCORED_COLUMNS = ("layer", "experts", "mean redundancy", "of independent weights", "highest")


def scored_row(layer: int, experts: int, found: np.ndarray | None, floor: np.ndarray | None) -> tuple[object, ...]:
    """A layer's matrices of pairs, (E, E) with a diagonal of 0, as a row under SCORED_COLUMNS; None is left empty."""
    pairs = max(experts * (experts - 1), 1)
    means = ("" if of is None else f"{of.sum() / pairs:.4f}" for of in (found, floor))
    return (layer, experts, *means, "" if found is None else f"{found.max():.4f}")


def html_table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table with right-aligned cells. Anything in it is shown as text."""
    heads = "".join(f"<th>{_text(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return (
        f'<table style="text-align: right"><caption style="text-align: left">{_text(caption)}</caption>'
        f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
    )


def _text(value: object) -> str:
    return escape(printable(str(value)))
