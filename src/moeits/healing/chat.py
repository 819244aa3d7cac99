"""A model's own chat template: conversation -> text, in bounded time and memory, or a reason why not."""

import json
import subprocess
import sys
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Timer
from typing import Any

from moeits.errors import HealingError
from moeits.healing.conversations import Conversation, RowDropped, Turn

SECONDS = 5.0
"""For one conversation. A usual template takes a thousandth of one."""
_SECONDS_TO_START = 30.0


class ChatTemplate:
    """The chat template of a tokenizer, run in a process of its own (`rendering`), which ends with this object."""

    def __init__(self, tokenizer: Any) -> None:
        """Raises HealingError if the tokenizer has no template that is a text, or if it cannot be compiled."""
        self._tokenizer = tokenizer
        self._processes: dict[str, subprocess.Popen[str]] = {}
        weakref.finalize(self, _end, self._processes)
        self._process(self._source(tools=None))

    def rendered(self, conversation: Conversation, turns: int, *, add_generation_prompt: bool) -> str:
        """The text of the first `turns` turns. Raises RowDropped if the template refuses, HealingError if it hangs."""
        source = self._source(tools=conversation.tools)
        request = {
            **{name: str(token) for name, token in self._tokenizer.special_tokens_map.items()},
            "messages": [message_of(turn) for turn in conversation.turns[:turns]],
            "tools": conversation.tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        answer = self._answer(self._process(source), request, SECONDS)
        if "refused" in answer:
            raise RowDropped("a conversation that the chat template refuses", answer["refused"])
        return str(answer["text"])

    def _source(self, *, tools: Any) -> str:
        try:
            source = self._tokenizer.get_chat_template(tools=tools)
        except ValueError as error:
            raise HealingError(f"The model's chat template cannot be used: {_line(error)}. {_INSTEAD}") from None
        if not isinstance(source, str):
            raise HealingError(f"The model's chat template is a {type(source).__name__}, not a text. {_INSTEAD}")
        return source

    def _process(self, source: str) -> "subprocess.Popen[str]":
        if source not in self._processes:
            process = subprocess.Popen(
                [sys.executable, "-P", str(Path(__file__).with_name("rendering.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
            )
            self._processes[source] = process
            answer = self._answer(process, {"template": source}, _SECONDS_TO_START)
            if "refused" in answer:
                raise HealingError(f"The model's chat template cannot be read: {_line(answer['refused'])}. {_INSTEAD}")
        return self._processes[source]

    def _answer(self, process: "subprocess.Popen[str]", request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        assert process.stdin is not None
        assert process.stdout is not None
        watch = Timer(seconds, process.kill)
        watch.daemon = True
        watch.start()
        try:
            process.stdin.write(json.dumps(request, default=str) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:
            line = ""
        finally:
            watch.cancel()
        if not line.endswith("\n"):
            raise HealingError(
                f"The model's chat template did not finish one conversation within {seconds:g} s and "
                f"{_MEMORY}. {_INSTEAD}"
            )
        answer: dict[str, Any] = json.loads(line)
        return answer


_MEMORY = "the memory it is given"
_INSTEAD = "Heal with --template instruction, or put a sound template into the model's folder."


def message_of(turn: Turn) -> dict[str, Any]:
    """A turn as templates expect it."""
    return {"role": turn.role, "content": "\n\n".join(filter(None, (turn.text, turn.input))), **turn.more}


def check_nothing_vanished(conversation: Conversation, text: str) -> None:
    """Every turn is in the text, in order. Raises RowDropped.

    What a system turn or a tool's description says may be anywhere. Of an answer that begins with reasoning, a template
    may leave the reasoning out, as it does where the model itself reads the conversation on.
    """
    at = 0
    for turn in conversation.turns:
        for part in _parts(turn):
            first = 0 if turn.role in ("system", "developer") else at
            places = [text.find(form, first) for form in {part, json.dumps(part)[1:-1], _unescaped(part)}]
            found = min((place for place in places if place >= 0), default=-1)
            if found < 0:
                raise RowDropped("a turn that the chat template leaves out", f"a turn of the {turn.role}")
            at = max(at, found)


def _unescaped(part: str) -> str:
    return json.dumps(part, ensure_ascii=False)[1:-1]


def _parts(turn: Turn) -> Sequence[str]:
    """The pieces of text of a turn that must be in what is rendered."""
    said = turn.text.rpartition("</think>")[2] if turn.role == "assistant" else turn.text
    calls = [call["function"]["name"] for call in turn.more.get("tool_calls", ())]
    return [part for part in (said.strip(), turn.input.strip(), *calls) if part]


def _line(reason: object) -> str:
    return " ".join(str(reason).split())[:160].rstrip(".")


def _end(processes: "dict[str, subprocess.Popen[str]]") -> None:
    for process in processes.values():
        process.kill()
        process.communicate()
