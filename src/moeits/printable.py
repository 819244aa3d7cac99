"""Text of strangers as text that can be shown: on a terminal, in a sentence, in a table of Markdown.

Names of tensors, tasks, folders and models come from files of others. A terminal obeys control characters, a reader is
misled by text that runs the other way, an encoder fails on half of a surrogate pair, and a name may be as long as its
file.
"""

import re

# Control characters, what changes the direction of writing, line and paragraph separators, halves of surrogate pairs.
_HARMFUL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
# What begins HTML, code, a cell, a link or a heading; single signs of emphasis do no harm.
_OF_MARKDOWN = re.compile(r"[\\`<|]|^[#\[]|\](?=\()")


def printable(text: str, longest: int | None = None) -> str:
    """One line that shows every character, what a terminal would obey as `\\x1b`; its middle is cut if too long."""
    if longest is not None and len(text) > longest:
        begin = longest * 2 // 3
        text = f"{text[:begin]} … {text[begin + 3 - longest :]}"
    return _HARMFUL.sub(_as_escape, text)


def markdown_text(text: str) -> str:
    """Text that is safe in Markdown: no markup, no HTML, no new line, no cell of a table."""
    return _OF_MARKDOWN.sub(_as_entity_or_escape, printable(text))


def _as_escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return " " if found[0] == "\t" else f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def _as_entity_or_escape(found: re.Match[str]) -> str:
    return "&lt;" if found[0] == "<" else f"\\{found[0]}"
