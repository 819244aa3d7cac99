"""Rows of a data set, whatever their form, as turns of a conversation; a row that cannot be one whole is dropped."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from moeits.errors import HealingError
from moeits.runtime import need

Row = Mapping[str, Any]

# What the speakers are called in ShareGPT / OpenHermes, in chat messages, and here.
_ROLES = {
    "system": "system",
    "developer": "developer",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
    "function": "tool",
    "ipython": "tool",
}
# What a message says beside its text that templates read.
_MORE = ("tool_calls", "tool_call_id", "name", "reasoning_content", "thinking", "reasoning")
# A hub data set is shuffled within a window of this many rows, because it is not downloaded whole.
_SHUFFLE_WINDOW = 10_000


class RowDropped(Exception):
    """A row that is not trained on. `reason` is one of few, and is counted; `example` says more of this row."""

    def __init__(self, reason: str, example: str = "") -> None:
        super().__init__(f"{reason} ({example})" if example else reason)
        self.reason, self.example = reason, example


@dataclass(frozen=True)
class Turn:
    """One turn. The role is system, developer, user, assistant or tool; `text` for plain text."""

    role: str
    text: str
    input: str = ""
    """What an instruction is to be carried out on, where a row keeps it apart."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """Tool calls, whose result it is, reasoning: as a chat template reads them."""


@dataclass(frozen=True)
class Conversation:
    """The turns of a row, the last of them an answer, and the tools that the answers may call."""

    turns: tuple[Turn, ...]
    tools: Any = None

    @property
    def is_text(self) -> bool:
        return self.turns[0].role == "text"


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
        raise HealingError(f"{data} is not a file, and not the name of a hub data set (org/name) either.")
    yield from _hub_rows(str(data), samples, seed)


def as_conversation(row: Row) -> Conversation:
    """The turns of a row. Raises RowDropped if one of them cannot be read, or if there is no answer to learn from.

    Known forms: {"conversations": [{"from", "value"}, ...]} (OpenHermes, ShareGPT), {"messages": [{"role", "content"},
    ...]}, both with `tools`, {"instruction", "input", "output"}, {"text"}.
    """
    turns = row.get("conversations") or row.get("messages")
    if isinstance(turns, list):
        return _answered(tuple(map(_turn, turns)), _tools(row.get("tools")))
    if isinstance(row.get("instruction"), str):
        return _from_instruction(row)
    text = row.get("text")
    if not (isinstance(text, str) and text.strip()):
        _drop("no answer, and no text")
    return Conversation((Turn("text", text),))


def _drop(reason: str, example: str = "") -> NoReturn:
    raise RowDropped(reason, example)


def _from_instruction(row: Row) -> Conversation:
    answer = row.get("output") or row.get("response") or ""
    given = str(row.get("input") or "").strip()
    return _answered((Turn("user", row["instruction"], given), Turn("assistant", str(answer))))


def _turn(turn: Any) -> Turn:
    if not isinstance(turn, Mapping):
        _drop("a turn that is not an object")
    speaker = turn.get("from", turn.get("role"))
    if not isinstance(speaker, str) or speaker not in _ROLES:
        _drop("a turn of an unknown speaker", repr(speaker)[:40])
    content = turn.get("value", turn.get("content"))
    if speaker == "function_call":
        return Turn("assistant", "", more={"tool_calls": _calls(_parsed(content))})
    # Parquet gives every message all fields, those that it lacks as None.
    more = {name: turn[name] for name in _MORE if turn.get(name)}
    if "tool_calls" in more:
        more["tool_calls"] = _calls(more["tool_calls"])
    return Turn(_ROLES[speaker], _text(content, has_calls="tool_calls" in more), more=more)


def _text(content: Any, *, has_calls: bool) -> str:
    if content is None and has_calls:
        return ""
    if isinstance(content, list):
        if not all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in content):
            _drop("a turn with parts that are not text")
        return "".join(part["text"] for part in content)
    if not isinstance(content, str):
        _drop("a turn without a text")
    return content


def _calls(calls: Any) -> list[dict[str, Any]]:
    """Tool calls in the form of chat messages, the arguments as an object."""
    calls = _parsed(calls)
    calls = [calls] if isinstance(calls, Mapping) else calls
    if not (isinstance(calls, list) and calls):
        _drop("a tool call that cannot be read")
    return [_call(call) for call in calls]


def _call(call: Any) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not (isinstance(function, Mapping) and isinstance(function.get("name"), str)):
        _drop("a tool call that cannot be read")
    arguments = _parsed(function.get("arguments", function.get("parameters", {})))
    outside = {name: call[name] for name in ("id",) if call.get(name)}
    return {**outside, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _tools(tools: Any) -> Any:
    """The descriptions of tools; many data sets hold them as JSON in a string."""
    tools = _parsed(tools) if tools else None
    if tools and not (isinstance(tools, list) and all(isinstance(tool, Mapping) for tool in tools)):
        _drop("tools that cannot be read")
    return tools or None


def _parsed(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        _drop("a tool call that cannot be read")


def _answered(turns: tuple[Turn, ...], tools: Any = None) -> Conversation:
    """The turns up to the last answer that says something: what comes after it is answered by nobody."""
    answers = [
        at
        for at, turn in enumerate(turns)
        if turn.role == "assistant" and (turn.text.strip() or turn.more.get("tool_calls"))
    ]
    if not answers:
        _drop("no answer, and no text")
    return Conversation(turns[: answers[-1] + 1], tools)


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode())
            except UnicodeDecodeError as error:
                odd = f"{error.reason} {line[error.start]:#04x}"
                raise HealingError(f"{path.name}, line {number} is not UTF-8 ({odd}). Convert the file.") from None
            except (ValueError, RecursionError) as error:
                raise HealingError(f"{path.name}, line {number} is not JSON: {_why(error)}.") from None
            yield from _only_objects(path, number, [row])


def _why(error: Exception) -> str:
    """ValueError is also what Python says of a number of thousands of digits."""
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error).partition(";")[0].rstrip(".")


def _json(path: Path) -> Iterator[Row]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise HealingError(
            f"{path.name} is not JSON: {_why(error)}. If it has one object per line, call it .jsonl."
        ) from None
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
    parquet, arrow = need("pyarrow.parquet", extra="heal"), need("pyarrow", extra="heal")
    try:
        for batch in parquet.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
    except (OSError, ValueError, OverflowError, arrow.ArrowException) as error:
        reason = str(error).partition("\n")[0][:200].rstrip(".")
        raise HealingError(f"{path.name} cannot be read as Parquet: {reason}.") from None


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
