"""Tokenised texts as sequences to train on: shuffled, held out, packed or cut, counted; and as padded batches."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from operator import length_hint
from typing import Any

import numpy as np

from moeits.errors import HealingError
from moeits.healing.conversations import Conversation, Row, RowDropped, as_conversation
from moeits.healing.template import Template, Tokens

# A token that is read but not trained on, as torch's cross entropy and transformers have it.
UNTRAINED = -100
# Sequences of the held-out loss. It is looked at several times, and always on the same tokens, so that differences show
# with few of them.
MOST_HELD_OUT = 96


@dataclass(frozen=True, kw_only=True)
class DataCounts:
    """What became of the rows of a data set."""

    rows: int
    """Rows looked at: all of the file, or as many as were asked for."""
    used: int
    held_out: int
    dropped: int
    """Rows that are not trained on, and not spare."""
    dropped_by_reason: Mapping[str, int]
    """Why: no answer, a turn that the chat template leaves out, nothing left after cutting, ..."""
    spare: int
    """Rows with an answer that the steps of the training do not need, or that `samples` left out."""
    cut: int
    """Rows of those used that were longer than a sequence and lost their end; packing cuts none."""
    sequences: int
    tokens: int
    trained_tokens: int
    """Tokens of one pass whose loss is minimised."""


@dataclass(frozen=True)
class Sequences:
    """Sequences of token ids with their labels, as `Trainer` wants a data set: (ids, labels), (n,) int32 each."""

    pairs: tuple[tuple[np.ndarray, np.ndarray], ...]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.pairs[index]

    @property
    def tokens(self) -> int:
        return sum(len(ids) for ids, _ in self.pairs)

    @property
    def trained_tokens(self) -> int:
        """Labels that are predicted: the first token of a sequence has nothing before it."""
        return sum(int((labels[1:] != UNTRAINED).sum()) for _, labels in self.pairs)

    def digest(self) -> str:
        """SHA-256 of ids and labels, in order: the fingerprint of what was trained on."""
        digest = hashlib.sha256()
        for ids, labels in self.pairs:
            digest.update(ids.tobytes() + labels.tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Sequences to train on, sequences held out, and how the rows came to be them."""

    training: Sequences
    held_out: Sequences
    counts: DataCounts

    def facts(self) -> dict[str, Any]:
        """As healing.json keeps it."""
        return {
            **asdict(self.counts),
            "fingerprint": self.training.digest(),
            "held_out_fingerprint": self.held_out.digest(),
        }


