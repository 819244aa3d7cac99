"""Chat templates, rendered in a process of their own, which can be ended: a template is a stranger's program.

    python -P rendering.py        first line: {"template": ...}; then a conversation per line in, a text per line out

jinja2's sandbox keeps a template from reaching anything; it does not keep it from running for ever or filling the
memory. The environment is that of transformers' `apply_chat_template`, without which a template would render otherwise.
This file imports nothing but jinja2, so that the process starts at once.
"""

import json
import sys
from contextlib import suppress
from datetime import datetime
from typing import Any, TextIO

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

MOST_BYTES = 2**30
"""Memory of the process, where the operating system can bound it."""
MOST_CHARACTERS = 2**24
_REASONING = ("reasoning_content", "thinking", "reasoning")


class _Generation(Extension):
    """`{% generation %}` marks what the model says; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Namespace(jinja2.utils.Namespace):
    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace takes no attribute {name!r}")
        super().__setitem__(name, value)


def compiled(template: str) -> jinja2.Template:
    """A chat template as transformers compiles it. Raises jinja2.TemplateError."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals.update(
        raise_exception=_raise_exception, strftime_now=_strftime_now, namespace=_Namespace, dict=_dict
    )
    return environment.from_string(template)


def rendered(template: jinja2.Template, given: dict[str, Any]) -> str:
    """The text of one conversation. Raises whatever the template raises, ValueError for a text without end."""
    messages = [_with_reasoning(message) for message in given["messages"]]
    text = template.render(**{**given, "messages": messages})
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"the text has more than {MOST_CHARACTERS:,} characters")
    return text


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """The reasoning of a turn goes by several names, of which a template reads one."""
    reasoning = next((message[name] for name in _REASONING if message.get(name) is not None), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _dict(*arguments: Any, **named: Any) -> dict[Any, Any]:
    return dict(*arguments, **named)


def _bound_memory() -> None:
    with suppress(ImportError, OSError, ValueError):  # Windows has no such module, some systems no such limit
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answer every line until there are no more."""

    def answer(**facts: Any) -> None:
        answers.write(json.dumps(facts) + "\n")
        answers.flush()

    def reason(error: Exception) -> str:
        return f"{type(error).__name__}: {error}"[:200]

    try:
        template = compiled(json.loads(next(iter(requests)))["template"])
    except Exception as error:
        answer(refused=reason(error))
        return
    answer(text="")
    for line in requests:
        try:
            answer(text=rendered(template, json.loads(line)))
        except Exception as error:  # a template raises what it likes
            answer(refused=reason(error))


if __name__ == "__main__":
    _bound_memory()
    serve(sys.stdin, sys.stdout)
