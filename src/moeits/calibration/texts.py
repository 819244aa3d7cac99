"""The tokens that a model is watched on: windows of equal length, and others that take no part in any fit.

Sources are text (what the package carries, or a .jsonl), or the model itself, which writes its own at temperature 1
from its first token on. Documents are shuffled and joined, each after one token that begins a text, and cut into
windows. What is held out comes from sources of its own where documents tell their `source`, and otherwise from
documents, or generated windows, of its own. The split is the same for whoever asks with the same settings: experts are
watched on windows that are fitted or choose settings, so those that judge are new to the choice as to the fit. What a
model writes is too easy for one that was fitted on it: where there is nothing else, bundled text judges beside it.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from moeits.calibration.cutting import HELD_OUT, LONGEST_NAME, cut_documents, cut_each, evenly_mixed, first_token
from moeits.calibration.settings import BUNDLED, Tokens
from moeits.calibration.shares import Shares, share_out
from moeits.checkpoint.reading import Checkpoint
from moeits.errors import CalibrationError, EvaluationError
from moeits.evaluation.perplexity import read_text
from moeits.printable import printable
from moeits.progress import Progress
from moeits.runtime import context_of, load_opened, load_tokenizer, need, quiet

_BUNDLED = Path(__file__).parents[1] / "demo" / "train.jsonl"

# Documents by which it is estimated how many characters a token has.
_SAMPLE = 50
# Tokens of the bundled text that judge beside what a model wrote, and the fewest windows of them that say anything.
_MOST_BESIDE, _LEAST_BESIDE = 1 << 16, 4
# Sources that have sums of their own; what is beyond is one source.
_MOST_SOURCES = 20


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Token ids, (windows, length) each."""

    fit: np.ndarray
    choosing: np.ndarray
    """Held out: settings are chosen by them."""
    judging: np.ndarray
    """Held out as well: by them it is said what was gained."""
    sources: tuple[str, ...]
    """What they were taken from, as it was asked for; never a path."""
    told: tuple[str, ...]
    """The sources of `fit` that are told apart."""
    fit_by: np.ndarray
    """Of which of them each token of `fit` is: (windows, length) numbers."""
    chosen_by: tuple[str, ...] = ()
    """Of which source each window of `choosing` is; of `judging` alike. Nothing where sources are not told apart."""
    judged_by: tuple[str, ...] = ()
    beside: int = 0
    """So many windows of `judging` are of the bundled text, after those of what the model wrote itself."""
    asked: int = 0
    """So many of the last ones are of a text that was asked for: they say what a size costs, and accept no refit."""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def all(self) -> np.ndarray:
        """Those of the fit, of the choice and of the judgement."""
        return np.concatenate([self.fit, self.choosing, self.judging])

    @property
    def watched(self) -> np.ndarray:
        """Those by which experts are chosen: the fitted ones, and evenly among them those that choose settings, if they
        are of other sources. Kinds matter: without them the demo model lost 0.18 and 0.01 nats more (two seeds)."""
        return self._with_choosing(self.fit, self.choosing) if self.chosen_by else self.fit

    @property
    def watched_by(self) -> tuple[list[str], np.ndarray]:
        """The sources of `watched`, and of which of them each token is: (windows, length) numbers."""
        names = list(dict.fromkeys([*self.told, *self.chosen_by]))
        if not self.chosen_by:
            return names, self.fit_by
        rows = np.array([[names.index(name)] for name in self.chosen_by])
        return names, self._with_choosing(self.fit_by, np.broadcast_to(rows, self.choosing.shape))

    @staticmethod
    def _with_choosing(fit: np.ndarray, choosing: np.ndarray) -> np.ndarray:
        at = np.linspace(0, len(fit), len(choosing), endpoint=False).astype(int)
        return np.insert(fit, at, choosing, axis=0)

    @property
    def choosing_sources(self) -> np.ndarray:
        """The number of the source of each window of `choosing`; all 0 where they are not told apart."""
        names = sorted(set(self.chosen_by))
        return np.array([names.index(name) for name in self.chosen_by] or [0] * len(self.choosing), np.int64)

    @property
    def held_out(self) -> np.ndarray:
        """Those that take no part in the fit."""
        return np.concatenate([self.choosing, self.judging])

    @property
    def deciding(self) -> slice:
        """Which windows of `judging` say whether a refit gains: what the model wrote, too, as it may lose there."""
        return slice(0, len(self.judging) - self.asked)

    @property
    def telling(self) -> slice:
        """Which windows of `judging` say what a size costs: of text that was asked for, else the bundled, else all."""
        return slice(-(self.asked or self.beside), None) if self.asked or self.beside else self.deciding

    @property
    def digest(self) -> str:
        """SHA-256 over all ids."""
        return hashlib.sha256(self.all.astype(np.int64).tobytes()).hexdigest()


