"""Rows of a data set, whatever their form, as turns of a conversation."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moeits.errors import HealingError
from moeits.runtime import need

Row = Mapping[str, Any]

# What the speakers are called in ShareGPT / OpenHermes, in chat messages, and here.
_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
}
# A hub data set is shuffled within a window of this many rows, because it is not downloaded whole.
_SHUFFLE_WINDOW = 10_000


@dataclass(frozen=True)
class Turn:
    """One turn. The role is system, user or assistant; `text` for text that is no conversation."""

    role: str
    text: str
    input: str = ""
    """What an instruction is to be carried out on, where a row keeps it apart."""


Conversation = tuple[Turn, ...]


def read_rows(data: str | Path, *, samples: int | None = None, seed: int = 0) -> Iterator[Row]:
    """The rows of a JSONL, JSON or Parquet file, or of the training split of a hub data set (org/name), streamed.

    Only the hub is shuffled here, within a window, because only its `samples` first rows are downloaded.
    Raises HealingError with the reason, and the line, if a file cannot be read as rows.
    """
    path = Path(data)
    if path.is_file():
        readers = {".jsonl": _jsonl, ".json": _json, ".parquet": _parquet}
        if path.suffix not in readers:
            raise HealingError(f"{path} is neither .jsonl nor .json nor .parquet. Convert it to one of them.")
        yield from readers[path.suffix](path)
        return
    if path.exists() or str(data).count("/") != 1:
        raise HealingError(f"{data} is no file, and no hub data set (org/name) either.")
    yield from _hub_rows(str(data), samples, seed)


def as_conversation(row: Row) -> Conversation | None:
    """The turns of a row; None if it has no answer, or no text, to learn from.

    Known forms: {"conversations": [{"from", "value"}, ...]} (OpenHermes, ShareGPT), {"messages": [{"role", "content"},
    ...]}, {"instruction", "input", "output"}, {"text"}.
    """
    turns = row.get("conversations") or row.get("messages")
    if isinstance(turns, list):
        return _answered(tuple(turn for turn in map(_turn, turns) if turn is not None))
    if isinstance(row.get("instruction"), str):
        return _from_instruction(row)
    text = row.get("text")
    return (Turn("text", text),) if isinstance(text, str) and text.strip() else None


def _from_instruction(row: Row) -> Conversation | None:
    answer = row.get("output") or row.get("response") or ""
    given = str(row.get("input") or "").strip()
    return _answered((Turn("user", row["instruction"], given), Turn("assistant", str(answer))))


def _turn(turn: Any) -> Turn | None:
    if not isinstance(turn, Mapping):
        return None
    role, text = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
    known = isinstance(role, str) and role in _ROLES
    return Turn(_ROLES[role], text) if known and isinstance(text, str) else None


def _answered(turns: Conversation) -> Conversation | None:
    """The turns up to the last answer that says something."""
    answers = [at for at, turn in enumerate(turns) if turn.role == "assistant" and turn.text.strip()]
    return turns[: answers[-1] + 1] if answers else None


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode())
            except UnicodeDecodeError as error:
                odd = f"{error.reason} {line[error.start]:#04x}"
                raise HealingError(f"{path.name}, line {number} is no UTF-8 ({odd}). Convert the file.") from None
            except json.JSONDecodeError as error:
                raise HealingError(f"{path.name}, line {number} is no JSON: {error}.") from None
            yield from _only_objects(path, number, [row])


def _json(path: Path) -> Iterator[Row]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise HealingError(f"{path.name} is no JSON: {error}. If it has one object per line, call it .jsonl.") from None
    rows = value if isinstance(value, list) else value.get("data") if isinstance(value, dict) else None
    if not isinstance(rows, list):
        raise HealingError(f"{path.name} should hold a list of rows, or an object with such a list under 'data'.")
    yield from _only_objects(path, 1, rows)


def _only_objects(path: Path, first: int, rows: Iterable[Any]) -> Iterator[Row]:
    for number, row in enumerate(rows, first):
        if not isinstance(row, dict):
            raise HealingError(f"{path.name}, row {number} is a {type(row).__name__}; rows are JSON objects.")
        yield row


def _parquet(path: Path) -> Iterator[Row]:
    parquet = need("pyarrow.parquet", extra="heal")
    try:
        for batch in parquet.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
    except (OSError, ValueError) as error:
        raise HealingError(f"{path.name} cannot be read as Parquet: {error}.") from None


def _hub_rows(name: str, samples: int | None, seed: int) -> Iterator[Row]:
    """Not run against a live hub: the machine this was built on has none. The tests replace `load_dataset`."""
    datasets = need("datasets", extra="heal")
    try:
        rows = datasets.load_dataset(name, split="train", streaming=True)
        shuffled = rows.shuffle(seed=seed, buffer_size=_SHUFFLE_WINDOW)
        yield from shuffled if samples is None else shuffled.take(samples)
    except (OSError, ValueError, ConnectionError) as error:
        raise HealingError(
            f"There is no file {name}, and the hub does not give a data set of that name: {error}"
        ) from None
