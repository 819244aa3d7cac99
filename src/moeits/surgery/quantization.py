"""Expert numbers in what a quantizer wrote beside the tensors: module names and patterns, for the kept experts.

A pattern is judged by what it matches, not by how it is spelt: it stays if it still matches the kept experts' modules
that it matched before, and else becomes patterns that do. Patterns come from strangers, so matching them has its time.
"""

import re
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import translate
from functools import cached_property
from math import prod
from operator import itemgetter
from time import process_time
from typing import Any, TypeVar

from moeits.checkpoint.parts import QUANTIZATION_FILES
from moeits.checkpoint.reading import Checkpoint, read_json
from moeits.errors import CheckpointError
from moeits.experts.layer import MoELayer
from moeits.experts.layout import MoELayout

# Keys of config.json under which quantizers keep their settings; `quantization` is MLX's.
CONFIG_KEYS = ("quantization_config", "compression_config", "quantization")

_MOST_PARTS = 4
"""Configs within one another: a model of several parts nests two."""

# GPTQModel's dynamic: settings by regular expression, with these prefixes or none.
_PREFIXES = ("re:", "+:", "-:")
_LONGEST_PATTERN, _MOST_REPEATS = 2000, 10_000
_SECONDS_OF_ONE, _SECONDS = 2.0, 4.0
"""For one name, and for all patterns of a checkpoint: of 60 layers of 256 experts some 20 that begin with `.*`."""

_ESCAPED = re.compile(r"\\.")
# To find what alternates outside of groups; of nested groups the outer parts stay, which errs on the slow side.
_GROUP = re.compile(r"\[[^]]*\]|\([^()]*\)")

_PLAIN_EXPERT = re.compile(r"(?:^|\.)experts\.(\d{1,9})(?=\.|$)")
_PLAIN_LAYER = re.compile(r"(?:^|\.)layers\.(\d{1,9})\.")
_NUMBERS = r"\d+|\((?:\?:)?\d+(?:\|\d+)*\)|\[\d+(?:-\d)?\]"
_SPELT_EXPERT = re.compile(rf"(experts(?:\\\.|\.|\[\.\]))({_NUMBERS})(?=\\\.|\.|\[\.\]|\$|\*|$)")


