"""Turns of a conversation as text: by the model's chat template, or as Instruction / Input / Response.

The text comes in pieces that count towards the loss or do not, so that only answers need count.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from moeits.errors import HealingError
from moeits.healing.chat import ChatTemplate, check_nothing_vanished
from moeits.healing.conversations import Conversation, RowDropped, Turn


@dataclass(frozen=True)
class Tokens:
    """One tokenised text: ids, (n,) int32, and which of them an answer-only loss is taken on, (n,) bool."""

    ids: np.ndarray
    answer: np.ndarray


@dataclass(frozen=True)
class Template:
    """How conversations become token ids for one tokenizer."""

    tokenizer: Any
    chat: ChatTemplate | None
    """The tokenizer's chat template; None for Instruction / Response."""

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
        return cls(tokenizer=tokenizer, chat=ChatTemplate(tokenizer) if has_chat and wanted != "instruction" else None)

    def tokens(self, conversation: Conversation) -> Tokens:
        """Token ids of one conversation, closed by the end-of-sequence token, which belongs to the last answer.

        Raises RowDropped if the conversation cannot be put into words whole.
        """
        pieces = self._pieces(conversation)
        text = "".join(piece for piece, _ in pieces)
        try:
            text.encode()
        except UnicodeEncodeError:
            raise RowDropped("half of a character (a lone surrogate)") from None
        encoded = self.tokenizer(
            text,
            add_special_tokens=conversation.is_text or self.chat is None,
            return_offsets_mapping=self.tokenizer.is_fast,
            verbose=False,
        )
        return self._closed(list(encoded["input_ids"]), self._answers(conversation, pieces, encoded))

    def _pieces(self, conversation: Conversation) -> list[tuple[str, bool]]:
        """The text in pieces, each with whether it is an answer."""
        if conversation.is_text:
            return [(conversation.turns[0].text, True)]
        return _instruction(conversation) if self.chat is None else _chat(self.chat, conversation)

    def _answers(self, conversation: Conversation, pieces: list[tuple[str, bool]], encoded: Any) -> list[bool]:
        if self.tokenizer.is_fast:
            return _in_answers(pieces, encoded["offset_mapping"])
        return [conversation.is_text] * len(encoded["input_ids"])

    def _closed(self, ids: list[int], answer: list[bool]) -> Tokens:
        eos = self.tokenizer.eos_token_id
        # A chat template may close the last turn with the end-of-sequence token itself, and a line break after it.
        if eos not in ids[-2:]:
            ids.append(eos)
            answer.append(True)
        # Where the tokenizer adds it by itself, it lies in no piece of the text.
        if ids[-1] == eos:
            answer[-1] = True
        return Tokens(np.array(ids, np.int32), np.array(answer, bool))


def _chat(template: ChatTemplate, conversation: Conversation) -> list[tuple[str, bool]]:
    """Pieces of the text that the chat template makes; an answer includes what closes it."""
    turns = conversation.turns
    whole = template.rendered(conversation, len(turns), add_generation_prompt=False)
    check_nothing_vanished(conversation, whole)
    pieces: list[tuple[str, bool]] = []
    written = ""
    for at, turn in enumerate(turns):
        if turn.role != "assistant":
            continue
        after = whole if at == len(turns) - 1 else template.rendered(conversation, at + 1, add_generation_prompt=False)
        before = _before(template, conversation, at, after)
        if not before.startswith(written) or not after.startswith(before):
            # A template that rewrites earlier turns (dropping old reasoning, say): only the last answer is known.
            return _last_answer(template, conversation, whole)
        pieces += [(before[len(written) :], False), (after[len(before) :], True)]
        written = after
    return pieces


def _before(template: ChatTemplate, conversation: Conversation, at: int, after: str) -> str:
    """What stands before an answer: the turns before it, and the words with which a template asks for an answer."""
    if at:
        return template.rendered(conversation, at, add_generation_prompt=True)
    # Before the first turn there is nothing that could be rendered.
    return after[: max(after.find(conversation.turns[0].text.strip()), 0)]


def _last_answer(template: ChatTemplate, conversation: Conversation, whole: str) -> list[tuple[str, bool]]:
    before = _before(template, conversation, len(conversation.turns) - 1, whole)
    if whole.startswith(before):
        return [(before, False), (whole[len(before) :], True)]
    return [(whole, True)]


def _instruction(conversation: Conversation) -> list[tuple[str, bool]]:
    """The template of the authors' program (method.md, section 4), once per question, after a system turn."""
    if conversation.tools or any(turn.more or turn.role not in _PLAIN_ROLES for turn in conversation.turns):
        raise RowDropped("tools or roles that only a chat template can render")
    return [_instruction_piece(turn, first=at == 0) for at, turn in enumerate(conversation.turns)]


_PLAIN_ROLES = ("system", "user", "assistant")


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
