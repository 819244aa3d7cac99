"""What the models of a run were asked: numbers of different questions are marked, and never drawn beside each other."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from moeits.report_page.rows import TEXT, Row

_MARKS = "*\N{DAGGER}\N{DOUBLE DAGGER}\N{SECTION SIGN}\N{PILCROW SIGN}"


class Questions:
    """What the first model was asked, task by task; who was asked otherwise is marked, and never drawn beside it."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    @cached_property
    def first(self) -> dict[str, Row]:
        """Task, or `TEXT` -> the first row that answers it."""
        found: dict[str, Row] = {}
        for row in self._rows:
            for task in _asked(row):
                found.setdefault(task, row)
        return found

    @cached_property
    def _others(self) -> dict[tuple[str, Any], str]:
        """Every question that is not the first of its task -> its mark."""
        asked = dict.fromkeys((task, _question(row, task)) for row in self._rows for task in _asked(row))
        others = [each for each in asked if each[1] != _question(self.first[each[0]], each[0])]
        return {each: _MARKS[i % len(_MARKS)] * (1 + i // len(_MARKS)) for i, each in enumerate(others)}

    def mark(self, row: Row, task: str) -> str:
        """A sign to be put behind a number that is not comparable with the others; else nothing."""
        mark = self._others.get((task, _question(row, task))) if task in _asked(row) else None
        return f" {mark}" if mark else ""

    def alike(self) -> list[Row]:
        """The rows that were asked what the first ones were."""
        return [row for row in self._rows if not any(self.mark(row, task) for task in _asked(row))]

    def asked(self) -> list[tuple[str, str]]:
        """Task, or `TEXT`, and how it was asked, in words; each once."""
        every = ((task, question_in_words(row, task)) for row in self._rows for task in _asked(row))
        return list(dict.fromkeys(every))

    def notes(self) -> list[str]:
        """What each mark means."""
        return [
            f"{mark} {task}: {in_words(question)}. Another question than that of the other rows, so its numbers are "
            "not comparable with theirs, and are in no plot."
            for (task, question), mark in self._others.items()
        ]


def _asked(row: Row) -> list[str]:
    return [*row.results.tasks, *([TEXT] if row.results.perplexity else [])]


def _question(row: Row, task: str) -> tuple[tuple[str, Any], ...]:
    """All that two rows must share for their numbers to be of the same question, as pairs of name and value."""
    if task == TEXT:
        text: Mapping[str, Any] = row.results.perplexity or {}
        return tuple((key, text.get(key)) for key in ("file", "sha256", "window_tokens"))
    found = row.results.tasks[task]
    samples = found.get("n_samples") or {}
    files = tuple(sorted((found.get("files") or {}).items()))
    return (
        ("num_fewshot", found.get("num_fewshot")),
        ("effective", samples.get("effective")),
        ("original", samples.get("original")),
        ("version", found.get("version")),
        ("files", files),
    )


def in_words(question: Iterable[tuple[str, Any]]) -> str:
    """`15-shot, 400 of 2376 items`; of a text its name and window."""
    found = dict(question)
    if "file" in found:
        window = f", windows of {found['window_tokens']} tokens" if found["window_tokens"] else ""
        return f"{found['file']}{window}" + (f", SHA-256 {found['sha256'][:12]}" if found["sha256"] else "")
    return f"{found['num_fewshot']}-shot, {found['effective']} of {found['original']} items"


def question_in_words(row: Row, task: str) -> str:
    """What a row was asked under the name of a task."""
    return in_words(_question(row, task))