def renumbered_settings(
    checkpoint: Checkpoint, moe: MoELayout, kept: Mapping[int, Sequence[int]], config: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What quantizers wrote, with the kept experts, layer -> original numbers, under their new numbers.

    That is config.json, and by file name the settings that a checkpoint has beside it. Raises CheckpointError where a
    file cannot be read or a pattern cannot be translated.
    """
    deadline = process_time() + _SECONDS

    def renumbered(value: Any, where: str) -> Any:
        return Renumbering.of(checkpoint, moe, kept, where, deadline=deadline).apply(value)

    def with_new_numbers(config: Mapping[str, Any], inside: str = "") -> dict[str, Any]:
        """Of a model of several parts, the settings may be in the config of one."""
        new: dict[str, Any] = {}
        for key, value in config.items():
            new[key] = value
            if isinstance(value, Mapping) and key in CONFIG_KEYS:
                new[key] = renumbered(value, f"{inside}{key} in config.json")
            elif isinstance(value, Mapping) and key.endswith("_config") and inside.count(".") < _MOST_PARTS:
                new[key] = with_new_numbers(value, f"{inside}{key}.")
        return new

    new_config = with_new_numbers(config)
    folder = checkpoint.folder
    beside = {
        name: renumbered(read_json(folder / name), name) for name in QUANTIZATION_FILES if (folder / name).is_file()
    }
    return new_config, beside


Matched = frozenset[tuple[int, int, str]]
"""What a pattern matches among modules of experts: layer, expert, what follows its number."""


@dataclass(frozen=True, kw_only=True)
class Renumbering:
    """The kept experts of a checkpoint under their new numbers, for one file of a quantizer."""

    moe: MoELayout
    others: Sequence[str]
    """Names of the modules and tensors that are not of single experts; they keep their names."""
    kept: Mapping[int, Sequence[int]]
    where: str
    """What to call the file in a message."""
    deadline: float
    """By the clock of this process, which does not run while others do."""

    @classmethod
    def of(
        cls, checkpoint: Checkpoint, moe: MoELayout, kept: Mapping[int, Sequence[int]], where: str, *, deadline: float
    ) -> "Renumbering":
        """The renumbering of a checkpoint's experts, `kept` being layer -> original numbers, ascending."""
        numbered = {name for layer in moe.layers.values() for of in layer.experts.values() for name in of.values()}
        tensors = [name for name in checkpoint.tensors if name not in numbered]
        modules = dict.fromkeys(name.rpartition(".")[0] for name in tensors)
        return cls(moe=moe, others=[*modules, *tensors], kept=kept, where=where, deadline=deadline)

    def apply(self, value: Any) -> Any:
        """A JSON value with its expert numbers as they are after pruning; what names removed experts only is gone.

        Raises CheckpointError where a pattern cannot be translated, with the pattern.
        """
        unmoved = all(list(kept) == list(range(len(kept))) for kept in self.kept.values())
        uncut = all(len(kept) == self.moe.layers[i].num_experts for i, kept in self.kept.items())
        try:
            return value if unmoved and uncut else self._walk(value, regular=False)
        except RecursionError:
            raise CheckpointError(f"{self.where} is nested too deeply. Download this file again.") from None

    def _walk(self, value: Any, *, regular: bool) -> Any:
        if isinstance(value, Mapping):
            made: dict[str, Any] = {}
            for key, entry in value.items():
                for name in self._translated(key, regular=regular):
                    made.setdefault(name, self._walk(entry, regular=key == "dynamic"))
            return made
        if isinstance(value, list):
            return [new for entry in value for new in self._walk_entry(entry)]
        return value

    def _walk_entry(self, entry: Any) -> list[Any]:
        return self._translated(entry, regular=False) if isinstance(entry, str) else [self._walk(entry, regular=False)]

    def _translated(self, text: str, *, regular: bool) -> list[str]:
        """What a name or pattern becomes: itself, other ones, or nothing."""
        pattern = _Pattern.of(text, regular=regular)
        if pattern is None:
            return self._translated_name(text)
        matched = self._matched(pattern)
        wanted = frozenset(
            (i, self._new_number[i][expert], tail) for i, expert, tail in matched if expert in self._new_number[i]
        )
        others = self._matched_others(pattern)
        if matched and not wanted and not others:
            return []
        if self._on_new_names(matched) == wanted:
            return [text]
        for candidates in (self._in_place(pattern, wanted), self._enumerated(pattern, wanted, others)):
            if candidates is not None and self._means(candidates, wanted, others):
                return [candidate.text for candidate in candidates]
        raise self._refusal(text, "no pattern for their new numbers matches the same modules")

    def _translated_name(self, text: str) -> list[str]:
        numbered = _PLAIN_EXPERT.search(text)
        if numbered is None:
            return [text]
        layer, expert = _PLAIN_LAYER.search(text[: numbered.start() + 1]), int(numbered[1])
        of = [int(layer[1])] if layer else list(self.moe.layers)
        of = [i for i in of if i in self.moe.layers and expert < self.moe.layers[i].num_experts]
        new = {self._new_number[i].get(expert) for i in of}
        if not new:
            return [text]
        if len(new) > 1:
            raise self._refusal(text, f"expert {expert} gets different numbers in different layers")
        number = new.pop()
        return [] if number is None else [text[: numbered.start(1)] + str(number) + text[numbered.end(1) :]]

    @cached_property
    def _new_number(self) -> dict[int, dict[int, int]]:
        return {i: {expert: number for number, expert in enumerate(kept)} for i, kept in self.kept.items()}

    @cached_property
    def _names(self) -> list[tuple[str, int, int, str]]:
        """All modules and weights of experts by name: (name, layer, expert, what follows its number)."""
        return sorted(name for layer in self.moe.layers.values() for name in self._names_of(layer))

    @cached_property
    def _other_names(self) -> list[tuple[str]]:
        return sorted((name,) for name in self.others)

    def _names_of(self, layer: MoELayer) -> Iterator[tuple[str, int, int, str]]:
        modules = _modules(layer, self.moe)
        for expert in range(layer.num_experts):
            for tail in ("", *modules, *(f"{module}.weight" for module in modules)):
                yield self._name(layer, expert, tail), layer.index, expert, tail

    def _name(self, layer: MoELayer, expert: int | str, tail: str) -> str:
        return (layer.block + self.moe.architecture.expert.format(expert=expert, tensor=tail)).rstrip(".")

    def _matched(self, pattern: "_Pattern") -> Matched:
        """The modules of experts that a pattern matches, under their old names."""
        matches = self._matcher(pattern)
        candidates = _beginning_with(pattern.literal, self._names)
        return frozenset((i, expert, tail) for name, i, expert, tail in candidates if matches(name))

    def _matched_others(self, pattern: "_Pattern") -> frozenset[str]:
        matches = self._matcher(pattern)
        return frozenset(name for (name,) in _beginning_with(pattern.literal, self._other_names) if matches(name))

    def _on_new_names(self, matched: Matched) -> Matched:
        """Old names are the new names of others, as far as there are as many."""
        return frozenset((i, expert, tail) for i, expert, tail in matched if expert < len(self.kept[i]))

    def _means(self, candidates: Sequence["_Pattern"], wanted: Matched, others: frozenset[str]) -> bool:
        """Whether patterns together match on the new names exactly what is wanted."""
        matched = frozenset[tuple[int, int, str]]().union(*map(self._matched, candidates))
        unchanged = frozenset[str]().union(*map(self._matched_others, candidates))
        return self._on_new_names(matched) == wanted and unchanged == others

    def _matcher(self, pattern: "_Pattern") -> Callable[[str], bool]:
        """Whether a name matches, as the loaders ask: from its beginning. Raises CheckpointError after too long."""
        import regex  # as `re`, with a timeout

        if len(pattern.body) > _LONGEST_PATTERN:
            raise self._refusal(pattern.text, f"it is longer than {_LONGEST_PATTERN} characters")
        # Compiled, counted repeats are written out.
        if (
            prod(min(int(count), _MOST_REPEATS + 1) for count in re.findall(r"\{\D{0,9}(\d+)", pattern.body))
            > _MOST_REPEATS
        ):
            raise self._refusal(pattern.text, f"it repeats more than {_MOST_REPEATS} times")
        try:
            compiled = regex.compile(pattern.expression)
        except (regex.error, OverflowError, MemoryError, RecursionError, ValueError):
            raise self._refusal(pattern.text, "it is not a regular expression") from None

        def matches(name: str) -> bool:
            if process_time() > self.deadline:
                raise self._refusal(pattern.text, "matching all patterns takes too long")
            try:
                return compiled.match(name, timeout=_SECONDS_OF_ONE) is not None
            except TimeoutError:
                raise self._refusal(pattern.text, "matching it takes too long") from None

        return matches

    def _in_place(self, pattern: "_Pattern", wanted: Matched) -> "list[_Pattern] | None":
        """The pattern with its numbers replaced; None where layers differ, or its numbers are spelt in another way."""
        of_layer: dict[int, set[int]] = {}
        for i, expert, _ in wanted:
            of_layer.setdefault(i, set()).add(expert)
        if len(_SPELT_EXPERT.findall(pattern.body)) != 1 or len(set(map(frozenset, of_layer.values()))) != 1:
            return None
        numbers = sorted(next(iter(of_layer.values())))
        if pattern.glob:
            spellings = [str(number) for number in numbers]
        else:
            spellings = [str(numbers[0]) if len(numbers) == 1 else f"(?:{'|'.join(map(str, numbers))})"]
        found = _SPELT_EXPERT.search(pattern.body)
        assert found is not None
        before, after = pattern.body[: found.start(2)], pattern.body[found.end(2) :]
        return [pattern.with_body(before + numbers_now + after) for numbers_now in spellings]

    def _enumerated(self, pattern: "_Pattern", wanted: Matched, others: frozenset[str]) -> "list[_Pattern] | None":
        """Patterns that list what is wanted, layers of like experts together; a glob becomes names."""
        if pattern.glob:
            names = [self._name(self.moe.layers[i], expert, tail) for i, expert, tail in sorted(wanted)]
            return None if others else [pattern.with_body(name) for name in names]
        experts: dict[tuple[int, str], list[int]] = {}
        for i, expert, tail in sorted(wanted):
            experts.setdefault((i, tail), []).append(expert)
        layers: dict[tuple[tuple[int, ...], str], list[int]] = {}
        for (i, tail), numbers in experts.items():
            layers.setdefault((tuple(numbers), tail), []).append(i)
        tails: dict[tuple[tuple[int, ...], tuple[int, ...]], list[str]] = {}
        for (of, tail), indices in layers.items():
            tails.setdefault((of, tuple(indices)), []).append(tail)
        listed = [
            self._of_experts(indices, "|".join(map(str, of))) + self._ending(own)
            for (of, indices), own in tails.items()
        ]
        if others:
            listed.append(rf"(?!{self._of_experts(tuple(self.moe.layers), '[0-9]+')}(?:\.|$))(?:{pattern.body})")
        return [pattern.with_body(body) for body in listed]

    def _of_experts(self, layers: Sequence[int], numbers: str) -> str:
        """A regular expression for the modules of experts of some layers."""
        templates: dict[tuple[str, str], list[str]] = {}
        for i in layers:
            head, _, tail = self.moe.layers[i].block.partition(f".{i}.")
            templates.setdefault((head, tail), []).append(str(i))
        blocks = "|".join(
            rf"{re.escape(head)}\.(?:{'|'.join(numbers)})\.{re.escape(tail)}"
            for (head, tail), numbers in templates.items()
        )
        before, after = self.moe.architecture.expert.split(".{tensor}")[0].split("{expert}")
        start = blocks if len(templates) == 1 else f"(?:{blocks})"
        return f"{start}{re.escape(before)}(?:{numbers}){re.escape(after)}"

    def _ending(self, tails: Sequence[str]) -> str:
        if set(tails) == {"", *self._tails}:
            return r"(?:\.|$)"
        return f"(?:{'|'.join(re.escape('.' + tail if tail else '') for tail in tails)})$"

    @cached_property
    def _tails(self) -> tuple[str, ...]:
        modules = {module for layer in self.moe.layers.values() for module in _modules(layer, self.moe)}
        return (*modules, *(f"{module}.weight" for module in modules))

    def _refusal(self, text: str, why: str) -> CheckpointError:
        shown = text if len(text) <= 80 else text[:77] + "..."
        return CheckpointError(
            f"{self.where} names experts by {shown!r}, which cannot be translated to the kept experts: {why}. Name the "
            "modules there one by one, with their layers."
        )


@dataclass(frozen=True, kw_only=True)
class _Pattern:
    """What matches names of modules."""

    prefix: str
    body: str
    glob: bool

    @classmethod
    def of(cls, text: str, *, regular: bool) -> "_Pattern | None":
        """A text as a pattern; None if it is a name, or words. `regular` texts are patterns in any case."""
        prefix = next((prefix for prefix in _PREFIXES if text.startswith(prefix)), "")
        if prefix or regular:
            return cls(prefix=prefix, body=text.removeprefix(prefix), glob=False)
        if "expert" in text and (text.startswith(".*") or re.search(r"[\\(|^$+]", text)):
            return cls(prefix="", body=text, glob=False)
        return cls(prefix="", body=text, glob=True) if re.search(r"[*?\[]", text) else None

    @property
    def text(self) -> str:
        return self.prefix + self.body

    @property
    def expression(self) -> str:
        """As a regular expression."""
        return translate(self.body) if self.glob else self.body

    @cached_property
    def literal(self) -> str:
        """With what every name begins that matches."""
        if self.glob:
            return re.split(r"[*?\[]", self.body)[0]
        if "|" in _GROUP.sub("", _ESCAPED.sub("", self.body)):
            return ""
        plain = re.match(r"(?:[\w-]|\\\.)*", self.body)
        assert plain is not None
        # What can be repeated may be missing.
        fixed = plain[0][:-1] if self.body[plain.end() :][:1] in {"?", "*", "{"} else plain[0]
        return fixed.replace("\\.", ".").rstrip("\\")

    def with_body(self, body: str) -> "_Pattern":
        return _Pattern(prefix=self.prefix, body=body, glob=self.glob)


_Row = TypeVar("_Row", bound=tuple[Any, ...])


def _beginning_with(literal: str, rows: list[_Row]) -> list[_Row]:
    """Of rows sorted by the names that they begin with those whose name begins with this."""
    first = bisect_left(rows, literal, key=itemgetter(0))
    return rows[first : bisect_left(rows, literal + chr(sys.maxunicode), lo=first, key=itemgetter(0))]


def _modules(layer: MoELayer, moe: MoELayout) -> list[str]:
    """What follows an expert's number in the names of its modules."""
    tensors = layer.experts[0] if layer.experts else moe.architecture.projections.values()
    return sorted({tensor.rpartition(".")[0] for tensor in tensors} - {""})