def windows_of(checkpoint: Checkpoint, settings: Tokens, progress: Progress) -> Windows:
    """The windows that were asked for; those held out are of other sources than those of the fit if that can be.

    Raises CalibrationError if a source has too little text, or repeats itself.
    """
    tokenizer, length = _tokenizer(checkpoint), _length(checkpoint, settings)
    made = _windows(
        tokenizer,
        settings,
        length,
        lambda count: _self_written(checkpoint, tokenizer, count, length, settings.seed, progress),
    )
    return _beside_bundled(made, tokenizer, settings) if set(settings.sources()) == {"self"} else made


def check_texts(checkpoint: Checkpoint, settings: Tokens) -> None:
    """There are tokens enough for these windows, which is known before any work. Raises what `windows_of` raises."""
    length = _length(checkpoint, settings)
    # What the model writes itself is always enough.
    _windows(_tokenizer(checkpoint), settings, length, lambda count: np.zeros((count, length), np.int64))


Writer = Callable[[int], np.ndarray]
"""Number of windows -> so many that the model wrote itself."""


def _length(checkpoint: Checkpoint, settings: Tokens) -> int:
    return min(settings.window, context_of(checkpoint) or settings.window)


def _windows(tokenizer: Any, settings: Tokens, length: int, written: Writer) -> Windows:
    # Whoever weighs sources wants all of them fitted.
    share = None if settings.weights else _by_source(tokenizer, settings, length)
    if share is not None:
        made = _of_shares(tokenizer, share, settings, length, written)
    else:
        made = _of_documents(tokenizer, settings, length, written)
    facts = {
        "sources": list(made.sources),
        "tokens": int(made.fit.size),
        "held_out_tokens": int(made.choosing.size + made.judging.size),
        "window": length,
        "seed": settings.seed,
        "sha256": made.digest,
        "held_out_by": "document" if share is None else "source",
        **({} if share is None else share.facts()),
        **({"weights": dict(zip(made.sources, settings.weights, strict=True))} if settings.weights else {}),
    }
    return replace(made, facts=facts)


def judged_on(source: str, windows: Windows, checkpoint: Checkpoint, settings: Tokens) -> Windows:
    """The same windows, and after those that judge as many of another text, of which nothing is fitted or chooses.

    Raises CalibrationError if it has too little text, or is fitted too.
    """
    if windows.beside and source == BUNDLED:
        return windows
    fitted = {_resolved(each) for each in settings.sources()}
    if source == "self" or _resolved(source) in fitted:
        raise CalibrationError(
            f"--judge {printable(source, LONGEST_NAME)} is fitted as well: give text that is in no part of --data."
        )
    count = len(windows.judging) - windows.beside
    made, judged_by = _with_judges(windows, source, count, _tokenizer(checkpoint), settings)
    return _saying(replace(made, asked=count), source, judged_by)


