"""A toy that can be asked questions: a tiny checkpoint with a tokenizer of one token per character, and tiny data.

The context of a toy is 64 characters, so whether a prompt is cut can be counted by hand.
"""

import json
import string
from pathlib import Path
from typing import Any

from moeits.evaluation.results import Results
from tests.toys import VOCAB, make_toy

# Token 0 begins and ends a text, token 1 is whatever has no token of its own.
CHARACTERS = (string.ascii_letters + " .,:?\n'_-")[: VOCAB - 2]


def make_speaking_toy(folder: Path, **toy: Any) -> Path:
    """A toy checkpoint with tokenizer.json."""
    make_toy(folder, dtype="float32", **toy)
    give_tokenizer(folder)
    return folder


def give_tokenizer(folder: Path) -> None:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<s>": 0, "<?>": 1, **{character: 2 + i for i, character in enumerate(CHARACTERS)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<?>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>", pad_token="<?>")
    fast.save_pretrained(folder)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def continuation_rows(lengths: list[int]) -> list[dict[str, Any]]:
    """Items whose queries have these lengths in characters, with four choices of four characters."""
    choices = [" abc", " bcd", " cde", " def"]
    return [{"query": ("to be or not " * 20)[:n], "choices": choices, "gold": i % 4} for i, n in enumerate(lengths)]


def arc_rows(items: int) -> list[dict[str, Any]]:
    choices = {"text": ["a cat", "a dog", "rain", "stone"], "label": ["A", "B", "C", "D"]}
    return [
        {"question": f"What is it {'no ' * i}?", "choices": choices, "answerKey": "ABCD"[i % 4]} for i in range(items)
    ]


def results(
    right: dict[str, list[float]] | None = None, *, source: str = "toy", num_fewshot: int = 0, **text: Any
) -> Results:
    """Results made by hand: which items of each task are right, and nats and tokens of each document."""
    right = right or {}
    tasks = {
        name: {
            "acc": sum(items) / len(items),
            "num_fewshot": num_fewshot,
            "version": 1.0,
            "n_samples": {"original": len(items), "effective": len(items)},
            "chance": None,
            "prompts": None,
            "files": {},
        }
        for name, items in right.items()
    }
    samples: dict[str, Any] = {
        name: {"doc_hash": [f"{name}-{i}" for i in range(len(items))], "acc": items} for name, items in right.items()
    }
    perplexity = None
    if text:
        nats, tokens = text["nats"], text["tokens"]
        samples["perplexity"] = {"nats": nats, "tokens": tokens}
        perplexity = {
            "file": "text.jsonl",
            "documents": len(nats),
            "sha256": text.get("sha256", "a text"),
            "window_tokens": 64,
            "tokens": sum(tokens),
            "bytes": 2 * sum(tokens),
            "nats_per_token": sum(nats) / sum(tokens),
            "bits_per_byte": sum(nats) / sum(tokens) / 2 / 0.6931471805599453,
        }
    return Results(
        model={"source": source, "fingerprint": source, "parameters": 1, "bytes": 4},
        settings={},
        versions={},
        tasks=tasks,
        perplexity=perplexity,
        samples=samples,
    )
