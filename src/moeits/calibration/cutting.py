"""Documents -> windows of equal length: shuffled, joined, each after one token that begins a text, and cut."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moeits.calibration.settings import Tokens
from moeits.errors import CalibrationError
from moeits.printable import printable

# Of the documents of a text so many are held out: every fifth.
HELD_OUT = 5
LONGEST_NAME = 60
# Fewer windows of a source say little of it alone.
_LEAST_OF_SOURCE = 4


def first_token(tokenizer: Any) -> int:
    """The token that begins a text. Raises CalibrationError if there is none."""
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if first is None:
        raise CalibrationError("The tokenizer has neither a bos nor an eos token, so no text can begin.")
    return int(first)


def evenly_mixed(parts: Sequence[np.ndarray]) -> np.ndarray:
    """The windows of all parts in one order, in which each part lies evenly: the first ones are of all of them."""
    at = np.concatenate([(np.arange(len(part)) + 0.5) / len(part) for part in parts])
    return np.concatenate(parts)[np.argsort(at, kind="stable")]


def cut_each(
    tokenizer: Any, documents: Mapping[str, Sequence[str]], count: int, length: int, settings: Tokens
) -> tuple[np.ndarray, tuple[str, ...]]:
    """(count, length) ids, as many windows of each source as there are, and their sources.

    What is too little to be told apart is one source together, and so is all where that gives more windows.
    """
    cut = {name: _as_many(tokenizer, own, count, length, settings) for name, own in documents.items()}
    apart = {name: windows for name, windows in cut.items() if len(windows) >= _LEAST_OF_SOURCE}
    rest = [document for name, own in documents.items() if name not in apart for document in own]
    if rest:
        apart["others"] = _as_many(tokenizer, rest, count, length, settings)
    if sum(map(len, apart.values())) < count:
        everything = [document for own in documents.values() for document in own]
        return cut_documents(tokenizer, everything, count, length, ", ".join(documents), settings)[0], ("all",) * count
    picked = sorted((at, name) for name, windows in apart.items() for at in range(len(windows)))[:count]
    picked.sort(key=lambda each: (each[1], each[0]))
    return np.stack([apart[name][at] for at, name in picked]), tuple(name for _, name in picked)


def _as_many(tokenizer: Any, documents: Sequence[str], most: int, length: int, settings: Tokens) -> np.ndarray:
    """(up to `most`, length) ids of shuffled documents."""
    ids, _ = _joined(tokenizer, documents, most * length, settings.seed)
    return np.array(ids[: len(ids) // length * length], np.int64).reshape(-1, length)


def _joined(tokenizer: Any, documents: Sequence[str], needed: int, seed: int) -> tuple[list[int], list[int]]:
    """So many ids of shuffled documents, or what there is; and the number of each one's document."""
    first = first_token(tokenizer)
    ids: list[int] = []
    numbers: list[int] = []
    for i in np.random.default_rng(seed).permutation(len(documents)):
        ids += [first, *tokenizer.encode(documents[i], add_special_tokens=False, verbose=False)]
        numbers += [int(i)] * (len(ids) - len(numbers))
        if len(ids) >= needed:
            break
    return ids[:needed], numbers[:needed]


def cut_documents(
    tokenizer: Any, documents: Sequence[str], count: int, length: int, name: str, settings: Tokens
) -> tuple[np.ndarray, np.ndarray]:
    """(count, length) ids of shuffled documents, and the number of each one's document."""
    needed = count * length
    ids, numbers = _joined(tokenizer, documents, needed, settings.seed)
    if len(ids) == needed:
        return np.array(ids, np.int64).reshape(count, length), np.array(numbers).reshape(count, length)
    # Four fifths of a text are there to be fitted on, one fifth is held out.
    raise CalibrationError(
        f"{printable(name, LONGEST_NAME)} has {len(ids)} tokens where {needed} are asked for, in {len(documents)} "
        f"different documents: each counts once, and every {HELD_OUT}th is held out. Give more text, or ask for fewer "
        "with --tokens and --held-out."
    )