def _beside_bundled(windows: Windows, tokenizer: Any, settings: Tokens) -> Windows:
    """The same windows, and after those that judge as many of the bundled text, or what it has."""
    own, length = windows.judging.shape
    count = min(own, _MOST_BESIDE // length)
    if count < _LEAST_BESIDE:
        return windows
    made, judged_by = _with_judges(windows, BUNDLED, count, tokenizer, settings)
    made = replace(made, beside=count, judged_by=("self",) * own + (BUNDLED,) * count)
    return _saying(made, BUNDLED, judged_by)


def _with_judges(
    windows: Windows, source: str, count: int, tokenizer: Any, settings: Tokens
) -> tuple[Windows, tuple[str, ...]]:
    """So many windows of a text after those that judge, and of which of its sources they are."""
    documents: dict[str, list[str]] = {}
    for document, told in _documents(source).items():
        documents.setdefault(told, []).append(document)
    judging, judged_by = cut_each(tokenizer, documents, count, windows.judging.shape[1], settings)
    return replace(windows, judging=np.concatenate([windows.judging, judging])), judged_by


def _saying(windows: Windows, source: str, judged_by: Sequence[str]) -> Windows:
    told = {"judge": _names([source])[0], "judged_by": sorted(set(judged_by)), "sha256": windows.digest}
    return replace(windows, facts={**windows.facts, **told})


def _of_documents(tokenizer: Any, settings: Tokens, length: int, write: Writer) -> Windows:
    """Windows of which those held out are other documents of the same sources."""
    sources = settings.sources()
    weights = settings.weights or (1.0,) * len(sources)
    if settings.weights and len(set(_names(sources))) < len(sources):
        raise CalibrationError(
            f"--data {printable(settings.data, LONGEST_NAME)} weighs two files of one name, which could not be told "
            "apart afterwards: rename one."
        )
    fit: list[np.ndarray] = []
    held_out: list[np.ndarray] = []
    for source, weight in zip(sources, weights, strict=True):
        fit_windows = max(1, round(settings.tokens / length * weight / sum(weights)))
        held_windows = max(2, round(settings.held_out / length * weight / sum(weights)))
        if source == "self":
            written = write(fit_windows + held_windows)
            fit.append(written[:fit_windows])
            held_out.append(written[fit_windows:])
        else:
            documents = list(_documents(source))
            for part, count in ((fit, fit_windows), (held_out, held_windows)):
                own = [d for i, d in enumerate(documents) if (i % HELD_OUT == 0) == (part is held_out)]
                part.append(cut_documents(tokenizer, own, count, length, _names([source])[0], settings)[0])
    held, told = np.concatenate(held_out), tuple(dict.fromkeys(_names(sources)))
    fit_by = [np.full_like(own, told.index(name)) for own, name in zip(fit, _names(sources), strict=True)]
    return Windows(
        fit=evenly_mixed(fit),
        choosing=held[0::2],
        judging=held[1::2],
        sources=_names(sources),
        told=told,
        fit_by=evenly_mixed(fit_by),
    )


def _by_source(tokenizer: Any, settings: Tokens, length: int) -> Shares | None:
    """Who is fitted, who chooses and who judges; None where too few sources are told apart."""
    documents: dict[str, str] = {}
    for source in settings.sources():
        if source != "self":
            for document, told in _documents(source).items():
                documents.setdefault(document, told)
    if not documents:
        return None
    some = list(documents)[:_SAMPLE]
    tokens = sum(len(tokenizer.encode(document, add_special_tokens=False, verbose=False)) + 1 for document in some)
    rate = tokens / max(1, sum(map(len, some)))
    held = max(4, round(settings.held_out / length)) * length / rate
    files = len(settings.sources())
    written = "self" in settings.sources()
    fit = settings.tokens / rate * (files - written) / files
    return share_out(documents, held_out=held, fit=fit, written=written)


def _of_shares(tokenizer: Any, share: Shares, settings: Tokens, length: int, write: Writer) -> Windows:
    """Windows of which those held out are of other sources."""
    sources = settings.sources()
    count = max(1, round(settings.tokens / length))
    held = max(4, round(settings.held_out / length)) // 2
    written = count // len(sources) if "self" in sources else 0
    if written and not share.fit:
        written = count
    fit: list[np.ndarray] = []
    by: list[np.ndarray] = []
    if written:
        fit.append(write(written))
        by.append(np.full(fit[0].shape, "self"))
    if count > written:
        documents = list(share.fit)
        cut, numbers = cut_documents(tokenizer, documents, count - written, length, ", ".join(share.fitted), settings)
        names = np.array([share.fit[document] for document in documents])
        fit.append(cut)
        by.append(names[numbers])
    told, fit_by = _told_apart(evenly_mixed(by))
    choosing, chosen_by = cut_each(tokenizer, share.choosing, held, length, settings)
    judging, judged_by = cut_each(tokenizer, share.judging, held, length, settings)
    return Windows(
        fit=evenly_mixed(fit),
        choosing=choosing,
        judging=judging,
        sources=_names(sources),
        told=told,
        fit_by=fit_by,
        chosen_by=chosen_by,
        judged_by=judged_by,
    )


def _told_apart(by: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """The names in an array, the most frequent first, and the array by their numbers; the rarest are one source."""
    names, numbers, counts = np.unique(by, return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    number = np.minimum(np.argsort(order), _MOST_SOURCES - 1)
    told = [str(names[i]) for i in order]
    if len(told) > _MOST_SOURCES:
        told = [*told[: _MOST_SOURCES - 1], f"{len(told) - _MOST_SOURCES + 1} others"]
    return tuple(told), number[numbers].reshape(by.shape)


def _names(sources: Sequence[str]) -> tuple[str, ...]:
    return tuple(source if source in ("bundled", "self") else Path(source).name for source in sources)


def _resolved(source: str) -> str:
    """The same for all spellings of one file."""
    return source if source in ("bundled", "self") else os.path.realpath(source)


def _tokenizer(checkpoint: Checkpoint) -> Any:
    with quiet():
        return load_tokenizer(checkpoint)


def _documents(source: str) -> dict[str, str]:
    """Each document once, and where it is from: what repeats itself teaches nothing new."""
    try:
        text = read_text(_BUNDLED if source == "bundled" else source)
    except EvaluationError as error:
        raise CalibrationError(str(error)) from None
    name = _names([source])[0]
    documents: dict[str, str] = {}
    for document, told in zip(text.documents, text.sources, strict=True):
        documents.setdefault(document, printable(told.strip())[:LONGEST_NAME] or name)
    return documents


def _self_written(
    checkpoint: Checkpoint, tokenizer: Any, count: int, length: int, seed: int, progress: Progress
) -> np.ndarray:
    """(count, length) ids that the model wrote itself, each window from its first token on."""
    torch = need("torch", extra="load")
    with quiet():
        model = load_opened(checkpoint, dtype="auto" if torch.cuda.is_available() else torch.float32).eval()
    rows, first, parts = 64, first_token(tokenizer), []
    state = torch.random.get_rng_state()
    try:
        torch.manual_seed(seed)
        for done in range(0, count, rows):
            progress("the model writes its own text", done, count)
            start = torch.full((min(rows, count - done), 1), first, device=model.device)
            with torch.inference_mode(), quiet():
                written = model.generate(
                    start,
                    attention_mask=torch.ones_like(start),
                    do_sample=True,
                    temperature=1.0,
                    top_k=0,
                    top_p=1.0,
                    max_new_tokens=length - 1,
                    # A text that ends is followed by another one.
                    eos_token_id=None,
                    pad_token_id=first,
                )
            parts.append(written.cpu().numpy())
    finally:
        torch.random.set_rng_state(state)
    progress("the model writes its own text", count, count)
    return np.concatenate(parts).astype(np.int64)
