"""How surprised a model is by a text: nats per token and bits per byte, with a sliding window.

Each document is read on its own, after one beginning-of-text token, so that its first token is predicted too. A window
holds as many tokens as the model is asked to see at once; it advances by half its length, and only what is new in it is
scored, so that every token is scored once and, but for the first half window, with at least half a window before it.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite, log
from pathlib import Path
from typing import Any

from moeits.errors import EvaluationError
from moeits.evaluation.local_data import sha256_of
from moeits.progress import Progress
from moeits.runtime import need

# Logits of one batch, in numbers: with a vocabulary of 150,000 a batch of windows would otherwise fill any memory.
MOST_LOGITS = 2**26


@dataclass(frozen=True, kw_only=True)
class Text:
    """The documents of one file."""

    name: str
    sha256: str
    documents: tuple[str, ...]
    sources: tuple[str, ...] = ()
    """What the field `source` says of each document, "" where it says nothing."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """One forward pass over tokens [begin, end) of a document; targets from `scored` on count."""

    document: int
    begin: int
    scored: int
    end: int


def read_text(path: str | Path, limit: int | None = None) -> Text:
    """A .jsonl file with one document in the field `text` of each line, or any other file as one document.

    With `limit` only so many of them, evenly spread, as a file is often sorted by source.

    Raises EvaluationError if it cannot be read as that, or is empty.
    """
    path = Path(path)
    try:
        content = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise EvaluationError(f"There is no text {path}. Check the path.") from None
    except UnicodeDecodeError as error:
        line, odd = error.object.count(b"\n", 0, error.start) + 1, f"{error.reason} {error.object[error.start]:#04x}"
        raise EvaluationError(f"{path}, line {line} is not UTF-8 ({odd}). Convert the file.") from None
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path} cannot be read as text: {error}.") from None
    documents = [(content, "")]
    if path.suffix == ".jsonl":
        lines = enumerate(content.split("\n"), 1)
        documents = [_document(path, number, line) for number, line in lines if line.strip()]
    documents = [(document, source) for document, source in documents if document.strip()]
    documents = _spread(documents, min(limit or len(documents), len(documents)))
    if not documents:
        raise EvaluationError(f"{path} holds no text.")
    texts, sources = zip(*documents, strict=True)
    return Text(name=path.name, sha256=sha256_of(path), documents=texts, sources=sources)


def _spread(documents: Sequence[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    """The first document and others at equal distances."""
    return [documents[i * len(documents) // count] for i in range(count)]


def _document(path: Path, number: int, line: str) -> tuple[str, str]:
    """The document of a line, and its source."""
    try:
        row = json.loads(line)
        document = row["text"]
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else f"{error!s:.120}"
        raise EvaluationError(f"{path} cannot be read as text: line {number} is not JSON ({why}).") from None
    except (KeyError, TypeError):
        raise EvaluationError(
            f"{path} has a line without a field 'text', where the document should be: line {number}."
        ) from None
    if not isinstance(document, str):
        raise EvaluationError(f"{path}, line {number}: the field 'text' holds {json.dumps(document)[:40]}, not a text.")
    try:
        document.encode()
    except UnicodeEncodeError:
        raise EvaluationError(
            f"{path}, line {number} holds half of a character (a lone surrogate). Mend or remove the line."
        ) from None
    source = row.get("source")
    return document, source if isinstance(source, str) else ""


def windows(document: int, tokens: int, *, window: int) -> Iterator[Window]:
    """Cover the targets of a document of `tokens` tokens (the one before the first counted): all but that one, once.

    The harness's own scheme (`get_rolling_token_windows`), with half a window as the least context.
    """
    scored, end = 1, min(window + 1, tokens)
    while scored < end:
        yield Window(document=document, begin=max(0, end - window - 1), scored=scored, end=end)
        scored, end = end, min(end + max(1, window // 2), tokens)


def perplexity_of(
    model: Any,
    tokenizer: Any,
    text: Text,
    *,
    window: int,
    parent: Any = None,
    processes: Any = None,
    progress: Progress,
) -> dict[str, Any]:
    """The row of a text in the results, and as samples its units: nats and tokens of each document.

    With a `parent`, a model of the same tokens, also how near the two are: KL(parent || model) in nats per token, and
    the share of tokens at which both find the same next token the most likely.

    A text of one document has its windows as units. `processes` is an accelerate.Accelerator if several share the work.
    Natural logarithms, float32 logits. Raises EvaluationError if the tokenizer has no token to begin a text with.
    """
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if first is None:
        raise EvaluationError(
            "The tokenizer has neither a bos nor an eos token, so no text can begin. Set bos_token in "
            "tokenizer_config.json."
        )
    ids = [[first, *tokenizer.encode(document, add_special_tokens=False, verbose=False)] for document in text.documents]
    plan = [each for i, document in enumerate(ids) for each in windows(i, len(document), window=window)]
    sums = _sums(model, parent, ids, plan, window, processes, progress)
    if not all(map(isfinite, (each for of_window in sums for each in of_window))):
        raise EvaluationError(
            "The model's loss on the text is not finite: its weights, or its config.json, are broken."
        )
    units = _units(plan, sums)
    total, tokens = sum(units["nats"]), int(sum(units["tokens"]))
    nbytes = sum(len(document.encode()) for document in text.documents)
    row = {
        "file": text.name,
        "sha256": text.sha256,
        "documents": len(text.documents),
        "tokens": tokens,
        "bytes": nbytes,
        "nats_per_token": total / tokens,
        "bits_per_byte": total / log(2) / nbytes,
        "window_tokens": window,
        "stride_tokens": max(1, window // 2),
        "unit": "document" if len(text.documents) > 1 else "window",
    }
    if parent is not None:
        row |= {"kl_to_parent": sum(units["kl"]) / tokens, "same_first_choice": sum(units["same"]) / tokens}
    return {"row": row, "samples": units}


def _sums(
    model: Any,
    parent: Any,
    ids: Sequence[list[int]],
    plan: list[Window],
    window: int,
    processes: Any,
    progress: Progress,
) -> list[tuple[float, ...]]:
    """Of each window the nats; with a parent the KL to it and the number of equal first choices as well.

    Windows of like length go together; each process takes every n-th batch.
    """
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    rows = max(1, MOST_LOGITS // (window * vocabulary * (1 if parent is None else 3)))
    order = sorted(range(len(plan)), key=lambda i: (plan[i].begin - plan[i].end, i))
    batches = [order[i : i + rows] for i in range(0, len(order), rows)]
    rank, count = (processes.process_index, processes.num_processes) if processes is not None else (0, 1)
    mine: dict[int, tuple[float, ...]] = {}
    for done, batch in enumerate(batches[rank::count], start=1):
        mine |= dict(zip(batch, _sums_of_batch(model, parent, ids, [plan[i] for i in batch]), strict=True))
        progress("perplexity", min(done * count, len(batches)), len(batches))
    if processes is not None:
        mine = dict(need("accelerate", extra="eval").utils.gather_object(list(mine.items())))
    return [mine[i] for i in range(len(plan))]


def _sums_of_batch(model: Any, parent: Any, ids: Sequence[list[int]], batch: list[Window]) -> list[tuple[float, ...]]:
    torch = need("torch", extra="load")
    longest = max(each.end - each.begin for each in batch)
    # Padding stands to the right, where a causal model does not see it.
    tokens = torch.tensor([ids[w.document][w.begin : w.end] + [0] * (longest - (w.end - w.begin)) for w in batch])
    tokens = tokens.to(model.device)
    with torch.inference_mode():
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits.float()
        nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
        of_tokens = [nats.view(len(batch), -1)]
        if parent is not None:
            theirs = parent(input_ids=tokens[:, :-1].to(parent.device), use_cache=False).logits.float().to(model.device)
            of_tokens += _nearness(logits, theirs)
    return [
        tuple(float(each[i, w.scored - w.begin - 1 : w.end - w.begin - 1].double().sum()) for each in of_tokens)
        for i, w in enumerate(batch)
    ]


def _nearness(logits: Any, theirs: Any) -> list[Any]:
    """(n, length) each: KL(parent || model) of every token, and whether both have the same first choice."""
    same = (logits.argmax(-1) == theirs.argmax(-1)).float()
    mine, theirs = logits.log_softmax(-1), theirs.log_softmax(-1)
    return [(theirs.exp() * (theirs - mine)).sum(-1), same]


def _units(plan: Sequence[Window], sums: Sequence[tuple[float, ...]]) -> dict[str, list[float]]:
    """Windows summed up by document; left as they are if there is only one document."""
    one, names = plan[-1].document == 0, ("nats", "kl", "same")[: len(sums[0])]
    units: dict[int, list[float]] = {}
    for i, (window, values) in enumerate(zip(plan, sums, strict=True)):
        unit = units.setdefault(i if one else window.document, [0.0] * len(names) + [0])
        for at, value in enumerate((*values, window.end - window.scored)):
            unit[at] += value
    columns = {name: [round(unit[at], 6) for unit in units.values()] for at, name in enumerate(names)}
    return {"nats": columns.pop("nats"), "tokens": [unit[-1] for unit in units.values()], **columns}
