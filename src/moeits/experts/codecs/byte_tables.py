"""Numbers that a byte stands for, another one in every block of a matrix."""

import numpy as np

from moeits.signals.compiling import compiled


def look_up(codes: np.ndarray, tables: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    """(R, C) of the tables' dtype: of each byte of `codes` (R, C) what the table of its block has for it.

    `tables` (rows of blocks, columns of blocks, 256), of unsigned integers; `block` says how many rows and columns a
    block has, the last ones fewer.
    """
    found = np.empty(codes.shape, tables.dtype)
    _look_up(np.ascontiguousarray(codes), tables, *block, found)
    return found


@compiled
def _look_up(codes, tables, height, width, found):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    rows, columns = codes.shape
    for row in range(rows):
        for of_row in range(tables.shape[1]):
            table, first = tables[row // height, of_row], of_row * width
            for column in range(first, min(first + width, columns)):
                found[row, column] = table[codes[row, column]]
