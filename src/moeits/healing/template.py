"""Turns of a conversation as text: by the model's chat template, or as Instruction / Input / Response.

The text comes in pieces that are trained or not, so that the loss can be taken on the answers only.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from moeits.errors import HealingError
from moeits.healing.conversations import Conversation, Turn


@dataclass(frozen=True)
class Tokens:
    """One tokenised text: ids, (n,) int32, and which of them an answer-only loss is taken on, (n,) bool."""

    ids: np.ndarray
    answer: np.ndarray


@dataclass(frozen=True)
class Template:
    """How conversations become token ids for one tokenizer."""

    tokenizer: Any
    chat: bool
    """The tokenizer's chat template, or Instruction / Response."""

    @classmethod
    def of(cls, tokenizer: Any, wanted: str) -> "Template":
        """`wanted`: auto, chat or instruction. Raises HealingError without an end-of-sequence token, or a template."""
        if tokenizer.eos_token_id is None:
            raise HealingError(
                "The tokenizer has no end-of-sequence token, so the model could not learn where an answer ends. Set "
                "eos_token in tokenizer_config.json."
            )
        has_chat = bool(getattr(tokenizer, "chat_template", None))
        if wanted == "chat" and not has_chat:
            raise HealingError("--template chat needs a chat template, and this model has none. Use instruction.")
        return cls(tokenizer=tokenizer, chat=has_chat and wanted != "instruction")

    def tokens(self, conversation: Conversation) -> Tokens:
        """Token ids of one conversation, closed by the end-of-sequence token, which belongs to the last answer."""
        plain = conversation[0].role == "text"
        pieces = (
            _plain(conversation) if plain else self._chat(conversation) if self.chat else _instruction(conversation)
        )
        chat = self.chat and not plain
        text = "".join(piece for piece, _ in pieces)
        encoded = self.tokenizer(
            text, add_special_tokens=not chat, return_offsets_mapping=self.tokenizer.is_fast, verbose=False
        )
        ids = list(encoded["input_ids"])
        answer = _in_answers(pieces, encoded["offset_mapping"]) if self.tokenizer.is_fast else [plain] * len(ids)
        eos = self.tokenizer.eos_token_id
        # A chat template may close the last turn with the end-of-sequence token itself, and a line break after it.
        if eos not in ids[-2:]:
            ids.append(eos)
            answer.append(True)
        # Where the tokenizer adds it by itself, it lies in no piece of the text.
        if ids[-1] == eos:
            answer[-1] = True
        return Tokens(np.array(ids, np.int32), np.array(answer, bool))

    def _chat(self, conversation: Conversation) -> list[tuple[str, bool]]:
        """Pieces of the text that the chat template makes; an answer includes what closes it."""
        pieces: list[tuple[str, bool]] = []
        done = ""
        for at, turn in enumerate(conversation):
            if turn.role != "assistant":
                continue
            before = self._rendered(conversation[:at], add_generation_prompt=True)
            after = self._rendered(conversation[: at + 1], add_generation_prompt=False)
            if not before.startswith(done) or not after.startswith(before):
                # A template that rewrites earlier turns (dropping old reasoning, say): only the last answer is known.
                return self._last_answer(conversation)
            pieces += [(before[len(done) :], False), (after[len(before) :], True)]
            done = after
        return pieces

    def _last_answer(self, conversation: Conversation) -> list[tuple[str, bool]]:
        before = self._rendered(conversation[:-1], add_generation_prompt=True)
        whole = self._rendered(conversation, add_generation_prompt=False)
        if whole.startswith(before):
            return [(before, False), (whole[len(before) :], True)]
        return [(whole, True)]

    def _rendered(self, conversation: Conversation, *, add_generation_prompt: bool) -> str:
        from jinja2 import TemplateError

        messages = [
            {"role": turn.role, "content": "\n\n".join(filter(None, (turn.text, turn.input)))} for turn in conversation
        ]
        try:
            return self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except TemplateError as error:
            raise HealingError(f"The model's chat template refuses a conversation: {error}") from None


def _plain(conversation: Conversation) -> list[tuple[str, bool]]:
    return [(conversation[0].text, True)]


def _instruction(conversation: Conversation) -> list[tuple[str, bool]]:
    """The template of the authors' program (method.md, section 4), once per question, after a system turn."""
    return [_instruction_piece(turn, first=at == 0) for at, turn in enumerate(conversation)]


def _instruction_piece(turn: Turn, *, first: bool) -> tuple[str, bool]:
    gap = "" if first else "\n\n"
    if turn.role == "assistant":
        return turn.text, True
    if turn.role == "system":
        return f"{gap}{turn.text}", False
    given = f"Input:\n{turn.input}\n\n" if turn.input else ""
    return f"{gap}Instruction:\n{turn.text}\n\n{given}Response:\n", False


def _in_answers(pieces: list[tuple[str, bool]], offsets: list[tuple[int, int]]) -> list[bool]:
    """For each token whether its last character lies in an answer."""
    ends, kinds, end = [], [], 0
    for text, is_answer in pieces:
        end += len(text)
        ends.append(end)
        kinds.append(is_answer)
    at = np.minimum(np.searchsorted(ends, [max(stop - 1, 0) for _, stop in offsets], side="right"), len(kinds) - 1)
    return [kinds[index] and stop > start for index, (start, stop) in zip(at, offsets, strict=True)]