@dataclass(frozen=True, kw_only=True)
class Sequencer:
    """How rows become sequences."""

    template: Template
    length: int
    packing: bool
    answers_only: bool
    most: int
    """As many sequences as the steps of a training can use; texts beyond them are not even tokenised."""
    seed: int

    def split(
        self, rows: Iterable[Row], *, samples: int | None, holdout: float, valid: Iterable[Row] | None
    ) -> TrainingData:
        """Sequences of at most `samples` rows, a share `holdout` of them (or the rows of `valid`) held out.

        Raises HealingError if nothing is left to train on, or if `valid` holds nothing to measure.
        """
        drops = _Drops()
        conversations, seen = self._sample(rows, samples, drops)
        if not seen:
            raise HealingError("--data has no rows.")
        if not conversations:
            raise HealingError(f"None of the {seen} rows of --data has an answer, or a text, to learn from{drops}.")
        unread = drops.total
        apart = 0 if valid is not None else min(_held_out(len(conversations), holdout), MOST_HELD_OUT)
        held_out, lost_apart = self._held_out(conversations[:apart], valid, drops)
        lost_before = drops.total
        training, read, cut = self._sequences(conversations[apart:], self.most, drops)
        if not training:
            raise HealingError(f"No row of --data has a token to train on{drops}.{self._remedy(drops)}")
        sequences = Sequences(tuple(training))
        counts = DataCounts(
            rows=seen,
            used=read - (drops.total - lost_before),
            held_out=apart - lost_apart,
            dropped=drops.total,
            dropped_by_reason=dict(sorted(drops.counts.items())),
            spare=seen - unread - apart - read,
            cut=cut,
            sequences=len(training),
            tokens=sequences.tokens,
            trained_tokens=sequences.trained_tokens,
        )
        return TrainingData(training=sequences, held_out=Sequences(tuple(held_out)), counts=counts)

    def _held_out(
        self, apart: Sequence[Conversation], valid: Iterable[Row] | None, drops: "_Drops"
    ) -> tuple[list[tuple[np.ndarray, np.ndarray]], int]:
        """Sequences to measure the loss on, and how many rows set apart for that were dropped."""
        if valid is None:
            before = drops.total
            return self._sequences(apart, MOST_HELD_OUT, drops)[0], drops.total - before
        of_valid = _Drops()
        held_out = self._sequences(self._sample(valid, None, of_valid)[0], MOST_HELD_OUT, of_valid)[0]
        if not held_out:
            raise HealingError(f"--valid has no row with an answer, or a text, to measure the loss on{of_valid}.")
        return held_out, 0

    def _remedy(self, drops: "_Drops") -> str:
        return " Raise --sequence-length." if _CUT_AWAY in drops.counts else ""

    def until_full(self, rows: Iterable[Row], sequences: float) -> Iterator[Row]:
        """Rows that come in random order, until so many sequences could be filled with them.

        For data that are not at hand: a hub data set is not downloaded further than it is used.
        """
        wanted, tokens = sequences * self.length, 0
        for row in rows:
            yield row
            with suppress(RowDropped):
                tokens += len(self.template.tokens(as_conversation(row)).ids)
            if tokens >= wanted:
                return

    def _sample(self, rows: Iterable[Row], samples: int | None, drops: "_Drops") -> tuple[list[Conversation], int]:
        """At most `samples` conversations in random order, every row equally likely; and rows seen."""
        rng = np.random.default_rng(self.seed)
        kept: list[Conversation] = []
        seen = readable = 0
        for row in rows:
            seen += 1
            with drops:
                conversation = as_conversation(row)
                readable += 1
                if samples is None or len(kept) < samples:
                    kept.append(conversation)
                elif (at := int(rng.integers(readable))) < samples:
                    kept[at] = conversation
        return [kept[at] for at in rng.permutation(len(kept))], seen

    def _sequences(
        self, conversations: Sequence[Conversation], most: int, drops: "_Drops"
    ) -> tuple[list[tuple[np.ndarray, np.ndarray]], int, int]:
        """(sequences, rows read for them, rows cut)."""
        waiting = iter(conversations)
        labelled = self._labelled(waiting, drops)
        if self.packing:
            packed = list(islice(_packed(labelled, self.length), most))
            return packed, len(conversations) - length_hint(waiting), 0
        sequences: list[tuple[np.ndarray, np.ndarray]] = []
        cut = 0
        while len(sequences) != most and (pair := next(labelled, None)) is not None:
            ids, labels = pair
            cut += len(ids) > self.length
            if (labels[1 : self.length] == UNTRAINED).all():
                drops.add(RowDropped(_CUT_AWAY if len(ids) > self.length else "no token to train on"))
            else:
                sequences.append((ids[: self.length], labels[: self.length]))
        return sequences, len(conversations) - length_hint(waiting), cut

    def _labelled(
        self, conversations: Iterable[Conversation], drops: "_Drops"
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for conversation in conversations:
            with drops:
                tokens = self.template.tokens(conversation)
                yield tokens.ids, self._labels(tokens)

    def _labels(self, tokens: Tokens) -> np.ndarray:
        if not self.answers_only:
            return tokens.ids
        return np.where(tokens.answer, tokens.ids, UNTRAINED).astype(np.int32)


_CUT_AWAY = "no answer within --sequence-length"


class _Drops:
    """How many rows were dropped, by reason: `with drops:` counts a row that is."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._example = ""

    @property
    def total(self) -> int:
        return self.counts.total()

    def add(self, dropped: RowDropped) -> None:
        self.counts[dropped.reason] += 1
        self._example = self._example or " ".join(dropped.example.split())[:160]

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, dropped: BaseException | None, trace: Any) -> bool:
        if isinstance(dropped, RowDropped):
            self.add(dropped)
        return isinstance(dropped, RowDropped)

    def __str__(self) -> str:
        """': 5 have no answer, 2 ...', with an example where there is one; empty where nothing was dropped."""
        if not self.counts:
            return ""
        reasons = ", ".join(f"{count} with {reason}" for reason, count in self.counts.most_common())
        return f": {reasons}" + (f" (such as: {self._example})" if self._example else "")


def _held_out(count: int, share: float) -> int:
    """Rows to hold out: at least one where there are two, never all."""
    return min(max(1, round(count * share)), count - 1) if share > 0 else 0


def _packed(labelled: Iterable[tuple[np.ndarray, np.ndarray]], length: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All texts in a row, cut every `length` tokens. Texts of one sequence see each other."""
    ids, labels = np.zeros(0, np.int32), np.zeros(0, np.int32)
    for more_ids, more_labels in labelled:
        ids, labels = np.concatenate([ids, more_ids]), np.concatenate([labels, more_labels])
        while len(ids) >= length:
            if (labels[1:length] != UNTRAINED).any():
                yield ids[:length], labels[:length]
            ids, labels = ids[length:], labels[length:]
    if (labels[1:] != UNTRAINED).any():
        yield ids, labels


def collate(pairs: Sequence[tuple[np.ndarray, np.ndarray]], *, pad: int) -> dict[str, Any]:
    """One batch, padded on the right: input_ids, attention_mask and labels, (sequences, longest) int64 each.

    What is padding is known by position, not by token id, so a padding token that is also the end of sequence stays
    trained where it ends an answer.
    """
    import torch

    def padded(rows: Iterable[np.ndarray], value: int) -> Any:
        return torch.nn.utils.rnn.pad_sequence(
            [torch.from_numpy(row.astype(np.int64)) for row in rows], batch_first=True, padding_value=value
        )

    return {
        "input_ids": padded((ids for ids, _ in pairs), pad),
        "attention_mask": padded((np.ones_like(ids) for ids, _ in pairs), 0),
        "labels": padded((labels for _, labels in pairs), UNTRAINED),
    }
